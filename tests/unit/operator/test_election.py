"""The Lease on a double of the API server that can hang: who may act, and until when."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes.aio.client.configuration import Configuration

from tunesmith.core.objects import Object
from tunesmith.runtime import election
from tunesmith.runtime.client import ApiError, Cluster, Conflict, NotFound
from tunesmith.runtime.election import Lease, first_to_end, lead
from tunesmith.settings import LeaseSettings

SETTINGS = LeaseSettings(name="lease", namespace="system", identity="first", duration_seconds=10, deadline_seconds=6, retry_seconds=2)


class Double:
    """Keeps one Lease as the API server would; hangs, or takes its time, when told to."""

    def __init__(self) -> None:
        self.lease: Object | None = None
        self.requests: list[str] = []
        self.hang = False

    async def request(self, method: str, path: str, body: Object | None = None) -> Object:
        self.requests.append(method)
        if self.hang:
            await asyncio.Event().wait()
        if method == "GET":
            if self.lease is None:
                raise NotFound(404, "NotFound", path)
            return self.lease
        assert body is not None
        version = self.lease["metadata"]["resourceVersion"] if self.lease else None
        if body["metadata"].get("resourceVersion") != version:
            raise Conflict(409, "Conflict", path)
        self.lease = {**body, "metadata": {**body["metadata"], "resourceVersion": str(int(version or 0) + 1)}}
        return self.lease

    def holder(self) -> str:
        return str(self.lease["spec"]["holderIdentity"]) if self.lease else ""


class Clock:
    """Time that passes when somebody sleeps, or waits for what hangs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self._yield = asyncio.sleep
        monkeypatch.setattr("tunesmith.runtime.election.asyncio.sleep", self.sleep)
        monkeypatch.setattr("tunesmith.runtime.election.asyncio.timeout", self.timeout)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await self._yield(0)

    def timeout(self, seconds: float) -> Any:
        clock = self

        class Timeout:
            async def __aenter__(self) -> None:
                asyncio.get_running_loop().call_later(0.02, self.expire, asyncio.current_task())
                self.expired = self.left = False

            def expire(self, task: asyncio.Task[None]) -> None:
                if not self.left:
                    clock.now += seconds
                    self.expired = bool(task.cancel())

            async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
                self.left = True
                if self.expired and kind is asyncio.CancelledError:
                    raise TimeoutError

        return Timeout()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def lease(cluster: Any, clock: Clock, identity: str) -> Lease:
    return Lease(replace(SETTINGS, identity=identity), cluster, lambda: clock.now)


async def test_a_renewal_is_one_write_and_no_read(clock: Clock) -> None:
    cluster = Double()
    first = lease(cluster, clock, "first")
    await first.acquire()
    keeping = asyncio.create_task(first.keep())
    while cluster.requests.count("PUT") < 5:
        await clock._yield(0)
    keeping.cancel()
    assert cluster.requests[:7] == ["GET", "POST", *["PUT"] * 5]


async def test_a_leader_whose_requests_hang_stops_at_its_deadline_before_another_may_act(clock: Clock) -> None:
    cluster = Double()
    first = lease(cluster, clock, "first")
    await first.acquire()
    renewed = clock.now
    cluster.hang = True
    await first.keep()
    assert clock.now - renewed == SETTINGS.deadline_seconds
    cluster.hang = False
    second = lease(cluster, clock, "second")
    await second.acquire()
    assert cluster.holder() == "second"
    assert SETTINGS.duration_seconds <= clock.now - renewed - SETTINGS.deadline_seconds <= SETTINGS.duration_seconds + SETTINGS.retry_seconds


async def test_a_lease_that_was_let_go_is_taken_at_once(clock: Clock) -> None:
    cluster = Double()
    first, second = lease(cluster, clock, "first"), lease(cluster, clock, "second")
    await first.acquire()
    await first.release()
    before = clock.now
    await second.acquire()
    assert (cluster.holder(), clock.now) == ("second", before)


async def test_a_lease_that_another_has_taken_is_not_let_go(clock: Clock) -> None:
    cluster = Double()
    first, second = lease(cluster, clock, "first"), lease(cluster, clock, "second")
    await first.acquire()
    clock.now += SETTINGS.deadline_seconds
    await second.acquire()
    await first.release()
    assert cluster.holder() == "second"


class Client:
    """A connection to the double: what `Cluster` asks of the library."""

    def __init__(self, server: Double) -> None:
        self.configuration = Configuration(host="")
        self.default_headers: dict[str, str] = {}
        self.sent: list[str] = []
        self._server = server

    async def call_api(self, method: str, url: str, headers: object, body: Object | None, **_: object) -> Any:
        self.sent.append(f"{method} {url}")
        answer = await self._server.request(method, url, body) if "/leases" in url else {}

        async def read() -> bytes:
            return json.dumps(answer).encode()

        return SimpleNamespace(status=200, read=read)


async def test_a_leader_that_was_stopped_past_its_deadline_sends_no_write_when_it_goes_on(clock: Clock) -> None:
    first, client = lease(Double(), clock, "first"), Client(Double())
    connected: Any = client
    cluster = Cluster(connected, first.holds)
    with pytest.raises(ApiError):
        await cluster.request("POST", "/early")
    await first.acquire()
    await cluster.request("POST", "/leading")
    clock.now += SETTINGS.deadline_seconds
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        with pytest.raises(ApiError, match="NotLeading"):
            await cluster.request(method, "/late")
    await cluster.request("GET", "/read")
    assert client.sent == ["POST /leading", "GET /read"]


@pytest.mark.parametrize(("deadline", "code"), [(6, 0), (0, 503)])
async def test_the_work_of_a_leader_is_bound_to_its_deadline(deadline: int, code: int) -> None:
    client: Any = Client(Double())
    outcomes: list[int] = []

    async def operate(cluster: Cluster) -> None:
        try:
            await cluster.request("POST", "/work")
            outcomes.append(0)
        except ApiError as error:
            outcomes.append(error.status)

    await lead(replace(SETTINGS, deadline_seconds=deadline), Cluster(client), operate)
    assert outcomes == [code]
    assert ("POST /work" in client.sent) is (code == 0)


async def test_when_one_part_ends_the_others_end_and_its_error_is_told() -> None:
    ended = []

    async def fail() -> None:
        raise ValueError("broken")

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("other")

    with pytest.raises(ExceptionGroup, match="the operator ends"):
        await first_to_end(fail(), wait())
    assert ended == ["other"]


async def test_a_part_that_does_not_end_when_told_to_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    exits: list[int] = []
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await release.wait()

    monkeypatch.setattr(election, "END_SECONDS", 0.05)
    monkeypatch.setattr(election.os, "_exit", lambda code: (exits.append(code), release.set()))
    stubborn_task = asyncio.ensure_future(stubborn())
    with suppress(asyncio.InvalidStateError):
        await first_to_end(asyncio.sleep(0), stubborn_task)
    await stubborn_task
    assert exits == [1]
