"""Checks before anything is started. Each problem is one sentence that says what to do."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

from . import paths, tools
from .errors import ClusterError
from .nodeconfig import CNI_PLUGINS
from .topology import API_PORT, BRIDGE

# What shows that a Debian package is installed: a command, or a file with a path.
DEBIAN_PACKAGES = {
    "runc": "runc",
    "containernetworking-plugins": f"{CNI_PLUGINS}/bridge",
    "iptables": "iptables",
    "iproute2": "ip",
    "conntrack": "conntrack",
    "debootstrap": "debootstrap",
    "openssl": "openssl",
    "util-linux": "unshare",
    "mount": "mount",
    "gcc": "gcc",
    "libc6-dev": "/usr/include/stdlib.h",
}
GIB = 1 << 30
SPACE_TO_BUILD = 8 * GIB
SPACE_TO_RUN = 3 * GIB


def is_present(evidence: str) -> bool:
    """Whether a command is on PATH (or in an sbin folder), or a file exists."""
    if evidence.startswith("/"):
        return Path(evidence).exists()
    return shutil.which(evidence, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None


def missing_packages() -> list[str]:
    """Debian packages that the cluster needs and the machine lacks."""
    return [name for name, evidence in DEBIAN_PACKAGES.items() if not is_present(evidence)]


def install_line(packages: list[str]) -> str:
    """What to type to install packages."""
    return f"apt-get install --no-install-recommends {' '.join(packages)}"


def check_root() -> None:
    """Nodes are made of namespaces, mounts and cgroups."""
    if os.geteuid() != 0:
        raise ClusterError("the cluster needs root: nodes are made of namespaces and cgroups")


def ensure_packages(report: tools.Report) -> None:
    """Install what is missing where that is possible, else say how."""
    packages = missing_packages()
    if not packages:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        missing = " ".join(packages)
        raise ClusterError(f"missing Debian packages ({missing}): {install_line(packages)}")
    report(f"installing missing Debian packages: {' '.join(packages)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    for command in (["apt-get", "update"], install):
        result = subprocess.run(command, env=env, capture_output=True, text=True)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ClusterError(f"`{' '.join(command)}` failed: {reason}")


def check_space(building: bool) -> None:
    """Builds fill Go's cache too, which by default is on the same disk."""
    folder = paths.cache_root()
    while not folder.exists():
        folder = folder.parent
    needed = SPACE_TO_BUILD if building else SPACE_TO_RUN
    free = shutil.disk_usage(folder).free
    if free < needed:
        have, want = free / GIB, needed / GIB
        raise ClusterError(f"too little disk: {have:.1f} GiB free at {folder}, {want:.0f} needed")


def check_network() -> None:
    """The bridge's name and the API server's port must be free."""
    if any(name == BRIDGE for _, name in socket.if_nameindex()):
        raise ClusterError(f"the network interface {BRIDGE} exists already: another cluster's?")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", API_PORT))
        except OSError:
            raise ClusterError(f"port {API_PORT} is taken: the API server needs it") from None


def check_build(report: tools.Report) -> bool:
    """What building needs: Go, packages and space. Returns whether anything must be built."""
    tools.go_version()
    ensure_packages(report)
    building = bool(tools.missing(tools.CLUSTER))
    check_space(building)
    return building
