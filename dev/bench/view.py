"""What a campaign sees of the cluster and does in it: a client, and a copy of all that is there kept up to date by watches."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp

from dev.cluster.controlplane import ControlPlane
from tunesmith import crd, kinds
from tunesmith.runtime.resources import RESOURCES

Object = dict[str, Any]
T = TypeVar("T")

JSON, MERGE, APPLY = "application/json", "application/merge-patch+json", "application/apply-patch+yaml"
KINDS = tuple(resource.kind for resource in RESOURCES.values() if resource.watch == "Always")
PATIENCE = 60.0
"""Seconds that anything may take."""


class GaveUp(Exception):
    """Something that should have come did not."""


async def wait_until(condition: Callable[[], Awaitable[T]], what: str, patience: float, interval: float) -> T:
    """Ask until the condition holds (is true), and return what it gave: for what no watch tells."""
    try:
        async with asyncio.timeout(patience):
            while not (found := await condition()):  # noqa: ASYNC110
                await asyncio.sleep(interval)
            return found
    except TimeoutError:
        raise GaveUp(f"waited {patience:.0f} s for {what}") from None


class Client:
    """The API server as its administrator, asked many things at a time."""

    def __init__(self, control_plane: ControlPlane, connections: int = 0) -> None:
        """`connections`: at most so many at a time; 0: as many as are wanted."""
        self._server = control_plane.server
        self._tls = control_plane.pki.context("admin")
        self._connections = connections

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=self._connections)
        self._session = aiohttp.ClientSession(self._server, connector=connector, trust_env=False)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._session.close()

    async def send(self, method: str, path: str, body: Object | None = None, content_type: str = JSON) -> tuple[int, Object]:
        """One request: the status and the answer."""
        try:
            return await self._send(method, path, body, content_type)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            # The server closed a connection that it had kept open, at the moment of its next use. What was sent may have been done.
            if method in ("POST", "DELETE") and not isinstance(error, aiohttp.ServerDisconnectedError):
                raise
            return await self._send(method, path, body, content_type)

    async def _send(self, method: str, path: str, body: Object | None, content_type: str) -> tuple[int, Object]:
        data = None if body is None else json.dumps(body)
        async with self._session.request(method, path, data=data, headers={"Content-Type": content_type}) as answer:
            # A path that is not served yet is refused in plain text.
            told = await answer.json() if answer.content_type == JSON else {"message": await answer.text()}
            return answer.status, told

    async def write(self, method: str, path: str, body: Object, content_type: str = JSON) -> Object:
        """A request that must succeed."""
        code, answer = await self.send(method, path, body, content_type)
        if code >= 300:
            raise GaveUp(f"{method} {path}: {code} {answer.get('message')}")
        return answer

    async def watch(self, path: str, **query: str) -> AsyncGenerator[Object]:
        """The events of a watch, until the server ends it."""
        async with self._session.get(path, params={"watch": "1", **query}, timeout=aiohttp.ClientTimeout(total=None)) as stream:
            # Lines may be longer than what aiohttp reads at once, so they are put together here.
            rest = b""
            async for chunk in stream.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield json.loads(line)


class View(Client):
    """The API server, and what is there of the kinds that Tunesmith watches, in all namespaces."""

    def __init__(self, control_plane: ControlPlane) -> None:
        super().__init__(control_plane)
        self._objects: dict[str, dict[tuple[str, str], Object]] = {kind: {} for kind in KINDS}
        self._changed: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._watches: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        await self._install()
        self._watches = [asyncio.create_task(self._follow(kind)) for kind in KINDS]
        for watch in self._watches:
            watch.add_done_callback(self._wake)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await super().__aexit__(kind, error, trace)

    def all(self, namespace: str, *kinds: str) -> list[Object]:
        """The objects of these kinds in a namespace, by name; the root certificates that every namespace has are left out."""
        found = [(kind, key[1], obj) for kind in kinds for key, obj in self._objects[kind].items() if key[0] == namespace]
        return [obj for _, name, obj in sorted(found, key=lambda item: item[:2]) if name != "kube-root-ca.crt"]

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """The object, if it is there."""
        return self._objects[kind].get((namespace, name))

    def has_seen(self, obj: Object) -> bool:
        """Whether what is known of an object that was known before is at least as new as `obj`, or it is gone."""
        metadata: Mapping[str, Any] = obj["metadata"]
        known = self.get(obj["kind"], metadata["namespace"], metadata["name"])
        return known is None or int(known["metadata"]["resourceVersion"]) >= int(metadata["resourceVersion"])

    async def until(self, namespace: str, look: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
        """Wait until `look` finds something (is true) in the namespace; return it."""
        try:
            async with asyncio.timeout(patience):
                while not (found := look()):
                    self._check()
                    self._changed[namespace].clear()
                    await self._changed[namespace].wait()
                return found
        except TimeoutError:
            raise GaveUp(f"waited {patience:.0f} s for {what}") from None

    async def _install(self) -> None:
        """Apply the CRDs and wait until they are served."""
        for kind in kinds.KINDS.values():
            body = crd.manifest(kind)
            path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{body['metadata']['name']}"
            await self.write("PATCH", f"{path}?fieldManager=bench&force=true", body, APPLY)
            await wait_until(partial(self._serves, RESOURCES[kind.name].path()), f"{kind.name} to be served", PATIENCE, 0.1)

    async def _serves(self, path: str) -> bool:
        return (await self.send("GET", path))[0] == 200

    async def _follow(self, kind: str) -> None:
        """List and watch, again and again: the server ends a watch after a while."""
        path = RESOURCES[kind].path()
        while True:
            code, listed = await self.send("GET", path)
            if code != 200:
                raise GaveUp(f"GET {path}: {code} {listed.get('message')}")
            gone = list(self._objects[kind].values())
            for item in listed["items"]:
                self._take(kind, "MODIFIED", item)
            present = {item["metadata"]["uid"] for item in listed["items"]}
            for item in gone:
                if item["metadata"]["uid"] not in present:
                    self._take(kind, "DELETED", item)
            # A stream that breaks off is one that has ended.
            with suppress(aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                async with aclosing(self.watch(path, resourceVersion=listed["metadata"]["resourceVersion"])) as events:
                    async for event in events:
                        if event["type"] == "ERROR":
                            break
                        self._take(kind, event["type"], event["object"])

    def _wake(self, _: asyncio.Task[None]) -> None:
        """Let all who wait see that a watch is no more."""
        for changed in self._changed.values():
            changed.set()

    def _check(self) -> None:
        """What is known must be kept up to date, or nothing that is waited for would come."""
        for watch in self._watches:
            if watch.done():
                raise RuntimeError("a watch of the view has ended") from (None if watch.cancelled() else watch.exception())

    def _take(self, kind: str, event: str, obj: Object) -> None:
        metadata: Mapping[str, Any] = obj["metadata"]
        key = metadata.get("namespace", ""), metadata["name"]
        if event == "DELETED":
            self._objects[kind].pop(key, None)
        else:
            self._objects[kind][key] = {**obj, "kind": kind}
        self._changed[key[0]].set()
