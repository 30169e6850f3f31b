"""What a cluster changes on the host, remembered in a file and put back afterwards."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from .errors import ClusterError
from .nodeconfig import PRIVATE_FOLDERS, PRIVATE_TMPFS
from .processes import wait_until
from .topology import BRIDGE, CGROUP, Node, bridge_up_commands

# kubelet sets the first five for the whole machine, whatever namespace it runs in.
SYSCTLS = (
    "vm.overcommit_memory",
    "vm.panic_on_oom",
    "kernel.panic",
    "kernel.panic_on_oops",
    "kernel.keys.root_maxkeys",
    "kernel.keys.root_maxbytes",
    "fs.inotify.max_user_instances",
)
# Every kubelet, containerd and shim watches files; a machine's default of 128 is soon used up.
RAISED = {"fs.inotify.max_user_instances": "1024"}


def run(*command: str, check: bool = True) -> str:
    """Run a command and return its output; a failure is an error that names the command."""
    result = subprocess.run(command, capture_output=True, text=True)
    if check and result.returncode:
        raise ClusterError(f"`{' '.join(command)}` failed: {result.stderr.strip()}")
    return result.stdout


def sysctl_path(name: str) -> Path:
    """The file of a kernel setting."""
    return Path("/proc/sys") / name.replace(".", "/")


def read_sysctls(names: Iterable[str] = SYSCTLS) -> dict[str, str]:
    """Current values of the kernel settings that this kernel has."""
    return {name: sysctl_path(name).read_text().strip() for name in names if sysctl_path(name).exists()}


def write_sysctls(values: dict[str, str]) -> None:
    """Set kernel settings, leaving alone those that have the value already."""
    for name, value in values.items():
        if sysctl_path(name).read_text().strip() != value:
            sysctl_path(name).write_text(value)


def cgroup_hierarchies(mounts: str) -> list[Path]:
    """Mount points of the hierarchies that pods' cgroups go into, from /proc/mounts.

    With version 1 that is one per controller, without the unified one beside them; a machine
    with version 2 only has a single hierarchy.
    """
    return _mount_points(mounts, "cgroup") or _mount_points(mounts, "cgroup2")


def all_hierarchies(mounts: str) -> list[Path]:
    """Mount points of every cgroup hierarchy, from /proc/mounts."""
    return _mount_points(mounts, "cgroup") + _mount_points(mounts, "cgroup2")


def _mount_points(mounts: str, kind: str) -> list[Path]:
    rows = [line.split() for line in mounts.splitlines()]
    return [Path(row[1]) for row in rows if row[2] == kind]


def make_node_cgroup(node: Node) -> None:
    """Make the node's cgroup everywhere: the kubelet expects it to be there."""
    for hierarchy in cgroup_hierarchies(Path("/proc/mounts").read_text()):
        for folder in (hierarchy / CGROUP, hierarchy / node.cgroup):
            folder.mkdir(exist_ok=True)
            if (hierarchy / "cgroup.controllers").exists():
                _delegate(folder.parent)
            elif (hierarchy / "cpuset.cpus").exists():
                # Version 1 leaves these empty, and nothing may join an empty cpuset.
                for name in ("cpuset.cpus", "cpuset.mems"):
                    (folder / name).write_text((hierarchy / name).read_text())
        _raise_share(hierarchy / CGROUP)


def _raise_share(folder: Path) -> None:
    """Let all pods together weigh as much as a few processes of the host: by default they weigh as much as one."""
    for name, value in (("cpu.shares", 4 * 1024), ("cpu.weight", 4 * 100)):
        if (folder / name).exists():
            (folder / name).write_text(str(value))


def _delegate(folder: Path) -> None:
    """Version 2: let the children of a cgroup use all of its controllers."""
    names = (folder / "cgroup.controllers").read_text().split()
    (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in names))


def remove_cgroup(name: str) -> None:
    """Remove a cgroup with all below it; what ran in it must have ended."""
    # The unified hierarchy too: runc makes a cgroup there even beside version 1.
    for hierarchy in all_hierarchies(Path("/proc/mounts").read_text()):
        top = hierarchy / name
        if top.exists():
            below = [path for path in top.rglob("*") if path.is_dir()]
            for path in [*sorted(below, key=lambda path: -len(path.parts)), top]:
                wait_until(partial(_is_removed, path), f"{path} to be empty", 10)


def _is_removed(path: Path) -> bool:
    """Remove a cgroup; it stays busy for a moment after its last process has ended."""
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def missing_folders(wanted: Sequence[str]) -> list[str]:
    """Folders to make so that all the wanted ones exist, parents first."""
    absent: dict[str, None] = {}
    for path in map(Path, wanted):
        for folder in [*reversed(path.parents), path]:
            if not folder.exists():
                absent[str(folder)] = None
    return list(absent)


class Host:
    """The host's state before the cluster, in `host.json` of the state folder."""

    def __init__(self, state: Path) -> None:
        self.record = state / "host.json"

    def prepare(self) -> None:
        """Remember how things are, then make the bridge, mount points and settings."""
        folders = missing_folders([*PRIVATE_FOLDERS.values(), *PRIVATE_TMPFS])
        self.record.parent.mkdir(parents=True, exist_ok=True)
        before = {"sysctls": read_sysctls(), "folders": folders}
        # Written before the first change, so that an interrupted `up` can be undone.
        self.record.write_text(json.dumps(before, indent=1))
        for folder in folders:
            Path(folder).mkdir(exist_ok=True)
        write_sysctls({name: value for name, value in RAISED.items() if _lower(name, value)})
        if shutil.which("modprobe") and not Path("/proc/sys/net/bridge").exists():
            # Where it is built in, the call fails harmlessly.
            subprocess.run(["modprobe", "br_netfilter"], capture_output=True)
        for command in bridge_up_commands():
            run(*command)

    def restore(self) -> None:
        """Put everything back; harmless when there is nothing to put back."""
        run("ip", "link", "delete", BRIDGE, check=False)
        remove_cgroup(CGROUP)
        if not self.record.exists():
            return
        before = json.loads(self.record.read_text())
        write_sysctls(before["sysctls"])
        for folder in reversed(before["folders"]):
            try:
                Path(folder).rmdir()
            except OSError:
                pass  # someone else has put something there in the meantime
        self.record.unlink()


def _lower(name: str, value: str) -> bool:
    return int(sysctl_path(name).read_text()) < int(value)
