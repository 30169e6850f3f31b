"""With named namespaces: one whose tenant is gone, and with it our rights there, harms no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.unit.operator.edge import KINDS, child, owner
from tunesmith.core.objects import Key, Object
from tunesmith.runtime.client import ApiError, NotFound, Refused
from tunesmith.runtime.controller import Controller
from tunesmith.runtime.handlers import Watched
from tunesmith.settings import Settings

GONE = Refused(403, "Forbidden", "jobs is forbidden")


class Double:
    """An API server with an object and its Job in each namespace; those in `errors` answer with these."""

    def __init__(self, *namespaces: str) -> None:
        self.objects: dict[str, list[Object]] = {}
        self.errors: dict[str | None, Exception] = {}
        self.order: list[str] = []
        for name in namespaces:
            tune = owner(uid=f"uid-{name}")
            made = [tune, child("Job", "job", tune, spec={})]
            self.objects[name] = [{**each, "metadata": {**each["metadata"], "namespace": name}} for each in made]

    async def pages(self, kind: str, namespace: str | None, selector: str | None) -> AsyncIterator[tuple[list[Object], int]]:
        if error := self.errors.get(namespace):
            raise error
        yield [each for each in self.objects[namespace or ""] if each["kind"] == kind], 9


def key(namespace: str) -> Key:
    return Key("FineTuneJob", namespace, "tune")


def queued(made: Controller) -> list[Key]:
    """What is queued, taken out."""
    found = []
    while (taken := made.queue.take()) is not None:
        found.append(taken)
        made.queue.done(taken)
    return found


class Bench:
    def __init__(self, *namespaces: str) -> None:
        self.cluster = Double(*namespaces)
        self.served: list[frozenset[str]] = []
        cluster: Any = self.cluster
        self.controller = Controller(Settings(namespaces=namespaces), cluster, KINDS, served=self._note)

    async def _note(self, served: frozenset[str]) -> None:
        self.served.append(served)


@pytest.mark.parametrize("error", [GONE, NotFound(404, "NotFound", "namespaces not found")], ids=["no rights", "not there"])
async def test_an_operator_starts_though_a_namespace_is_gone_and_serves_the_others(error: Exception) -> None:
    bench = Bench("a", "b", "c")
    bench.cluster.errors["b"] = error
    await bench.controller.resync()
    assert bench.controller.synced is not None
    assert queued(bench.controller) == [key("a"), key("c")]
    assert bench.served == [frozenset("ac")]


async def test_one_that_goes_is_left_and_one_that_comes_back_is_looked_at_when_all_of_it_is_known() -> None:
    bench = Bench("a", "b")
    await bench.controller.resync()
    assert queued(bench.controller) == [key("a"), key("b")]
    bench.cluster.errors["b"] = GONE
    await bench.controller.resync()
    assert bench.controller.store.get(key("b")) is None
    assert bench.controller.store.get(key("a")) is not None
    # A watch may still bring something, or bring it before the rest is known.
    bench.controller.feed("FineTuneJob", "ADDED", bench.cluster.objects["b"][0])
    assert queued(bench.controller) == []
    del bench.cluster.errors["b"]
    await bench.controller.resync()
    assert queued(bench.controller) == [key("b")]
    assert [each["kind"] for each in bench.controller.store.children("uid-b")] == ["Job"]
    assert bench.served == [frozenset("ab"), frozenset("a"), frozenset("ab")]


async def test_where_none_can_be_listed_it_is_not_alive() -> None:
    bench = Bench("a", "b")
    bench.cluster.errors = {"a": GONE, "b": GONE}
    with pytest.raises(Refused):
        await bench.controller.resync()
    assert bench.controller.synced is None


async def test_an_api_server_that_is_away_takes_no_namespace_away() -> None:
    bench = Bench("a", "b")
    await bench.controller.resync()
    bench.cluster.errors["b"] = ApiError(503, "Unavailable", "away")
    with pytest.raises(ApiError):
        await bench.controller.resync()
    assert bench.controller.store.get(key("b")) is not None
    assert bench.served == [frozenset("ab")]


async def test_the_whole_cluster_is_one_namespace() -> None:
    cluster: Any = Double("")
    cluster.errors[None] = GONE
    with pytest.raises(Refused):
        await Controller(Settings(), cluster, KINDS).resync()


async def test_what_is_watched_is_changed_while_the_watches_run() -> None:
    watched, seen = Watched(), []

    async def orchestrate() -> None:
        async with watched.insights.revised:
            while True:
                await watched.insights.revised.wait()
                seen.append(set(watched.insights.namespaces))

    task = asyncio.create_task(orchestrate())
    await asyncio.sleep(0)
    watched.insights.namespaces.update("abc")
    change = asyncio.create_task(watched.watch(frozenset("ac")))
    await asyncio.sleep(0)
    assert not change.done(), "not before kopf itself has set them"
    watched.insights.ready_namespaces.set()
    await change
    await watched.watch(frozenset("ac"))
    await asyncio.sleep(0)
    assert seen == [{"a", "c"}]
    task.cancel()
