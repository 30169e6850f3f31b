"""The base root filesystem: Debian's smallest, with the Python that our environments use."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

from . import packages, paths
from .errors import ClusterError
from .tools import Report, exclusive

SUITE = "bookworm"
FORM = "2"
"""Another one for another way to make it or its layer."""
# libnuma1 is for vLLM on CPUs; the rest is what a virtual environment needs.
PACKAGES = ("python3", "python3-venv", "ca-certificates", "libnuma1")


def base_key() -> str:
    """A short hash over what the base is made of."""
    return hashlib.sha256(" ".join((FORM, SUITE, *PACKAGES)).encode()).hexdigest()[:16]


def base_folder() -> Path:
    """The cache folder of the base: `rootfs`, `layer.tar` and `image.tar`."""
    return paths.images_root() / f"base-{base_key()}"


def debootstrap_command(target: Path) -> list[str]:
    """The debootstrap call; the mirror is the machine's own default."""
    return [
        *("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
        *(SUITE, str(target)),
    ]


def base_rootfs(report: Report = print) -> Path:
    """The unpacked base root filesystem, made when the cache lacks it (about a minute)."""
    folder = base_folder()
    target = folder / "rootfs"
    if target.exists():
        return target
    with exclusive(paths.images_root() / ".base.lock"):
        if not target.exists():
            _debootstrap(folder, target, report)
    return target


def _debootstrap(folder: Path, target: Path, report: Report) -> None:
    packages.ensure(report, ["debootstrap"])
    if os.geteuid() != 0:
        raise ClusterError("debootstrap needs root: the base root filesystem holds files of several owners")
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "rootfs.partial"
    shutil.rmtree(partial, ignore_errors=True)
    report(f"making the base root filesystem with debootstrap ({SUITE}), about a minute")
    started = time.monotonic()
    log = folder / "debootstrap.log"
    with log.open("w") as output:
        command = debootstrap_command(partial)
        result = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT)
    if result.returncode:
        tail = "\n".join(log.read_text().splitlines()[-5:])
        raise ClusterError(f"debootstrap failed (whole log: {log}):\n{tail}")
    _remove_build_traces(partial)
    partial.rename(target)
    report(f"made the base root filesystem in {time.monotonic() - started:.0f} s")


def _remove_build_traces(root: Path) -> None:
    """Leave out downloads, and whatever describes the machine that made the image."""
    for pattern in ("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*", "var/log/*.log"):
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in ("etc/resolv.conf", "etc/hostname", "etc/apt/sources.list"):
        (root / name).unlink(missing_ok=True)
