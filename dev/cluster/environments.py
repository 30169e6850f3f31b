"""Locked Python environments for the images, made for the base root filesystem's Python."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import venv
from . import paths
from .errors import ClusterError
from .rootfs import base_key, base_rootfs
from .tools import Report, exclusive

# Where the interpreter is in the images; the environments are made with the base's own.
PYTHON = "/usr/bin/python3"
# The format of an environment: change it to have all of them made again.
FORMAT = "1"


@dataclass(frozen=True)
class Lock:
    """The files, relative to the repository, that an environment is made from."""

    requirements: str
    hook: str
    """Run last, where it exists, with the environment's path as its argument."""


LOCKS = {
    name: Lock(f"{folder}/requirements.txt", f"{folder}/post-install.sh")
    for name, folder in (
        ("operator", "operator"),
        ("trainer", "trainer-image"),
        ("serving", "serving-image"),
    )
}


def environment_key(contents: Sequence[bytes], base: str) -> str:
    """A short hash over the lock files and the base they are for."""
    digest = hashlib.sha256(f"{FORMAT} {venv.UV} {base}".encode())
    for content in contents:
        digest.update(b"\0" + content)
    return digest.hexdigest()[:16]


def install_command(uv: str, python: Path, lock: Path) -> list[str]:
    """Install exactly what a lock names, each file checked against its hash."""
    command = [uv, "pip", "install", "--python", str(python), "--require-hashes", "--no-deps"]
    # Compiled now: containers see the environment read-only.
    return [*command, "--compile-bytecode", "--requirements", str(lock)]


def environment(name: str, *, repository: Path = paths.REPOSITORY, report: Report = print) -> Path:
    """The folder of a locked environment, built when the cache lacks it.

    It works at any path, with the Python of the base root filesystem at /usr/bin/python3.
    """
    lock = LOCKS[name]
    requirements, hook = repository / lock.requirements, repository / lock.hook
    if not requirements.exists():
        raise ClusterError(f"there is no lock file {lock.requirements}")
    contents = [path.read_bytes() if path.exists() else b"" for path in (requirements, hook)]
    target = paths.environments_root() / f"{name}-{environment_key(contents, base_key())}"
    if target.exists():
        return target
    with exclusive(paths.environments_root() / f".{name}.lock"):
        if not target.exists():
            _build(name, requirements, hook, target, report)
    return target


def _build(name: str, requirements: Path, hook: Path, target: Path, report: Report) -> None:
    started = time.monotonic()
    report(f"making the {name} environment")
    uv = venv.find_uv(venv.cache_folder())
    interpreter = base_rootfs(report) / PYTHON.lstrip("/")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _run([uv, "venv", "--relocatable", "--python", str(interpreter), str(partial)])
    _run(install_command(uv, partial / "bin" / "python", requirements))
    if hook.exists():
        _run(["sh", str(hook), str(partial)])
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
