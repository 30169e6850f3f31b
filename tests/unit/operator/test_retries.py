"""`retries` are whole again once there is a checkpoint beyond the one at which one was last spent, and are spent for good where there is none."""

from __future__ import annotations

import copy
import json

import pytest

from tests.unit.operator.finetunejobs import Life, trained
from tests.unit.operator.makers import answer, checkpoint, refusal
from tests.unit.operator.test_failures import ended, over, told
from tunesmith.core.objects import Object


def again(life: Life) -> Life:
    """The pause is over, and the next attempt runs."""
    life.later(300).step()
    life.run("Train")
    for pod in life.pods("Train"):
        pod["metadata"]["uid"] = pod["metadata"]["name"]
    life.step()
    return life


def reports(life: Life, step: int) -> Life:
    """A pod of the newest attempt reports a checkpoint."""
    (pod,) = life.pods("Train")
    pod["metadata"]["uid"] = pod["metadata"]["name"]
    metrics = [{"name": name, "value": str(value)} for name, value in (("last_checkpoint_step", step), ("total_steps", 10_000))]
    life.progress = {"progressPercentage": 0, "metrics": metrics, "podUID": pod["metadata"]["uid"]}
    life.step()
    return life


BUG = told(70, "InternalError")
LOST = ended(137)


def bug(resumed: int | None = None, **facts: int) -> Object:
    """A failure of the program in an attempt that went on from that checkpoint."""
    return told(70, "InternalError", **({} if resumed is None else {"resumedFromStep": resumed}), **facts)


def test_a_job_that_makes_a_checkpoint_between_failures_goes_on_for_ever() -> None:
    life = trained(retries=1)
    for step in range(0, 400, 20):
        over(life, bug(step))
        assert life.states()["Train"] == "Waiting"
        assert life.status["retriesSpent"] == 1
        again(life)


def test_a_job_that_fails_again_and_again_without_a_new_checkpoint_ends() -> None:
    life = trained(retries=2)
    for step in (0, 40, 40, 40):
        assert life.states()["Train"] != "Failed", step
        over(life, bug(step))
        if life.states()["Train"] != "Failed":
            again(life)
    assert (life.states()["Train"], life.status["retriesSpent"], life.status["retriesSpentStep"]) == ("Failed", 3, 40)


def test_a_checkpoint_that_is_reported_makes_them_whole_at_once_and_is_on_record_then() -> None:
    life = again(over(trained(retries=1), LOST))
    assert (life.status["retriesSpent"], life.status["retriesSpentStep"]) == (1, 0)
    reports(life, 20)
    assert (life.status["retriesSpent"], life.status["lastCheckpoint"]["step"]) == (0, 20)
    assert "retriesSpentStep" not in life.status
    # A later one is worth no write.
    before = copy.deepcopy(life.status)
    assert reports(life, 40).status == before
    # What a pod reported that was then killed without a result is measured from there.
    over(life, LOST)
    assert (life.status["retriesSpent"], life.status["retriesSpentStep"], life.status["attempts"][-1]["checkpointStep"]) == (1, 40, 40)


def test_the_step_that_the_next_attempt_goes_on_from_proves_a_checkpoint_too() -> None:
    life = again(over(trained(retries=1), LOST))
    over(life, bug(40))
    assert (life.states()["Train"], life.status["retriesSpent"], life.status["retriesSpentStep"]) == ("Waiting", 1, 40)


def test_a_checkpoint_that_an_interrupted_attempt_tells_of_makes_them_whole() -> None:
    life = again(over(trained(retries=1), LOST))
    over(life, told(75, "Interrupted", resumedFromStep=0, checkpoint=checkpoint(2, 30)))
    assert life.status["retriesSpent"] == 0


def test_a_checkpoint_that_is_made_a_second_time_is_none_beyond() -> None:
    """The one before was found damaged, so the attempt began further back."""
    life = trained(retries=1)
    again(over(life, bug(40)))
    reports(life, 40)
    over(life, bug(20))
    assert (life.states()["Train"], life.status["retriesSpent"]) == ("Failed", 2)


@pytest.mark.parametrize("reported", [True, False])
def test_a_restart_of_the_operator_changes_nothing(reported: bool) -> None:
    """It loses what was reported, and only that."""
    life = again(over(trained(retries=1), bug(40)))
    if reported:
        reports(life, 60)
    life.progress = None
    life.owner["status"] = json.loads(json.dumps(life.status))
    over(life, LOST)
    assert life.states()["Train"] == ("Waiting" if reported else "Failed")


def test_what_an_older_release_spent_is_whole_again_after_the_next_checkpoint() -> None:
    life = trained(retries=3)
    life.owner["status"] |= {"retriesSpent": 3, "lastCheckpoint": checkpoint(1, 40)}
    life.step()
    assert (life.status["retriesSpent"], life.status["retriesSpentStep"]) == (3, 40)
    assert reports(life, 60).status["retriesSpent"] == 0


def test_what_was_spent_before_training_is_whole_again_once_it_has_a_checkpoint() -> None:
    life = Life(retries=1)
    life.step()
    life.end("Prepare", refusal("Prepare", 70, "InternalError")).step()
    life.later(5).step()
    life.succeed("Prepare").succeed("Train")
    assert life.status["retriesSpent"] == 0
    for number in range(2):
        life.end("Finalize", refusal("Finalize", 70, "InternalError", f"{number}")).later(300).step()
        life.later(300).step()
    assert life.states()["Finalize"] == "Failed"


def test_a_success_is_measured_by_its_checkpoint() -> None:
    life = again(over(trained(retries=1), bug(40)))
    life.end("Train", answer("Train") | {"checkpoint": checkpoint(1, 40)}).step()
    assert life.status["retriesSpent"] == 1
