"""A FineTuneJob's progress and newest checkpoint: from the reports of its pods, and from what its attempts told."""

from __future__ import annotations

import pytest

from tests.unit.operator.finetunejobs import trained
from tests.unit.operator.makers import checkpoint, refusal
from tunesmith.core.objects import LABEL_STAGE, Object


def test_progress_is_written_rarely_and_kept_when_the_report_is_gone() -> None:
    life = trained()
    life.progress = {
        "progressPercentage": 1,
        "estimatedRemainingSeconds": 90,
        "metrics": [{"name": "loss", "value": "2.1"}, {"name": "x" * 65, "value": "1"}],
    }
    life.step()
    assert life.status["progress"]["progressPercentage"] == 1
    assert life.status["progress"]["metrics"] == [{"name": "loss", "value": "2.1"}]
    life.progress = {"progressPercentage": 9}
    life.later(29).step()
    assert life.status["progress"]["progressPercentage"] == 1
    life.later(1).step()
    assert life.status["progress"]["progressPercentage"] == 9
    life.progress = None
    life.later(1).step()
    assert life.status["progress"]["progressPercentage"] == 9
    life.succeed("Train").step()
    assert (life.status["progress"]["progressPercentage"], life.status["progress"]["estimatedRemainingSeconds"]) == (100, 0)


def report(percentage: int, steps: int, pod: str, **more: str) -> Object:
    """A pod's report of a training of 200 steps."""
    metrics = [{"name": name, "value": value} for name, value in ({"current_step": str(steps), "total_steps": "200"} | more).items()]
    return {"progressPercentage": percentage, "estimatedRemainingSeconds": 60, "metrics": metrics, "podUID": pod}


def test_while_an_attempt_starts_progress_shows_what_it_goes_on_from() -> None:
    life = trained()
    life.pods("Train")[0]["metadata"]["uid"] = "first"
    life.progress = report(0, 0, "first")
    life.step()
    # The next report comes too soon to be written, and the last step before the checkpoint is not reported at all.
    life.progress = report(45, 90, "first")
    life.later(20).step()
    assert life.status["progress"]["progressPercentage"] == 0
    life.end("Train", refusal("Train", 75, "Interrupted", outcome="Interrupted", checkpoint=checkpoint(1, 96))).step()
    shown = [life.status["progress"]]
    life.run("Train").later(60).step()
    life.pods("Train")[0]["metadata"]["uid"] = "second"
    life.step()
    shown.append(life.status["progress"])
    assert [(entry["progressPercentage"], "estimatedRemainingSeconds" in entry) for entry in shown] == [(48, False)] * 2
    # Where it really begins, the pod says: its checkpoint may have been found damaged.
    life.progress = report(40, 80, "second")
    life.step()
    assert life.status["progress"]["progressPercentage"] == 40


def test_the_last_report_of_an_attempt_that_was_killed_is_shown() -> None:
    life = trained()
    life.pods("Train")[0]["metadata"]["uid"] = "first"
    for percentage in (0, 45):
        life.progress = report(percentage, 2 * percentage, "first")
        life.later(5).step()
    life.end("Train", None).step()
    assert life.status["progress"]["progressPercentage"] == 45
    assert life.status["progress"]["metrics"][0] == {"name": "current_step", "value": "90"}


def test_the_newest_checkpoint_is_shown_while_an_attempt_makes_them_and_when_it_is_killed() -> None:
    life = trained()
    life.pods("Train")[0]["metadata"]["uid"] = "first"
    life.progress = report(10, 20, "first")
    life.step()
    assert "lastCheckpoint" not in life.status
    life.progress = report(45, 90, "first", last_checkpoint_step="80")
    life.later(60).step()
    assert life.status["lastCheckpoint"] == checkpoint(1, 80)
    # As seldom as the progress is written.
    life.progress = report(45, 90, "first", last_checkpoint_step="90")
    life.later(60).step()
    assert life.status["lastCheckpoint"] == checkpoint(1, 80)
    life.end("Train", None).step()
    assert life.status["lastCheckpoint"] == checkpoint(1, 90)
    life.later(60).step()
    life.run("Train").step()
    # The newest was damaged, so that this one began with an older one.
    life.pods("Train")[-1]["metadata"]["uid"] = "second"
    life.progress = report(48, 96, "second", last_checkpoint_step="95")
    life.later(60).step()
    assert life.status["lastCheckpoint"] == checkpoint(2, 95)
    life.end("Train", refusal("Train", 75, "Interrupted", outcome="Interrupted", checkpoint=checkpoint(2, 97))).step()
    assert life.status["lastCheckpoint"] == checkpoint(2, 97)


@pytest.mark.parametrize("told", ["", "-3", "1.5", "many", "٣", "9" * 16])
def test_what_is_no_step_is_no_checkpoint(told: str) -> None:
    life = trained()
    life.pods("Train")[0]["metadata"]["uid"] = "first"
    life.progress = report(10, 20, "first", last_checkpoint_step=told)
    life.step()
    assert "lastCheckpoint" not in life.status


def test_a_checkpoint_told_by_a_pod_that_is_none_of_ours_any_more_is_not_shown() -> None:
    life = trained()
    life.pods("Train")[0]["metadata"]["uid"] = "first"
    life.progress = report(10, 20, "another", last_checkpoint_step="20")
    life.step()
    del life.pods("Train")[0]["metadata"]["labels"][LABEL_STAGE]
    life.progress = report(20, 40, "first", last_checkpoint_step="40")
    life.later(60).step()
    assert "lastCheckpoint" not in life.status
