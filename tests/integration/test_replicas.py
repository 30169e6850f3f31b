"""Two operators: one acts, the other takes over within 15 s when that one is killed or cut off, and they never act at the same time."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from dev.cluster.controlplane import ControlPlane
from tests.integration.meddler import Meddled, Meddler, hang, nothing, unchanged, untouched
from tests.integration.operators import FINE_TUNE_JOB, Namespace, OperatorProcess
from tunesmith.values import LABEL_UID, Object

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

    def _owns(self, job: Object) -> bool:
        return bool(job["metadata"]["labels"][LABEL_UID] == self._last["metadata"]["uid"])


def turns(control_plane: ControlPlane, space: Namespace) -> list[str]:
    """Who wrote, in the order of the writes; each turn once. A write counts from when it came in to when it was answered."""
    spans: list[tuple[float, float, str]] = []
    for line in control_plane.audit_log.read_text().splitlines():
        entry = json.loads(line)
        agent, target = entry.get("userAgent", ""), entry.get("objectRef") or {}
        if f"({space.name}-" in agent and entry["verb"] in ("create", "update", "patch", "delete") and target.get("resource") != "leases":
            came, left = (datetime.fromisoformat(entry[name]).timestamp() for name in ("requestReceivedTimestamp", "stageTimestamp"))
            spans.append((came, left, agent.rpartition("-")[2].rstrip(")")))
    spans.sort()
    overlaps = [(earlier, later) for earlier, later in itertools.pairwise(spans) if earlier[2] != later[2] and later[0] < earlier[1]]
    assert overlaps == []
    return [writer for writer, _ in itertools.groupby(spans, key=lambda span: span[2])]


def test_another_takes_over_in_time_when_the_leader_is_killed_or_cut_off_and_never_do_both_write(
    pair: list[Meddled], space: Namespace, control_plane: ControlPlane
) -> None:
    one, other = pair
    work = Work(space)
    for _ in range(2):
        space.wait(work.goes_on, "the first to work")
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
    assert not other.process.running, "the one that was cut off had ended before"
    space.wait(work.goes_on, "the first to work again")
    other.meddler.events, other.meddler.requests = unchanged, untouched
    assert turns(control_plane, space) == ["one", "other", "one"]
