"""The part of the kubelets: fake nodes, and pods that start and end because this says so."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from dev.cluster.controlplane import ControlPlane
from tests.integration.operators import RESULTS, answer
from tunesmith.values import LABEL_ATTEMPT, LABEL_STAGE, MANAGED_BY

Object = dict[str, Any]
MERGE = "application/merge-patch+json"
OURS = ",".join(f"{key}={value}" for key, value in MANAGED_BY.items())


class Api:
    """The API server as its administrator, asked many things at a time."""

    def __init__(self, control_plane: ControlPlane) -> None:
        secrets = control_plane.pki
        context = ssl.create_default_context(cafile=str(secrets.path("ca.crt")))
        context.load_cert_chain(secrets.path("admin.crt"), secrets.path("admin.key"))
        self._session = aiohttp.ClientSession(control_plane.server, connector=aiohttp.TCPConnector(ssl=context, limit=50))

    async def __aenter__(self) -> Api:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def send(self, method: str, path: str, body: Object | None = None, content_type: str = "application/json") -> Object:
        """One request; an error if it is refused."""
        try:
            return await self._send(method, path, body, content_type)
        except aiohttp.ServerDisconnectedError:
            # The server closed a connection that it had kept open, at the moment of its next use. What is asked here may be asked twice.
            return await self._send(method, path, body, content_type)

    async def _send(self, method: str, path: str, body: Object | None, content_type: str) -> Object:
        async with self._session.request(method, path, data=json.dumps(body), headers={"Content-Type": content_type}) as response:
            told: Object = await response.json()
            if response.status >= 300:
                raise RuntimeError(f"{method} {path}: {told}")
            return told

    async def pods(self) -> AsyncIterator[Object]:
        """Every state of every pod of the operator's, from now on."""
        # Lines may be longer than what aiohttp reads at once, so they are put together here.
        query = {"watch": "true", "labelSelector": OURS}
        async with self._session.get("/api/v1/pods", params=query, timeout=aiohttp.ClientTimeout(total=None)) as response:
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield json.loads(line)["object"]


async def make_nodes(api: Api, count: int = 10) -> None:
    """Nodes that take every pod. Nobody renews their leases: the control plane must have a long `--node-monitor-grace-period`."""
    for number in range(count):
        name = f"fake-{number}"
        await api.send("POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
        amounts = {"cpu": "100000", "memory": "1000Ti", "pods": "100000"}
        status = {"capacity": amounts, "allocatable": amounts, "conditions": [{"type": "Ready", "status": "True", "reason": "Fake"}]}
        await api.send("PATCH", f"/api/v1/nodes/{name}/status", {"status": status}, MERGE)
        # The controller-manager taints nodes that were not ready when they were made.
        await api.send("PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": None}}, MERGE)


class Kubelet:
    """Starts every pod that is bound and, if `seconds` is given, lets it succeed after so long."""

    def __init__(self, api: Api, seconds: float | None) -> None:
        self._api = api
        self._seconds = seconds
        self._known: set[str] = set()
        self._ending: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled."""
        async for pod in self._api.pods():
            uid = pod["metadata"]["uid"]
            if uid not in self._known and pod["spec"].get("nodeName"):
                self._known.add(uid)
                task = asyncio.create_task(self._live(pod))
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)

    async def _live(self, pod: Object) -> None:
        metadata = pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/status"
        await self._api.send("PATCH", path, {"status": {"phase": "Running"}}, MERGE)
        if self._seconds is None:
            return
        await asyncio.sleep(self._seconds)
        stage, attempt = metadata["labels"][LABEL_STAGE], int(metadata["labels"][LABEL_ATTEMPT])
        message = json.dumps(answer(stage, RESULTS[stage], attempt))
        ended = {"exitCode": 0, "reason": "Completed", "message": message, "startedAt": None, "finishedAt": None}
        container = {"name": "stage", "ready": False, "restartCount": 0, "image": "", "imageID": "", "state": {"terminated": ended}}
        await self._api.send("PATCH", path, {"status": {"phase": "Succeeded", "containerStatuses": [container]}}, MERGE)
