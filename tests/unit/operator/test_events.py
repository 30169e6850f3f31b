"""Events: what has happened between two statuses, told once; and their posting, which holds nothing up."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.unit.operator import edge, makers
from tests.unit.operator.finetunejobs import Life
from tests.unit.operator.makers import refusal
from tests.unit.operator.statuses import WALKS
from tunesmith.core.objects import Object
from tunesmith.runtime import event_recorder
from tunesmith.runtime.client import ApiError, Conflict
from tunesmith.runtime.event_recorder import Announcer, manifest
from tunesmith.runtime.events import MESSAGE_LIMIT, Event, events

NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
STAGE = Event("Normal", "StageSucceeded", "Prepare took 0:01:00")


class Diary:
    """Collects the Events of a life, step by step."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.written: Object = {}
        self.told: list[tuple[str, str]] = []

    def step(self) -> list[tuple[str, str]]:
        """Reconcile; return type and reason of what is told now."""
        self.life.step()
        new = [(event.type, event.reason) for event in events(self.written, self.life.status)]
        self.written = self.life.status
        self.told += new
        return new


def test_a_clean_life_is_three_events() -> None:
    diary = Diary(Life())
    diary.step()
    for stage in ("Prepare", "Train", "Finalize"):
        diary.life.run(stage)
        diary.step()
        diary.life.later(60).end(stage, makers.answer(stage))
        diary.step()
    assert diary.told == [("Normal", "StageSucceeded"), ("Normal", "StageSucceeded"), ("Normal", "Succeeded")]


def test_a_failed_attempt_and_the_one_that_follows_are_told() -> None:
    diary = Diary(Life())
    diary.step()
    diary.life.end("Prepare", refusal("Prepare", 70, "InternalError", "KeyError"))
    assert diary.step() == [("Warning", "AttemptFailed")]
    diary.life.later(60)
    assert diary.step() == [("Normal", "AttemptStarted")]


def test_an_attempt_that_cost_nothing_is_no_warning() -> None:
    diary = Diary(Life())
    diary.step()
    diary.life.run("Prepare")
    diary.step()
    diary.life.remove("Job", diary.life.job("Prepare")["metadata"]["name"])
    diary.life.vanish()
    assert ("Normal", "AttemptEnded") in diary.step()


def test_a_final_failure_is_told_with_its_reason() -> None:
    diary = Diary(Life())
    diary.step()
    diary.life.end("Prepare", refusal("Prepare", 65, "EmptyDataset"))
    assert diary.step() == [("Warning", "AttemptFailed"), ("Warning", "EmptyDataset")]


def test_a_verdict_is_told_and_a_failed_one_is_a_warning() -> None:
    told = {"type": "Succeeded", "status": "True", "reason": "Evaluated", "message": "verdict Failed: 1 of 2 criteria hold"}
    for verdict, kind in (("Passed", "Normal"), ("Failed", "Warning"), ("Inconclusive", "Warning"), ("NoCriteria", "Normal")):
        assert [event.type for event in events({}, {"verdict": verdict, "conditions": [told]})] == [kind]


def test_a_switch_of_revisions_is_told() -> None:
    old, new = ({"revisions": [{"name": name, "state": "Active", "digest": f"sha256:{name}"}]} for name in ("a", "b"))
    assert [event.reason for event in events({}, old)] == ["RevisionSwitched"]
    assert "sha256:b" in events(old, new)[0].message
    assert events(new, new) == []
    assert events(old, {"revisions": [*old["revisions"], {"name": "b", "state": "Candidate"}]}) == []


@pytest.mark.parametrize("kind", WALKS)
def test_what_is_on_record_is_never_told_again(kind: str) -> None:
    """Whatever two statuses of a life are compared with themselves, as after a restart."""
    count = 0
    before: Object = {}
    for status in WALKS[kind]():
        assert events(status, status) == []
        count += len(events(before, status))
        before = status
    assert 1 <= count <= 12


def test_a_message_is_cut_to_what_the_api_server_takes() -> None:
    told = {"type": "Stalled", "status": "True", "reason": "NoEffect", "message": "ü" * 1024}
    (event,) = events({}, {"conditions": [told]})
    assert MESSAGE_LIMIT - 2 <= len(event.message.encode()) <= MESSAGE_LIMIT


def test_the_same_word_about_the_same_object_has_the_same_name() -> None:
    owner = edge.owner()
    first, again = manifest(owner, STAGE, "pod-1", NOW), manifest(owner, STAGE, "pod-2", datetime.now(UTC))
    assert first["metadata"]["name"] == again["metadata"]["name"]
    others = (edge.owner(uid="another"), STAGE), (owner, Event("Normal", "StageSucceeded", "Train took 0:01:00"))
    assert all(manifest(about, event, "pod-1", NOW)["metadata"]["name"] != first["metadata"]["name"] for about, event in others)
    assert first["eventTime"] == "2026-01-02T03:04:05.000678Z"
    assert first["regarding"]["uid"] == "uid-tune"


class Double:
    """Takes Events, in its own time; fails with what it is given first."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.posted: asyncio.Queue[str] = asyncio.Queue()
        self.free = asyncio.Event()

    async def post_event(self, event: Object) -> None:
        await self.free.wait()
        if self.failures:
            raise self.failures.pop()
        self.posted.put_nowait(event["note"])


async def posted(cluster: Any, count: int, announce: Announcer) -> list[str]:
    """The first so many that are posted."""
    cluster.free.set()
    task = asyncio.create_task(announce.run())
    async with asyncio.timeout(5):
        notes = [await cluster.posted.get() for _ in range(count)]
    task.cancel()
    return notes


@pytest.mark.parametrize("failure", [Conflict(409, "AlreadyExists", ""), ApiError(500, "Internal", ""), TimeoutError()])
async def test_an_event_that_cannot_be_posted_keeps_no_other(failure: Exception) -> None:
    cluster: Any = Double(failure)
    announce = Announcer(cluster, "pod-1", lambda: NOW)
    announce.announce(edge.owner(), [Event("Normal", "A", "lost"), Event("Normal", "B", "told")])
    assert await posted(cluster, 1, announce) == ["told"]


async def test_nobody_waits_for_an_api_server_that_takes_no_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_recorder, "WAITING_LIMIT", 2)
    cluster: Any = Double()
    announce = Announcer(cluster, "pod-1", lambda: NOW)
    announce.announce(edge.owner(), [Event("Normal", "A", str(number)) for number in range(5)])
    assert await posted(cluster, 2, announce) == ["0", "1"]
