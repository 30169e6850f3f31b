"""Checks before anything is started. Each problem is one sentence that says what to do."""

from __future__ import annotations

import os
import shutil
import socket

from . import packages, paths, tools
from .errors import ClusterError
from .topology import API_PORT, BRIDGE

GIB = 1 << 30
SPACE_TO_BUILD = 8 * GIB
SPACE_TO_RUN = 3 * GIB


def check_root() -> None:
    """Nodes are made of namespaces, mounts and cgroups."""
    if os.geteuid() != 0:
        raise ClusterError("the cluster needs root: nodes are made of namespaces and cgroups")


def check_space(building: bool) -> None:
    """Builds fill Go's cache too, which by default is on the same disk."""
    require_space(SPACE_TO_BUILD if building else SPACE_TO_RUN)


def require_space(needed: int) -> None:
    """`needed` bytes are free where the caches lie."""
    folder = paths.cache_root()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        have, want = free / GIB, needed / GIB
        raise ClusterError(f"too little disk: {have:.1f} GiB free at {folder}, {want:.0f} needed")


def require_memory(needed: int) -> None:
    """The machine has `needed` bytes: to the scheduler each node is as large as all of it."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if total < needed:
        raise ClusterError(f"too little memory: {total / GIB:.1f} GiB, {needed / GIB:.0f} needed")


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
    packages.ensure(report)
    building = bool(tools.missing(tools.CLUSTER))
    check_space(building)
    return building
