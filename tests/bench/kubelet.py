"""The part of the kubelets: fake nodes, and pods that start and end because this says so."""

from __future__ import annotations

import asyncio

from dev.bench.life import RESULTS, answer, ended
from dev.bench.view import MERGE, Client, Object
from tunesmith.core.objects import LABEL_ATTEMPT, LABEL_STAGE
from tunesmith.runtime.resources import RESOURCES


async def make_nodes(api: Client, count: int = 10) -> None:
    """Nodes that take every pod. Nobody renews their leases: the control plane must have a long `--node-monitor-grace-period`."""
    for number in range(count):
        name = f"fake-{number}"
        await api.write("POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
        amounts = {"cpu": "100000", "memory": "1000Ti", "pods": "100000"}
        status = {"capacity": amounts, "allocatable": amounts, "conditions": [{"type": "Ready", "status": "True", "reason": "Fake"}]}
        await api.write("PATCH", f"/api/v1/nodes/{name}/status", {"status": status}, MERGE)
        # The controller-manager taints nodes that were not ready when they were made.
        await api.write("PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": None}}, MERGE)


class Kubelet:
    """Starts every pod that is bound and, if `seconds` is given, lets it succeed after so long."""

    def __init__(self, api: Client, seconds: float | None) -> None:
        self._api = api
        self._seconds = seconds
        self._known: set[str] = set()
        self._ending: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled."""
        async for event in self._api.watch("/api/v1/pods", labelSelector=RESOURCES["Pod"].selector):
            pod = event["object"]
            uid = pod["metadata"]["uid"]
            if uid not in self._known and pod["spec"].get("nodeName"):
                self._known.add(uid)
                task = asyncio.create_task(self._live(pod))
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)

    async def _live(self, pod: Object) -> None:
        metadata = pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/status"
        await self._api.write("PATCH", path, {"status": {"phase": "Running"}}, MERGE)
        if self._seconds is None:
            return
        await asyncio.sleep(self._seconds)
        stage, attempt = metadata["labels"][LABEL_STAGE], int(metadata["labels"][LABEL_ATTEMPT])
        await self._api.write("PATCH", path, {"status": ended(answer(stage, attempt, RESULTS[stage]))}, MERGE)
