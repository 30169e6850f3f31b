"""An operator that sees the API server through a proxy, and what the proxy does to what it sees."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from dev.bench.proxy import Exchange, Proxy, pass_on
from dev.cluster.controlplane import ControlPlane
from tests.integration import rights
from tests.integration.operators import PATIENT_LEASE, RESULTS, Namespace, OperatorProcess
from tunesmith.api.conditions import is_true
from tunesmith.core.objects import Object
from tunesmith.runtime.resources import RESOURCES

ENDS = [("Prepare", 1, "Succeeded"), ("Train", 1, "Succeeded"), ("Finalize", 1, "Succeeded")]
RECOVERY = 10.0
"""Within so many seconds of the end of a fault the operator is at work again, or has ended."""
Events = Callable[[Object], Awaitable[list[Object]]]
Requests = Callable[[Exchange], Awaitable[web.StreamResponse | None]]


async def unchanged(event: Object) -> list[Object]:
    """Each event as it comes."""
    return [event]


async def untouched(exchange: Exchange) -> None:
    """The server answers."""
    return


async def nothing(event: Object) -> list[Object]:
    """A watch that has fallen silent."""
    return []


async def hang(exchange: Exchange) -> None:
    """No answer ever."""
    await asyncio.Event().wait()


async def cut(exchange: Exchange) -> web.StreamResponse:
    """The server is away."""
    return exchange.cut()


async def no_lists(exchange: Exchange) -> None:
    """No list is ever answered."""
    if is_list(exchange):
        await hang(exchange)


def ends(space: Namespace) -> list[tuple[str, int, str]]:
    """The attempts that ended."""
    return [(entry["stage"], entry["attempt"], entry["outcome"]) for entry in space.status("FineTuneJob", "tune").get("attempts", ())]


def refusal(code: int, message: str = "as the test wants it") -> web.Response:
    """A `Status` that says no."""
    reasons = {401: "Unauthorized", 403: "Forbidden", 409: "Conflict", 410: "Expired", 422: "Invalid", 429: "TooManyRequests", 500: "InternalError"}
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reasons.get(code, "Unavailable"), "message": message}
    return web.json_response(status, status=code)


def is_watch(exchange: Exchange) -> bool:
    """Whether a watch is asked for."""
    return exchange.request.query.get("watch") == "true"


def is_list(exchange: Exchange) -> bool:
    """Whether a list is asked for: paths of ours end in a plural, those of single objects do not."""
    return exchange.request.method == "GET" and not is_watch(exchange) and "limit" in exchange.request.query


def is_lease(exchange: Exchange) -> bool:
    """Whether it is about the Lease."""
    return "/leases" in exchange.request.path


class Meddler:
    """A proxy in a thread of its own. `events` and `requests` may be changed at any time, and hold for watches that run already."""

    def __init__(self, control_plane: ControlPlane) -> None:
        # The proxy is the operator to the server, with the chart's rights.
        rights.kubeconfig(control_plane)
        self.events: Events = unchanged
        self.requests: Requests = untouched
        self._proxy = Proxy(control_plane.server, control_plane.pki.context("operator"), self._meddle)
        self._streams: dict[web.StreamResponse, Exchange] = {}
        self._silent: set[web.StreamResponse] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Meddler:
        self._thread.start()
        self._call(self._proxy.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self.requests = untouched
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def write_kubeconfig(self, path: Path) -> Path:
        """A kubeconfig that leads through here."""
        return self._proxy.write_kubeconfig(path)

    def watched(self) -> set[str]:
        """The resources that are being watched."""
        return {exchange.request.path.rpartition("/")[2] for exchange in list(self._streams.values())}

    def tell(self, event: Object) -> None:
        """Put an event into every watch that runs."""
        self._call(self._tell(event))

    def cut_watches(self) -> None:
        """Cut every watch that runs."""

        async def cut_all() -> None:
            for exchange in self._streams.values():
                exchange.cut()

        self._call(cut_all())

    def silence_watches(self) -> None:
        """Let nothing more come from any watch that runs, not even its end; those that follow are as ever."""

        async def silence_all() -> None:
            self._silent.update(self._streams)

        self._call(silence_all())

    async def _tell(self, event: Object) -> None:
        for stream in list(self._streams):
            await stream.write(json.dumps(event).encode() + b"\n")

    async def _end(self) -> None:
        await self._proxy.__aexit__(None, None, None)
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _meddle(self, exchange: Exchange) -> web.StreamResponse:
        answer = await self.requests(exchange)
        if answer is not None:
            return answer
        return await self._watch(exchange) if is_watch(exchange) else await pass_on(exchange)

    async def _watch(self, exchange: Exchange) -> web.StreamResponse:
        """Hand each event on as `events` has it."""
        async with await exchange.forward() as answer:
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": "application/json"})
            await response.prepare(exchange.request)
            self._streams[response] = exchange
            try:
                rest = b""
                async for chunk in answer.content.iter_any():
                    if response in self._silent:
                        break
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        for event in await self.events(json.loads(line)):
                            await response.write(json.dumps(event).encode() + b"\n")
                if response in self._silent:
                    await hang(exchange)
                await response.write_eof()
            finally:
                del self._streams[response]
            return response


class Meddled:
    """An operator of one namespace behind a proxy of its own, started again whenever it has ended, as its kubelet would."""

    def __init__(self, control_plane: ControlPlane, meddler: Meddler, space: Namespace, folder: Path, identity: str = "meddled") -> None:
        self.meddler = meddler
        self.space = space
        self.process = OperatorProcess(control_plane, folder, identity)
        self.process.environment |= {
            "KUBECONFIG": str(meddler.write_kubeconfig(folder / f"{identity}.kubeconfig")),
            "TUNESMITH_NAMESPACES": space.name,
        }
        # What the Lease does when it is meddled with is what is looked at.
        for name in PATIENT_LEASE:
            del self.process.environment[name]
        self.exits = 0

    def revive(self) -> bool:
        """Start the process again if it has ended; True, for use in conditions."""
        if not self.process.running:
            self.process.stop()
            self.exits += 1
            self.process.start(ready=False)
        return True

    def wait_watches(self) -> None:
        """Wait until kopf watches everything: before, a list that it asks for may be what is meddled with."""
        wanted = {resource.plural for resource in RESOURCES.values() if resource.watch == "Always"}
        self.space.wait(lambda: self.meddler.watched() >= wanted, "all to be watched", lambda: sorted(self.meddler.watched()))

    def wait(self, condition: Callable[[], Any], what: str) -> float:
        """Wait until the condition holds, with the process kept up; return the seconds that took."""
        start = time.monotonic()
        self.space.wait(lambda: self.revive() and condition(), what, lambda: {"exits": self.exits, "log": self.process.log.read_text()[-3000:]})
        return time.monotonic() - start

    def play_all(self, tune: Object, stages: Iterable[str] = RESULTS) -> None:
        """Let each stage of a FineTuneJob succeed in its turn, and wait for the end."""
        for stage in stages:
            self.wait(partial(self.space.stage_pods, tune, stage, 1), f"the pod of {stage}")
            self.space.play(tune, stage, RESULTS[stage])
        name = tune["metadata"]["name"]
        self.wait(lambda: is_true(self.space.status("FineTuneJob", name), "Finished"), "the end")
