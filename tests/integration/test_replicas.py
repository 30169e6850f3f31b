"""Two operators: one acts, the other takes over within 15 s when that one is killed, stopped or cut off, and they never act at the same time."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from aiohttp import web

from dev.bench.proxy import Exchange
from dev.cluster.controlplane import ControlPlane
from dev.cluster.processes import wait_until
from tests.integration.meddler import Meddled, Meddler, hang, is_lease, nothing, unchanged, untouched
from tests.integration.operators import FINE_TUNE_JOB, Namespace, OperatorProcess
from tunesmith.core.objects import LABEL_UID, Object
from tunesmith.runtime.election import END_SECONDS
from tunesmith.settings import LeaseSettings

TAKEOVER = 15.0


@pytest.fixture
def pair(operator_process: OperatorProcess, control_plane: ControlPlane, space: Namespace, tmp_path: Path) -> Iterator[list[Meddled]]:
    """Two operators of one namespace, each behind a proxy of its own; the first leads."""
    operator_process.stop()
    with Meddler(control_plane) as one, Meddler(control_plane) as other:
        made = [Meddled(control_plane, meddler, space, tmp_path, f"{space.name}-{name}") for meddler, name in ((one, "one"), (other, "other"))]
        made[0].process.start()
        made[1].process.start(ready=False)
        space.wait(lambda: made[1].process.probe("/healthz") == 200, "the second to live")
        yield made
        for each in made:
            each.process.stop()


class Work:
    """One object after another, so that whoever leads has something to write."""

    def __init__(self, space: Namespace) -> None:
        self._space = space
        self._names = (f"tune-{number}" for number in itertools.count())
        self._last: Object = {}

    def goes_on(self) -> bool:
        """Ask for one more if the last one has its Job; whether it has."""
        done = not self._last or any(self._owns(job) for job in self._space.all("Job"))
        if done:
            self._last = self._space.create("FineTuneJob", next(self._names), FINE_TUNE_JOB)
        return done

    def meanwhile(self, condition: Callable[[], bool]) -> Callable[[], bool]:
        """`condition`, with work asked for at each look."""

        def look() -> bool:
            self.goes_on()
            return condition()

        return look

    def _owns(self, job: Object) -> bool:
        return bool(job["metadata"]["labels"][LABEL_UID] == self._last["metadata"]["uid"])


@pytest.fixture
def work(pair: list[Meddled], space: Namespace) -> Work:
    """Work that the first of the pair has begun."""
    made = Work(space)
    space.wait(made.goes_on, "the first to work")
    return made


def turns(control_plane: ControlPlane, space: Namespace) -> list[str]:
    """Who wrote, in the order of the writes; each turn once. No write may begin before all of another's have ended."""
    spans, ended = written(control_plane, space), dict[str, float]()
    for span in spans:
        assert span.came > max((end for writer, end in ended.items() if writer != span.writer), default=0.0), (span, ended)
        ended[span.writer] = max(span.left, ended.get(span.writer, 0.0))
    return [writer for writer, _ in itertools.groupby(span.writer for span in spans)]


class Span(NamedTuple):
    """A write, from when it came in to when it was answered, by the API server's clock."""

    came: float
    left: float
    writer: str


def written(control_plane: ControlPlane, space: Namespace) -> list[Span]:
    """The writes of the two operators that the audit log has, but for those of their Lease."""
    spans = []
    for line in control_plane.audit_log.read_text().splitlines():
        entry = json.loads(line)
        agent, target = entry.get("userAgent", ""), entry.get("objectRef") or {}
        if f"({space.name}-" in agent and entry["verb"] in ("create", "update", "patch", "delete") and target.get("resource") != "leases":
            came, left = (datetime.fromisoformat(entry[name]).timestamp() for name in ("requestReceivedTimestamp", "stageTimestamp"))
            spans.append(Span(came, left, agent.rpartition("-")[2].rstrip(")")))
    return sorted(spans)


def test_another_takes_over_in_time_when_the_leader_is_killed_or_cut_off_and_never_do_both_write(
    pair: list[Meddled], work: Work, space: Namespace, control_plane: ControlPlane
) -> None:
    one, other = pair
    space.wait(work.goes_on, "the first to work on")
    one.process.kill()
    work.goes_on()
    assert other.wait(other.process.is_ready, "the second to lead") < TAKEOVER
    space.wait(work.goes_on, "the second to work")
    one.process.start(ready=False)
    space.wait(lambda: one.process.probe("/healthz") == 200, "the first to wait for its turn")
    # Cut off: connections stay open, and nothing comes through. What was asked for is held back for ever.
    other.meddler.events, other.meddler.requests = nothing, hang
    work.goes_on()
    assert one.wait(one.process.is_ready, "the first to lead again") < TAKEOVER
    # It began to end before; what is under way may take it some seconds.
    wait_until(lambda: not other.process.running, "the one that was cut off to end", END_SECONDS * 2)
    space.wait(work.goes_on, "the first to work again")
    other.meddler.events, other.meddler.requests = unchanged, untouched
    assert turns(control_plane, space) == ["one", "other", "one"]


def test_a_leader_whose_renewals_alone_hang_works_on_to_its_deadline_and_no_longer(
    pair: list[Meddled], work: Work, space: Namespace, control_plane: ControlPlane
) -> None:
    """Nothing else hangs, so that whatever it still wrote then would have been let through."""
    one, other = pair

    async def hang_renewals(exchange: Exchange) -> None:
        if is_lease(exchange):
            await hang(exchange)

    one.meddler.requests = hang_renewals
    since = time.time()
    assert other.wait(work.meanwhile(other.process.is_ready), "the second to lead") < TAKEOVER
    space.wait(lambda: not one.process.running, "the first to end")
    for _ in range(2):
        space.wait(work.goes_on, "the second to work")
    assert turns(control_plane, space) == ["one", "other"]
    last = max(span.came for span in written(control_plane, space) if span.writer == "one")
    assert 1 < last - since < LeaseSettings.deadline_seconds


def test_a_leader_that_stood_still_while_another_took_over_writes_nothing_when_it_goes_on(
    pair: list[Meddled], work: Work, space: Namespace, control_plane: ControlPlane
) -> None:
    """It stops between the write of a status and the answer to it, so that when it wakes it could go on at once with what comes next."""
    one, other = pair
    leader, stopped = one.process.pid, threading.Event()

    async def stop_before_the_answer(exchange: Exchange) -> web.StreamResponse | None:
        if stopped.is_set() or not exchange.request.path.endswith("/status"):
            return None
        answer = await exchange.forward()
        os.kill(leader, signal.SIGSTOP)
        stopped.set()
        return await exchange.reply(answer)

    one.meddler.requests = stop_before_the_answer
    space.wait(work.meanwhile(stopped.is_set), "the first to be stopped")
    try:
        assert other.wait(other.process.is_ready, "the second to lead") < TAKEOVER
        space.wait(work.goes_on, "the second to work")
    finally:
        os.kill(leader, signal.SIGCONT)
    space.wait(lambda: not one.process.running, "the first to end")
    space.wait(work.goes_on, "the second to work on")
    assert turns(control_plane, space) == ["one", "other"]
