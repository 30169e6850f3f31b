"""What the controller watches: all that is ours, and of others' kinds those that are installed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.unit.operator.edge import KINDS, child, owner
from tunesmith.core.objects import Key, Object
from tunesmith.runtime.client import ApiError
from tunesmith.runtime.controller import Controller
from tunesmith.runtime.resources import RESOURCES, Resource, trim
from tunesmith.settings import Settings
from tunesmith.workload.kueue import QUEUE


class Double:
    """An API server with or without Kueue; lists what it is given."""

    def __init__(self, *jobs: Object, kueue: bool = False, broken: bool = False) -> None:
        self.jobs, self.kueue, self.broken = list(jobs), kueue, broken
        self.asked: list[str] = []
        self.listed: list[str] = []

    async def serves(self, resource: Resource) -> bool:
        self.asked.append(resource.kind)
        return self.kueue

    async def pages(self, kind: str, namespace: str | None, selector: str | None) -> AsyncIterator[tuple[list[Object], int]]:
        self.listed.append(kind)
        yield (self.jobs if kind == "Job" else [owner()] if kind == "FineTuneJob" else []), 9
        if self.broken:
            raise ApiError(410, "Expired", "the list has grown too old")


def controller(cluster: Any, *installed: str) -> Controller:
    return Controller(Settings(resync_seconds=0.01), cluster, KINDS, frozenset(installed))


def job(**labels: str) -> Object:
    made = child("Job", "train", owner(wake=None), spec={})
    made["metadata"]["labels"] |= labels
    return made


@pytest.mark.parametrize("installed", [(), ("Workload",)])
async def test_anothers_kind_is_listed_only_where_it_is_installed(installed: tuple[str, ...]) -> None:
    cluster = Double()
    made = controller(cluster, *installed)
    await made.resync()
    assert ("Workload" in cluster.listed) is bool(installed)
    assert set(cluster.listed) == {resource.kind for resource in made.watched}


async def test_what_a_page_concerns_is_queued_though_the_next_page_fails_to_come() -> None:
    cluster = Double(broken=True)
    made = controller(cluster)
    made.synced = 0.0
    with pytest.raises(ApiError):
        await made.resync()
    assert made.queue.take() == Key("FineTuneJob", "team", "tune")


async def runs(made: Controller, seconds: float = 0.2) -> bool:
    """Whether it still runs after so long a time, and some relists."""
    run = asyncio.create_task(made.run())
    await asyncio.wait([run], timeout=seconds)
    alive = not run.done()
    made.stop()
    await run
    return alive


async def test_it_ends_when_kueue_has_come_and_jobs_wait_for_it() -> None:
    cluster: Any = Double(job(**{QUEUE: "gpus"}), kueue=True)
    cluster.write_status = cluster.create = cluster.apply = lambda *_: asyncio.sleep(1)
    assert not await runs(controller(cluster), 30)


@pytest.mark.parametrize("installed", [(), ("Workload",)])
async def test_it_does_not_end_when_nothing_has_come_or_it_watches_it_already(installed: tuple[str, ...]) -> None:
    cluster: Any = Double(job(**{QUEUE: "gpus"}), kueue=bool(installed))
    cluster.write_status = cluster.create = cluster.apply = lambda *_: asyncio.sleep(1)
    assert await runs(controller(cluster, *installed))


async def test_nobody_is_asked_for_kueue_while_no_job_names_a_queue() -> None:
    cluster: Any = Double(job(), kueue=True)
    cluster.write_status = cluster.create = cluster.apply = lambda *_: asyncio.sleep(1)
    assert await runs(controller(cluster))
    assert cluster.asked == []


def test_of_a_workload_no_spec_is_kept_since_it_holds_whole_pod_templates() -> None:
    assert "spec" not in trim({"metadata": {}, "spec": {"podSets": []}, "status": {}}, RESOURCES["Workload"])
    assert "spec" in trim(job() | {"spec": {}}, RESOURCES["Job"])
