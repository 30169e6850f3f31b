"""Tiny models and rows for the development cluster's volumes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

from dev import checks
from dev.demo.stack import ROOT


def make_model(folder: Path, seed: int = 0) -> None:
    """Write a Llama of random weights, readable by every pod; each seed is another model."""
    folder.mkdir(parents=True)
    script = ROOT / "tests/serving/tiny_llama.py"
    subprocess.run([checks.python("serving"), str(script), str(folder), str(seed)], check=True, capture_output=True)
    (folder / "model.safetensors").chmod(0o644)


def write_rows(path: Path, texts: Iterable[str]) -> None:
    """Write a dataset in the format Text."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
