"""Where things live: everything outside the repository is under one cache folder."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = Path(__file__).resolve().parent / "modules"
MANIFESTS = Path(__file__).resolve().parent / "manifests"


def cache_root() -> Path:
    """`${XDG_CACHE_HOME:-~/.cache}/tunesmith`: what the tool builds and what a cluster writes."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "tunesmith"


def binaries_root() -> Path:
    """Go binaries, one folder per module and key."""
    return cache_root() / "bin"


def images_root() -> Path:
    """The base root filesystem and image archives, one folder per key."""
    return cache_root() / "images"


def environments_root() -> Path:
    """The images' locked Python environments, one folder per name and hash of the lock."""
    return cache_root() / "envs"


def venvs_root() -> Path:
    """The tests' Python environments (`dev/venv.py`), and uv."""
    return cache_root() / "venvs"


def data_root() -> Path:
    """What the demo downloads and makes."""
    return cache_root() / "data"


def state_root() -> Path:
    """Everything that a running cluster writes."""
    return cache_root() / "cluster"
