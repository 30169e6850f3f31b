"""Names and addresses of the cluster: pure facts, no effects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import paths

BRIDGE = "tunesmith0"
HOST_ADDRESS = "10.89.0.1"
BRIDGE_MAC = "02:00:0a:59:00:01"
"""A locally administered address. A bridge without one of its own takes the lowest of its ports', and another when that port goes: the
nodes that are left, which know the old one, could not reach the API server for up to 40 s after a node was stopped."""
API_PORT = 6443
SERVICE_CIDR = "10.96.0.0/16"
DNS_ADDRESS = "10.96.0.10"
POD_CIDR = "10.244.0.0/16"
CGROUP = "tunesmith"
GPU_RESOURCE = "nvidia.com/gpu"
GPUS_PER_NODE = 4
MAX_NODES = 9


@dataclass(frozen=True)
class Node:
    """A node's names, addresses and folder."""

    index: int

    @property
    def name(self) -> str:
        """The node's name in Kubernetes."""
        return f"n{self.index}"

    @property
    def address(self) -> str:
        """Its address on the bridge."""
        return f"10.89.0.{10 + self.index}"

    @property
    def pod_cidr(self) -> str:
        """The range its pods get their addresses from."""
        return f"10.244.{self.index}.0/24"

    @property
    def link(self) -> str:
        """The host's end of the cable between the node and the bridge."""
        return f"tunesmith-n{self.index}"

    @property
    def process(self) -> str:
        """The name of its namespaces' keeper in the process table."""
        return f"node-{self.name}"

    @property
    def cgroup(self) -> str:
        """The cgroup of all its pods, in every hierarchy."""
        return f"{CGROUP}/{self.name}"

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return paths.state_root() / "nodes" / self.name


def nodes(count: int) -> list[Node]:
    """The first nodes of a cluster."""
    return [Node(index) for index in range(1, count + 1)]


Command = list[str]


def bridge_up_commands() -> list[Command]:
    """Make the bridge that the nodes and the control plane share."""
    return [
        ["ip", "link", "add", BRIDGE, "address", BRIDGE_MAC, "type", "bridge"],
        ["ip", "address", "add", f"{HOST_ADDRESS}/24", "dev", BRIDGE],
        ["ip", "link", "set", BRIDGE, "up"],
    ]


def cable_commands(node: Node, pid: int) -> list[Command]:
    """Connect the network namespace of a process to the bridge, and route the node's pods."""
    return [
        [
            *("ip", "link", "add", node.link, "type", "veth"),
            *("peer", "name", "eth0", "netns", str(pid)),
        ],
        ["ip", "link", "set", node.link, "master", BRIDGE, "up"],
        ["ip", "route", "replace", node.pod_cidr, "via", node.address, "dev", BRIDGE],
    ]


def inside_commands(node: Node, all_nodes: Sequence[Node]) -> list[Command]:
    """Set up the network within a node: its address, and routes to the other nodes' pods."""
    commands = [
        ["ip", "link", "set", "lo", "up"],
        ["ip", "address", "add", f"{node.address}/24", "dev", "eth0"],
        ["ip", "link", "set", "eth0", "up"],
        ["ip", "route", "add", "default", "via", HOST_ADDRESS],
    ]
    for other in all_nodes:
        if other != node:
            commands.append(["ip", "route", "add", other.pod_cidr, "via", other.address])
    return commands


def service_route_command(gateway: Node) -> Command:
    """Let the host reach Services: kube-proxy of the given node translates for it."""
    return ["ip", "route", "replace", SERVICE_CIDR, "via", gateway.address, "dev", BRIDGE]
