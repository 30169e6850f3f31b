"""Rows to train on and to measure with, as the demo, the benchmarks and the tests write them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WORDS = "red green blue one two three cat dog bird runs sleeps eats big small old new house tree river stone".split()
"""What the texts of tiny models are made of."""


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Write rows as JSON Lines, as people read them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
