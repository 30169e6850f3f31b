"""The two-node cluster as a whole: up, down, status, load, and single nodes."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import addons, images, nodes, paths, preflight, tools
from .controlplane import ControlPlane, Ports
from .errors import ClusterError
from .host import Host, run
from .ports import free_ports
from .processes import wait_until
from .topology import API_PORT, HOST_ADDRESS, MAX_NODES, SERVICE_CIDR, Node
from .topology import nodes as first_nodes

NODE_BINARIES = ("kubelet", "kube-proxy", "fakegpu", "containerd", "containerd-shim-runc-v2", "ctr")
KEPT_BY_DOWN = ("logs", "audit.log")
KEPT_AS_CACHE = {
    "bin": "binaries",
    "images": "images and base",
    "images-built": "the real images",
    "envs": "the images' Python environments",
    "venvs": "Python environments of the tests, and uv",
    "data": "the demo's model and data",
}
"""Folders of the cache that no cluster writes (dev/venv.py and dev/demo have theirs there too)."""


class Progress:
    """Lines with the seconds since the start."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    def __call__(self, message: str) -> None:
        """Print a line now."""
        print(f"{time.monotonic() - self.started:6.1f} s  {message}", flush=True)


class Cluster:
    """The one cluster of this machine (per cache folder)."""

    def __init__(self) -> None:
        self.state = paths.state_root()
        self.record = self.state / "cluster.json"
        self.host = Host(self.state)
        etcd, etcd_peer = free_ports(2)
        self.control_plane = ControlPlane(
            self.state,
            address=HOST_ADDRESS,
            ports=Ports(etcd, etcd_peer, API_PORT),
            service_cidr=SERVICE_CIDR,
            find=tools.built,
            # The cluster outlives the command that starts it.
            die_with_parent=False,
        )
        self.processes = self.control_plane.processes

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.control_plane.kubeconfig

    def nodes(self) -> list[Node]:
        """The nodes that `up` made, running or not."""
        if not self.record.exists():
            return []
        return first_nodes(json.loads(self.record.read_text())["nodes"])

    def node(self, index: int) -> Node:
        """One of the cluster's nodes by number."""
        self.require_running()
        for node in self.nodes():
            if node.index == index:
                return node
        raise ClusterError(f"there is no node {index}")

    def is_running(self) -> bool:
        """Whether any process of the cluster runs."""
        return any(self.processes.pid(name) is not None for name in self.processes.names())

    def require_running(self) -> None:
        """An error unless the cluster runs."""
        if not self.is_running():
            raise ClusterError("the cluster is not running: python3 -m dev.cluster up")

    def build(self, report: tools.Report) -> list[images.NamedArchive]:
        """Build every binary and the images that nodes begin with; quick when they are there."""
        preflight.check_root()
        if preflight.check_build(report):
            report("building Kubernetes from its Go modules: about 15 minutes, once")
        for name in tools.CLUSTER:
            tools.built(name, report)
        return images.cluster_images(report)

    def up(self, node_count: int, binds: Mapping[str, Path], report: tools.Report) -> None:
        """Start the cluster and return when nodes, DNS and volumes work."""
        self._check_up(node_count, binds)
        node_images = self.build(report)
        if self.record.exists() or self.host.record.exists():
            report("cleaning up after a cluster that was not taken down")
            self._clean()
        preflight.check_network()
        try:
            self._start(first_nodes(node_count), node_images, binds, report)
        except BaseException as error:
            report(f"failed ({type(error).__name__}); taking down what was started")
            self._clean()
            raise

    def _check_up(self, node_count: int, binds: Mapping[str, Path]) -> None:
        preflight.check_root()
        if self.is_running():
            raise ClusterError("the cluster is running already: python3 -m dev.cluster down")
        if not 1 <= node_count <= MAX_NODES:
            raise ClusterError(f"--nodes must be from 1 to {MAX_NODES}")
        for name, folder in binds.items():
            if not folder.is_dir():
                raise ClusterError(f"--bind {name}: there is no folder {folder}")

    def _start(
        self,
        all_nodes: Sequence[Node],
        node_images: Sequence[images.NamedArchive],
        binds: Mapping[str, Path],
        report: tools.Report,
    ) -> None:
        for name in KEPT_BY_DOWN:  # the last cluster's, kept until now for a look at them
            _remove(self.state / name)
        self.host.prepare()
        self.record.write_text(json.dumps({"nodes": len(all_nodes)}))
        (self.state / "volumes").mkdir(exist_ok=True)
        plane = self.control_plane
        plane.prepare()
        plane.start_process("etcd")
        plane.start_process("kube-apiserver")
        # Nodes import their images while the API server starts; kubelet waits for it.
        binaries = {name: tools.built(name) for name in NODE_BINARIES}
        for node in all_nodes:
            server = plane.server
            nodes.write_files(node, all_nodes, self.state, server, binaries, node_images, binds)
            nodes.start(self.processes, node)
        nodes.route_services(self.processes, all_nodes)
        report("started etcd, kube-apiserver and the nodes' processes")
        plane.wait_ready()
        report("API server ready")
        plane.start_process("kube-controller-manager")
        plane.start_process("kube-scheduler")
        self._apply(addons.manifests(self.state / "volumes", len(all_nodes)))
        self._wait(all_nodes, report)

    def _apply(self, manifests: str) -> None:
        command = [*self.kubectl_command(), "apply", "--filename=-"]
        result = subprocess.run(command, input=manifests, capture_output=True, text=True)
        if result.returncode:
            raise ClusterError(f"applying the add-ons failed: {result.stderr.strip()}")

    def _wait(self, all_nodes: Sequence[Node], report: tools.Report) -> None:
        for node in all_nodes:
            self.wait_node(node)
            report(f"node {node.name} Ready")
        self.control_plane.wait_controllers()
        for namespace, name in addons.DEPLOYMENTS:
            self._wait_for(f"--namespace={namespace}", f"deployment/{name}", "condition=Available")
            report(f"{name} available")
        for node in all_nodes:
            gpus = r"jsonpath={.status.allocatable.nvidia\.com/gpu}"
            self._wait_for("", f"node/{node.name}", gpus)
        report("GPUs allocatable")

    def wait_node(self, node: Node, timeout: int = 120) -> None:
        """Wait until a node has joined and is Ready."""
        self._wait_for("", f"node/{node.name}", "create", timeout)
        self._wait_for("", f"node/{node.name}", "condition=Ready", timeout)

    def _wait_for(self, scope: str, what: str, condition: str, timeout: int = 120) -> None:
        options = [scope] if scope else []
        options += [f"--for={condition}", f"--timeout={timeout}s"]
        command = [*self.kubectl_command(), "wait", what, *options]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            logs = self.processes.logs
            raise ClusterError(f"{what} never was {condition} (logs: {logs}): {result.stderr}")

    def kubectl_command(self) -> list[str]:
        """How a kubectl call for this cluster begins."""
        return [str(tools.built("kubectl")), f"--kubeconfig={self.kubeconfig}"]

    def down(self, purge: bool, report: tools.Report) -> None:
        """Stop everything, put the host back, delete the cluster's data, say what is kept."""
        preflight.check_root()
        self._clean()
        if purge:
            _remove(self.state)
        elif (self.state / "logs").exists():
            report(f"kept the logs: {self.state / 'logs'} and audit.log beside them (--purge)")
        for folder, what in KEPT_AS_CACHE.items():
            if (paths.cache_root() / folder).exists():
                report(f"kept as cache: {what} in {paths.cache_root() / folder}")
        report("kept as well: what Go and uv cache for themselves (go clean -cache -modcache, uv cache clean)")

    def _clean(self) -> None:
        for node in self.nodes():
            nodes.stop(self.processes, node)
        for name in self.processes.names():
            self.processes.stop(name)
        self.host.restore()
        _refuse_mounts_below(self.state)
        if self.state.exists():
            for path in self.state.iterdir():
                if path.name not in KEPT_BY_DOWN:
                    _remove(path)

    def stop_node(self, index: int, report: tools.Report) -> None:
        """Kill a node at once, as a power failure would."""
        node = self.node(index)
        nodes.stop(self.processes, node)
        nodes.route_services(self.processes, self.nodes())
        report(f"stopped {node.name}; Kubernetes notices after about 50 s")

    def start_node(self, index: int, report: tools.Report) -> None:
        """Bring a stopped node back, with its images and volumes, and wait until it is Ready."""
        node = self.node(index)
        if nodes.init_pid(self.processes, node) is not None:
            raise ClusterError(f"node {node.name} is running already")
        before = self._heartbeat(node)
        nodes.start(self.processes, node)
        nodes.route_services(self.processes, self.nodes())
        # Soon after a stop the API server still believes that the node is Ready.
        wait_until(lambda: self._heartbeat(node) != before, f"a heartbeat of {node.name}", 120, 0.2)
        self.wait_node(node)
        report(f"node {node.name} Ready")

    def disconnect_node(self, index: int, report: tools.Report) -> None:
        """Pull a node's cable: it and its pods go on, and nobody hears of them."""
        node = self.node(index)
        run("ip", "link", "set", node.link, "down")
        nodes.route_services(self.processes, [other for other in self.nodes() if other != node])
        report(f"disconnected {node.name}; Kubernetes notices after about 50 s")

    def connect_node(self, index: int, report: tools.Report) -> None:
        """Plug a disconnected node's cable in again, and wait until it is Ready."""
        node = self.node(index)
        before = self._renewal(node)
        run("ip", "link", "set", node.link, "up")
        nodes.route_services(self.processes, self.nodes())
        # Not its heartbeat: that of a node which Kubernetes has not missed yet comes every five minutes.
        wait_until(lambda: self._renewal(node) != before, f"{node.name} to renew its Lease", 120, 0.2)
        self.wait_node(node)
        report(f"node {node.name} Ready")

    def _heartbeat(self, node: Node) -> str:
        return self._read("{.status.conditions[?(@.type=='Ready')].lastHeartbeatTime}", "node", node.name)

    def _renewal(self, node: Node) -> str:
        return self._read("{.spec.renewTime}", "lease", node.name, "--namespace=kube-node-lease")

    def _read(self, template: str, *what: str) -> str:
        command = ["get", *what, "--ignore-not-found", f"--output=jsonpath={template}"]
        result = subprocess.run([*self.kubectl_command(), *command], capture_output=True, text=True)
        return result.stdout

    def load(self, archives: Sequence[Path], report: tools.Report) -> None:
        """Import OCI archives into every running node."""
        self.require_running()
        for archive in archives:
            if not archive.is_file():
                raise ClusterError(f"there is no image archive {archive}")
        running = [node for node in self.nodes() if nodes.init_pid(self.processes, node)]

        def load_all(node: Node) -> None:
            for archive in archives:
                nodes.load_image(self.processes, node, archive)

        with ThreadPoolExecutor() as pool:
            list(pool.map(load_all, running))
        names = ", ".join(node.name for node in running)
        report(f"loaded {len(archives)} archive(s) into {names}")

    def status(self) -> list[str]:
        """A line per process and where to look."""
        names = self.processes.names()
        lines = [f"{name}: {_state(self.processes.pid(name))}" for name in names]
        if not self.is_running():
            return [*lines, "the cluster is not running"]
        api = "ready" if self.control_plane.is_ready() else "not ready"
        where = [f"kubeconfig: {self.kubeconfig}", f"logs: {self.processes.logs}"]
        return [*lines, f"API server {self.control_plane.server}: {api}", *where]


def _state(pid: int | None) -> str:
    return "not running" if pid is None else f"running (process {pid})"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _refuse_mounts_below(folder: Path) -> None:
    """Deleting through a mount would delete what is mounted."""
    for line in Path("/proc/mounts").read_text().splitlines():
        target = line.split()[1]
        if target.startswith(f"{folder}/"):
            raise ClusterError(f"{target} is still mounted: unmount it before the next `down`")
