"""What the launcher needs to know of the container it runs in."""

from __future__ import annotations

import os
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def writable_home() -> Path:
    """Return $HOME where it can be written, else a new folder: the root file system is read-only."""
    home = Path(os.environ.get("HOME", "/"))
    if home != Path("/") and os.access(home, os.W_OK):
        return home
    return Path(tempfile.mkdtemp(prefix="tunesmith-home-"))


def available_cpus(cpu_max: Path = CGROUP_CPU_MAX) -> int:
    """Return how many processors this process may keep busy: those it sees, or its cgroup's limit if that is less."""
    visible = len(os.sched_getaffinity(0))
    try:
        quota, period = cpu_max.read_text().split()
    except (OSError, ValueError):
        return visible
    if quota == "max":
        return visible
    return min(visible, max(1, int(quota) // int(period)))


def vllm_is_for_cpus() -> bool:
    """Return whether the vLLM of this image is built for CPUs: its version says so, and vLLM chooses its platform by that."""
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        return False
