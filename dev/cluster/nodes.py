"""Start and stop nodes, and run commands in them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import host, nodeconfig, paths
from .errors import ClusterError
from .images import NamedArchive
from .nodeinit import import_command
from .pki import Pki, node_identities
from .processes import ProcessTable, child_of, wait_until
from .topology import Node, cable_commands, service_route_command


def init_pid(table: ProcessTable, node: Node) -> int | None:
    """The host's id of the node's process 1, or None while the node does not run."""
    keeper = table.pid(node.process)
    return None if keeper is None else child_of(keeper)


def write_files(
    node: Node,
    all_nodes: Sequence[Node],
    state: Path,
    server: str,
    binaries: Mapping[str, Path],
    images: Sequence[NamedArchive],
    binds: Mapping[str, Path],
) -> None:
    """Write everything that the node reads: certificates, kubeconfig and configuration."""
    pki = Pki(state / "pki")
    for identity in node_identities(node.name, node.address):
        pki.issue(identity)
    pki.write_kubeconfig(node.name, server)
    for name in nodeconfig.PRIVATE_FOLDERS:
        (node.folder / name).mkdir(parents=True, exist_ok=True)
    default_spec = _default_runtime_spec(binaries["ctr"]) if binds else None
    files = nodeconfig.node_files(node, state / "pki", default_spec, binds)
    config = nodeconfig.init_config(node, all_nodes, state, binaries, images)
    files["init.json"] = json.dumps(config, indent=1)
    for name, text in files.items():
        (node.folder / name).write_text(text)


def start(table: ProcessTable, node: Node) -> None:
    """Start the node's namespaces and init; it goes on by itself."""
    host.make_node_cgroup(node)
    command = [
        *("unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"),
        *(sys.executable, "-m", "dev.cluster.nodeinit", str(node.folder / "init.json")),
    ]
    # The working directory may be anywhere; the package is found in the repository.
    env = {**os.environ, "PYTHONPATH": str(paths.REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    table.start(node.process, command, env=env)
    wait_until(lambda: init_pid(table, node) is not None, f"the init of {node.name}", 10)
    keeper = table.pid(node.process)
    if keeper is None:
        raise ClusterError(f"{node.name} ended:\n{table.tail(node.process)}")
    for each in cable_commands(node, keeper):
        host.run(*each)


def stop(table: ProcessTable, node: Node) -> None:
    """Kill the node at once, as a power failure would, and clean up after it."""
    init = init_pid(table, node)
    if init is not None:
        os.kill(init, 9)
        # The kernel ends every process of the namespace before init itself is gone.
        wait_until(lambda: init_pid(table, node) is None, f"{node.name} to end", 30)
    table.stop(node.process)
    # The cable goes with the namespace, a moment later; this makes sure of it.
    host.run("ip", "link", "delete", node.link, check=False)
    host.run("ip", "route", "delete", node.pod_cidr, check=False)
    host.remove_cgroup(node.cgroup)


def route_services(table: ProcessTable, all_nodes: Sequence[Node]) -> None:
    """Let the host reach Services through the first node that runs."""
    running = [node for node in all_nodes if table.pid(node.process) is not None]
    if running:
        host.run(*service_route_command(running[0]))


def inside(table: ProcessTable, node: Node, *command: str) -> str:
    """Run a command in all of the node's namespaces and return its output."""
    pid = init_pid(table, node)
    if pid is None:
        raise ClusterError(f"node {node.name} does not run")
    enter = ("nsenter", f"--target={pid}", "--mount", "--pid", "--net", "--uts", "--ipc", "--")
    return host.run(*enter, *command)


def load_image(table: ProcessTable, node: Node, archive: Path) -> None:
    """Import an OCI archive into the node's containerd."""
    config = json.loads((node.folder / "init.json").read_text())
    inside(table, node, *import_command(config["ctr"], str(archive.resolve())))


def _default_runtime_spec(ctr: Path) -> dict[str, Any]:
    """containerd's default runtime spec; ctr prints it without a daemon."""
    document: dict[str, Any] = json.loads(host.run(str(ctr), "oci", "spec"))
    return document
