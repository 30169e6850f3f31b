"""Nodes without a kubelet: the real scheduler places pods on them, the real node controller calls them lost when their lease ends."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tests.integration.schema_server import MERGE, Object, Server

TAINT = "tests.tunesmith.dev/no-kubelet"
TOLERATIONS = [{"key": TAINT, "operator": "Exists"}]
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


@dataclass(frozen=True)
class Node:
    """A node that only pods of the test tolerate."""

    api: Server
    name: str

    def add(self) -> None:
        """Register it, ready, as its kubelet would."""
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name, "labels": {"kubernetes.io/hostname": self.name}}}
        taints = [{"key": TAINT, "effect": "NoSchedule"}]
        self._send("POST", "/api/v1/nodes", node | {"spec": {"taints": taints}})
        room = {"cpu": "8", "memory": "64Gi", "pods": "20"}
        ready = {"type": "Ready", "status": "True", "reason": "Test", "lastHeartbeatTime": _now(), "lastTransitionTime": _now()}
        self._send("PATCH", f"/api/v1/nodes/{self.name}/status", {"status": {"capacity": room, "allocatable": room, "conditions": [ready]}})
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self.name}}
        self._send("POST", _LEASES, lease | {"spec": {"holderIdentity": self.name, "leaseDurationSeconds": 40, "renewTime": _now()}})

    def keep_image(self, name: str, size: int) -> None:
        """Say that it has that image."""
        self._send("PATCH", f"/api/v1/nodes/{self.name}/status", {"status": {"images": [{"names": [name], "sizeBytes": size}]}})

    def cordon(self) -> None:
        """Let nothing new come."""
        self._send("PATCH", f"/api/v1/nodes/{self.name}", {"spec": {"unschedulable": True}})

    def is_open(self) -> bool:
        """Whether the node controller has taken away the taint that a new node begins with."""
        return [taint["key"] for taint in self._send("GET", f"/api/v1/nodes/{self.name}")["spec"].get("taints", ())] == [TAINT]

    def renew(self) -> None:
        """Say that it lives."""
        self._send("PATCH", f"{_LEASES}/{self.name}", {"spec": {"renewTime": _now()}})

    def remove(self) -> None:
        """Take it out of the cluster."""
        for path in (f"{_LEASES}/{self.name}", f"/api/v1/nodes/{self.name}"):
            self._send("DELETE", path)

    def _send(self, method: str, path: str, body: Object | None = None) -> Any:
        answer = self.api.send(method, path, body, MERGE if method == "PATCH" else "application/json")
        assert answer.code in (200, 201), answer.body
        return answer.body


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
