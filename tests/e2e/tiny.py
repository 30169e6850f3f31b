"""Tiny models for the development cluster's volumes."""

from __future__ import annotations

import subprocess
from pathlib import Path

from dev import checks
from dev.demo.stack import ROOT


def make_model(folder: Path, seed: int = 0) -> None:
    """Write a Llama of random weights, readable by every pod; each seed is another model."""
    folder.mkdir(parents=True)
    script = ROOT / "tests/serving/tiny_llama.py"
    subprocess.run([checks.python("serving"), str(script), str(folder), str(seed)], check=True, capture_output=True)
    (folder / "model.safetensors").chmod(0o644)
