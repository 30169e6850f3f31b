"""Whose reports the progress endpoint takes, and which, on a double that says of each token which pod it belongs to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import REGISTRY

from tests.unit.operator.edge import KINDS, changed, child, owner
from tunesmith.core.objects import Object
from tunesmith.runtime.cache import Store
from tunesmith.runtime.client import ApiError, Refused
from tunesmith.servers import progress
from tunesmith.servers.progress import Progress

TUNE = owner()
JOB = child("Job", "tune-train-1", TUNE)
PATH = progress.PATH.format(namespace="team", name="tune")


def training_pod(name: str = "train", version: int = 3) -> Object:
    pod = child("Pod", name, TUNE, version)
    pod["metadata"]["ownerReferences"] = [{"kind": "Job", "name": "tune-train-1", "uid": JOB["metadata"]["uid"], "controller": True}]
    return pod


class Reviewer:
    """An API server to which a token is the name of a pod of `namespace`; `fault` happens instead."""

    namespace = "team"
    fault: Exception | None = None
    hangs = False

    async def review_token(self, token: str, audience: str) -> Object:
        if self.hangs:
            await asyncio.Event().wait()
        if self.fault:
            raise self.fault
        extra = {"authentication.kubernetes.io/pod-name": [token], "authentication.kubernetes.io/pod-uid": [f"uid-Pod-{token}"]}
        user = {"username": f"system:serviceaccount:{self.namespace}:default", "extra": extra}
        return {"authenticated": True, "audiences": [audience], "user": user}


class Stand:
    """The endpoint, a pod that trains, and its client."""

    def __init__(self, client: TestClient[Any, Any], store: Store, reviewer: Reviewer) -> None:
        self.client, self.store, self.reviewer = client, store, reviewer
        self.woken = 0

    async def post(self, percentage: int = 40, time: str | None = None, pod: str = "train", **fields: Any) -> int:
        status = {"progressPercentage": percentage} | ({"lastUpdatedTime": time} if time else {}) | fields
        async with self.client.post(PATH, json={"trainerStatus": status}, headers={"Authorization": f"Bearer {pod}"}) as answer:
            return answer.status

    @property
    def percentage(self) -> int | None:
        return (self.store.progress("uid-tune") or {}).get("progressPercentage")


@pytest.fixture
async def stand() -> AsyncIterator[Stand]:
    store, reviewer = Store({name: kind.references for name, kind in KINDS.items()}), Reviewer()
    for obj in (TUNE, JOB, training_pod()):
        store.put(obj)
    stands: list[Stand] = []

    def wake(_: object) -> None:
        stands[0].woken += 1

    cluster: Any = reviewer
    async with TestClient(TestServer(Progress(cluster, store, wake).application())) as client:
        stands.append(Stand(client, store, reviewer))
        yield stands[0]


def counted(code: int) -> float:
    return REGISTRY.get_sample_value("tunesmith_progress_reports_total", {"code": str(code)}) or 0.0


@pytest.mark.parametrize(("namespace", "code"), [("team", 200), ("neighbours", 403)])
async def test_a_pod_of_another_namespace_reports_nothing_whatever_owner_and_job_it_names(stand: Stand, namespace: str, code: int) -> None:
    pod = training_pod("other")
    pod["metadata"]["namespace"] = stand.reviewer.namespace = namespace
    stand.store.put(pod)
    assert await stand.post(pod="other") == code
    assert (stand.percentage is not None) == (code == 200)


@pytest.mark.parametrize("fault", [ApiError(500, "InternalError", ""), Refused(403, "Forbidden", ""), aiohttp.ClientError(), TimeoutError()])
async def test_while_the_api_server_does_not_say_whose_a_token_is_reports_are_put_off_and_counted(stand: Stand, fault: Exception) -> None:
    stand.reviewer.fault, before = fault, counted(503)
    assert await stand.post() == 503
    assert counted(503) == before + 1
    stand.reviewer.fault = None
    assert await stand.post() == 200, "what could not be asked is asked again"


async def test_a_review_that_hangs_does_not_hold_the_client(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REVIEW_SECONDS", 0.1)
    stand.reviewer.hangs = True
    assert await stand.post() == 503


async def test_a_body_that_does_not_come_to_its_end_is_not_waited_for(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "READ_SECONDS", 0.1)
    before, ends = counted(408), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"{"
        await ends.wait()

    async with stand.client.post(PATH, data=body(), headers={"Authorization": "Bearer train"}) as answer:
        assert (answer.status, counted(408)) == (408, before + 1)
    ends.set()


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
async def test_a_pod_that_has_ended_reports_no_more(stand: Stand, phase: str) -> None:
    assert await stand.post() == 200
    stand.store.put({**changed(training_pod(), 9), "status": {"phase": phase}})
    assert await stand.post(50) == 403
    assert stand.percentage == 40


async def test_a_pod_that_is_told_to_end_still_reports(stand: Stand) -> None:
    stand.store.put({**changed(training_pod(), 9, deletionTimestamp="2026-01-01T00:00:00Z"), "status": {"phase": "Running"}})
    assert await stand.post() == 200


async def test_a_report_that_is_older_than_the_last_one_is_dropped(stand: Stand) -> None:
    assert await stand.post(60, "2026-01-01T00:00:10Z") == 200
    assert await stand.post(40, "2026-01-01T01:00:05+01:00") == 200
    assert (stand.percentage, stand.woken) == (60, 1)
    assert await stand.post(61, "2026-01-01T00:00:10Z") == 200
    assert (stand.percentage, stand.woken) == (61, 2)


async def test_the_next_attempt_may_begin_behind_the_last_one_and_by_another_clock(stand: Stand) -> None:
    assert await stand.post(60, "2026-01-01T00:00:10Z") == 200
    stand.store.put(training_pod("next", 4))
    assert await stand.post(40, "2026-01-01T00:00:00Z", pod="next") == 200
    assert stand.percentage == 40


async def test_a_report_without_a_time_counts_as_the_newest(stand: Stand) -> None:
    assert [await stand.post(60, "2026-01-01T00:00:10Z"), await stand.post(61), await stand.post(62, "2026-01-01T00:00:00Z")] == [200] * 3
    assert stand.percentage == 62


@pytest.mark.parametrize("time", ["yesterday", "2026-01-01T00:00:00", "T", "2026-13-01T00:00:00Z"])
async def test_a_time_that_is_none_is_refused(stand: Stand, time: str) -> None:
    assert await stand.post(1, time) == 400


@pytest.mark.parametrize("field", ["name", "value"])
async def test_a_metric_that_would_write_over_a_terminal_is_refused(stand: Stand, field: str) -> None:
    metric = {"name": "loss", "value": "1"} | {field: "\x1b[2J"}
    assert await stand.post(1, metrics=[metric]) == 400
