"""Debian packages that the cluster needs: installed where that is possible, else named."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from .errors import ClusterError

# What shows that a package is installed: a command, or a file with a path.
EVIDENCE = {
    "runc": "runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "iptables": "iptables",
    "iproute2": "ip",
    "conntrack": "conntrack",
    "debootstrap": "debootstrap",
    "openssl": "openssl",
    "util-linux": "unshare",
    "mount": "mount",
    "gcc": "gcc",
    "libc6-dev": "/usr/include/stdlib.h",
    "buildah": "buildah",
    "libpython3-dev": "/usr/include/python3.11/Python.h",
}
# The real images' builder (dev/images.py), and what Triton compiles against in the trainer's tests; a cluster does without.
CLUSTER = tuple(name for name in EVIDENCE if name not in ("buildah", "libpython3-dev"))


def is_present(evidence: str) -> bool:
    """Whether a command is on PATH (or in an sbin folder), or a file exists."""
    if evidence.startswith("/"):
        return Path(evidence).exists()
    return shutil.which(evidence, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None


def missing(names: Iterable[str] = CLUSTER) -> list[str]:
    """The packages among those that the machine lacks."""
    return [name for name in names if not is_present(EVIDENCE[name])]


def ensure(report: Callable[[str], None], names: Iterable[str] = CLUSTER) -> None:
    """Install what is missing as root on Debian; elsewhere an error says what to type."""
    packages = missing(names)
    if not packages:
        return
    wanted = " ".join(packages)
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        line = f"apt-get install --no-install-recommends {wanted}"
        raise ClusterError(f"missing Debian packages ({wanted}): {line}")
    report(f"installing missing Debian packages: {wanted}")
    _apt_get("update")
    _apt_get("install", "-y", "--no-install-recommends", *packages)


def _apt_get(*arguments: str) -> None:
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    result = subprocess.run(["apt-get", *arguments], env=env, capture_output=True, text=True)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ClusterError(f"`apt-get {' '.join(arguments)}` failed: {reason}")
