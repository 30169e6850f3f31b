"""Attempts that are taken away cost nothing, but not for ever: without a new checkpoint they get pauses, and an end."""

from __future__ import annotations

import json

import pytest

from tests.unit.operator.finetunejobs import FAILED, Life, trained
from tests.unit.operator.makers import checkpoint
from tests.unit.operator.test_failures import SAVED, over, rejected, told
from tests.unit.operator.test_retries import again, reports
from tunesmith.core.objects import Object
from tunesmith.stages.repeats import AT_ONCE, PATIENCE

PREEMPTED = rejected("", "PreemptionByScheduler")
PRESSED = rejected("Evicted", "TerminationByKubelet")
STOPPED = told(75, "Interrupted")


def waits(life: Life) -> float:
    """Seconds to the next attempt; 0 where it is made already."""
    return 0 if life.states()["Train"] == "Pending" else life.plan.wake_after or 0


@pytest.mark.parametrize("status", [PREEMPTED, PRESSED, STOPPED], ids=["preempted", "evicted", "interrupted"])
def test_what_is_taken_away_again_and_again_without_a_checkpoint_waits_and_then_ends(status: Object) -> None:
    life, pauses = trained(retries=0), []
    for _ in range(PATIENCE):
        over(life, status)
        assert life.truths() != FAILED
        pauses.append(waits(life))
        again(life)
    assert pauses[: AT_ONCE + 8] == [0] * AT_ONCE + [5, 10, 20, 40, 80, 160, 300, 300]
    over(life, status)
    assert life.truths() == FAILED
    assert f"{PATIENCE + 1} times without a new checkpoint" in life.condition("Stalled")["message"]
    assert life.status["retriesSpent"] == 0


@pytest.mark.parametrize("how", ["reported", "told"])
def test_what_makes_a_checkpoint_each_time_goes_on_for_ever_at_once(how: str) -> None:
    life = trained(retries=0)
    for number in range(1, PATIENCE + 10):
        if how == "reported":
            reports(life, 10 * number)
            over(life, PREEMPTED)
        else:
            over(life, told(75, "Interrupted", checkpoint=checkpoint(number, 10 * number)))
        assert waits(life) == 0
        life.owner["status"] = json.loads(json.dumps(life.status))
        again(life)


def test_suspending_and_deleting_a_job_by_hand_are_not_counted() -> None:
    life = trained()
    for _ in range(AT_ONCE + 3):
        life.edit(suspend=True).step()
        over_pods(life)
        life.edit(suspend=False).step()
        assert waits(life) == 0
        life.run("Train").step()
    for _ in range(AT_ONCE + 3):
        life.remove("Job", life.job("Train")["metadata"]["name"]).vanish().step()
        assert waits(life) == 0
        life.run("Train").step()


def over_pods(life: Life) -> None:
    """The pods that were told to end have saved nothing, and are gone."""
    for child in life.children.values():
        if child["kind"] == "Pod" and "deletionTimestamp" in child["metadata"]:
            child["status"] = SAVED
    life.step()
    life.vanish().step()
