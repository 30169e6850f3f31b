"""A whole life of the cluster: up, a node's failure and return, down, and nothing left behind.

Run after everything else: a cluster that is still up is taken down first.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dev.cluster import host, nodes, paths
from dev.cluster.cluster import Cluster
from dev.cluster.nodeconfig import PRIVATE_FOLDERS, PRIVATE_TMPFS
from dev.cluster.processes import is_running, wait_until
from dev.cluster.topology import BRIDGE, BRIDGE_MAC
from dev.demo.kube import Kube
from tests.e2e import cluster_pods as pods

pytestmark = pytest.mark.timeout(900)


def snapshot() -> dict[str, Any]:
    """All that a cluster touches on the host."""
    hierarchies = host.all_hierarchies(Path("/proc/mounts").read_text())
    return {
        "processes": cluster_processes(),
        "mounts": sorted(line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()),
        "interfaces": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "routes": sorted(host.run("ip", "route").splitlines()),
        "named network namespaces": host.run("ip", "netns"),
        "namespaces": len(namespaces()),
        "cgroups": sorted(str(path) for top in hierarchies for path in top.iterdir() if path.is_dir() and "tunesmith" in path.name),
        "sysctls": host.read_sysctls(),
        "host folders": [path for path in [*PRIVATE_FOLDERS.values(), *PRIVATE_TMPFS] if Path(path).exists()],
        "firewall": re.sub(r"\[\d+:\d+\]|^#.*$", "", host.run("iptables-save"), flags=re.MULTILINE),
    }


def namespaces() -> set[str]:
    """The kernel's namespaces that processes are in."""
    found = set()
    for kind in ("net", "mnt", "pid", "uts", "ipc"):
        for path in Path("/proc").glob(f"[0-9]*/ns/{kind}"):
            # A process may end just now.
            with suppress(OSError):
                found.add(path.readlink().name)
    return found


def cluster_processes() -> list[str]:
    """Processes that run from the cache folder or were given a path in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_running(int(entry.name)):
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if any(f"{paths.cache_root()}/{part}" in command for part in ("bin", "cluster")):
                found.append(command)
    return sorted(found)


def tool(*arguments: str) -> str:
    """Run the command as a user would, and give its output."""
    done = subprocess.run([sys.executable, "-m", "dev.cluster", *arguments], cwd=paths.REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def before() -> dict[str, Any]:
    """The host without a cluster."""
    tool("down")
    return snapshot()


@pytest.fixture(scope="module")
def kube(before: dict[str, Any]) -> Iterator[Kube]:
    """A fresh cluster with a pod on the second node that uses a volume."""
    tool("up")
    cluster = Cluster()
    made = Kube(cluster.kubectl_command()[0], cluster.kubeconfig, "life")
    made.apply(pods.restricted_namespace("life"))
    made.apply(pods.shared_claim("data"))
    made.apply({**pods.pod("keeper", "n2", "sh", "-c", "date > /data/note; exec sleep infinity", claim="data")})
    made.run("wait", "pod/keeper", "--for=condition=Ready", "--timeout=120s")
    yield made
    tool("down")


def ready(kube: Kube, node: str) -> str:
    """The node's Ready condition: True, False or Unknown."""
    conditions = kube.get("node", node)["status"]["conditions"]
    return next(str(each["status"]) for each in conditions if each["type"] == "Ready")


def test_a_stopped_node_is_gone_at_once_and_kubernetes_notices(kube: Kube) -> None:
    started = time.monotonic()
    tool("node", "stop", "2")
    # Kubernetes takes 50 s to notice.
    assert time.monotonic() - started < 20
    cluster = Cluster()
    assert nodes.init_pid(cluster.processes, cluster.node(2)) is None
    assert not [command for command in cluster_processes() if "/nodes/n2/" in command]
    # As the other node knows it: with another one it would have no API server for a while.
    assert Path(f"/sys/class/net/{BRIDGE}/address").read_text().strip() == BRIDGE_MAC
    wait_until(lambda: ready(kube, "n2") != "True", "n2 not to be Ready", 120, 1)
    assert ready(kube, "n1") == "True"


def test_a_node_comes_back_with_its_images_and_volumes(kube: Kube) -> None:
    tool("node", "start", "2")
    assert ready(kube, "n2") == "True"
    kube.apply(pods.pod("reader", "n2", "cat", "/data/note", claim="data"))
    kube.run("wait", "pod/reader", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s")
    assert kube.run("logs", "reader").strip()


def test_down_leaves_nothing_on_the_host(kube: Kube, before: dict[str, Any]) -> None:
    during = snapshot()
    assert during["processes"], "the snapshot must see a cluster's processes"
    assert during["interfaces"] != before["interfaces"]
    assert during["cgroups"] != before["cgroups"]
    output = tool("down")
    assert snapshot() == before
    assert f"kept as cache: binaries in {paths.binaries_root()}" in output
    left = sorted(path.name for path in paths.state_root().iterdir())
    assert left == ["audit.log", "logs"]


def test_down_twice_is_harmless_and_purge_takes_the_logs(before: dict[str, Any]) -> None:
    tool("down", "--purge")
    assert not paths.state_root().exists()
    assert snapshot() == before
