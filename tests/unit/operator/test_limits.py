"""Limits end an object for good: first the attempts under way, with time to save, then the object."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.operator import evalruns
from tests.unit.operator.finetunejobs import FAILED, FAILING, SUCCEEDED, WORKING, Life, trained
from tests.unit.operator.makers import START, checkpoint, refusal, staged
from tunesmith.conditions import timestamp
from tunesmith.values import Object

GPUS: Object = {"resources": {"gpus": 4}}


def interrupted(step: int) -> Object:
    return refusal("Train", 75, "Interrupted", outcome="Interrupted", checkpoint=checkpoint(1, step))


def test_an_object_that_was_active_for_too_long_saves_and_then_fails() -> None:
    life = trained(activeDeadlineSeconds=600)
    assert life.plan.wake_after == 600
    life.later(599).step()
    assert life.truths() == WORKING
    life.later(1).step()
    assert life.truths() == FAILING
    assert life.status["stage"] == "Failing"
    assert life.condition("Reconciling")["reason"] == "DeadlineExceeded"
    assert life.names("Job") == ["support-bot-prepare-1-5f0c1"]
    (pod,) = (child for child in life.children.values() if child["kind"] == "Pod" and staged(child) == "Train")
    saved = {"exitCode": 75, "message": json.dumps(interrupted(20))}
    pod["status"] = {"phase": "Failed", "containerStatuses": [{"name": "stage", "state": {"terminated": saved}}]}
    life.step()
    assert life.truths() == FAILED
    assert life.condition("Stalled")["reason"] == "DeadlineExceeded"
    assert "activeDeadlineSeconds" in life.condition("Stalled")["message"]
    assert life.status["lastCheckpoint"]["step"] == 20
    assert life.states() == {"Prepare": "Succeeded", "Train": "Failed", "Finalize": "Stopped"}
    assert life.status["completionTime"]


def test_what_has_failed_by_a_limit_stays_failed_when_the_limit_is_raised() -> None:
    life = Life(activeDeadlineSeconds=600)
    life.step()
    life.later(600).step()
    life.vanish().step()
    assert life.truths() == FAILED
    created = list(life.created)
    life.edit(activeDeadlineSeconds=6000).step()
    assert life.truths() == FAILED
    assert life.created == created


def test_a_raised_limit_does_not_call_back_what_is_ending() -> None:
    life = trained(activeDeadlineSeconds=600)
    life.later(600).step()
    life.edit(activeDeadlineSeconds=6000).step()
    assert life.truths() == FAILING


def test_suspending_stops_the_clock_and_resuming_starts_it_anew() -> None:
    life = trained(activeDeadlineSeconds=600)
    life.later(500).edit(suspend=True).step()
    life.vanish().step()
    life.later(10_000).step()
    assert life.condition("Suspended")["status"] == "True"
    assert life.plan.wake_after is None
    life.edit(suspend=False).step()
    life.later(599).step()
    assert life.truths() == WORKING
    life.later(1).step()
    assert life.truths()["FailureTarget"] == "True"


def test_no_limit_is_passed_while_suspending() -> None:
    life = trained(activeDeadlineSeconds=600)
    life.later(599).edit(suspend=True).step()
    life.later(10).step()
    assert life.condition("Reconciling")["reason"] == "Suspending"
    life.vanish().step()
    assert life.condition("Suspended")["status"] == "True"


def test_nothing_has_failed_while_a_pod_of_an_earlier_attempt_lives() -> None:
    life = Life(activeDeadlineSeconds=600)
    life.step()
    life.end("Prepare", None).step()
    (pod,) = life.pods("Prepare")
    pod["status"] = {"phase": "Running"}
    life.later(600).step()
    assert life.truths() == FAILING
    pod["status"] = {"phase": "Failed"}
    life.step()
    assert life.truths() == FAILED


def test_an_object_that_waits_for_another_is_active_too() -> None:
    life = Life(model={"fineTuneJobRef": {"name": "missing"}, "artifact": "Merged"}, activeDeadlineSeconds=60)
    life.step()
    assert life.plan.wake_after == 60
    life.later(60).step()
    assert life.truths() == FAILED


def test_an_attempt_that_cannot_be_placed_in_time_fails_with_what_it_waited_for() -> None:
    life = Life(pendingDeadlineSeconds=300)
    life.step()
    assert life.plan.wake_after == 300
    life.run("Prepare", phase="Pending")
    scheduled = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes are available",
        "lastTransitionTime": timestamp(START),
    }
    life.pods("Prepare")[0]["status"]["conditions"] = [scheduled]
    life.later(300).step()
    assert life.truths() == FAILING
    life.vanish().step()
    assert life.truths() == FAILED
    told = life.condition("Stalled")
    assert told["reason"] == "PendingDeadlineExceeded"
    assert "0/3 nodes are available" in told["message"]
    assert "Prepare" in told["message"]


def test_an_attempt_that_runs_waits_no_more() -> None:
    life = Life(pendingDeadlineSeconds=300)
    life.step()
    life.later(299).run("Prepare").step()
    assert life.plan.wake_after is None
    life.later(10_000).step()
    assert life.truths() == WORKING


def test_each_attempt_has_the_whole_time_to_wait() -> None:
    life = Life(pendingDeadlineSeconds=300)
    life.step()
    life.later(200).end("Prepare", None).step()
    life.later(10).step()
    life.later(299).step()
    assert life.truths() == WORKING
    life.later(1).step()
    assert life.truths()["FailureTarget"] == "True"


def test_a_gpu_hour_limit_ends_training_at_the_very_second_and_lets_it_save() -> None:
    life = trained(**GPUS, maxGPUHours=1)
    assert life.plan.wake_after == 900
    life.later(899).step()
    assert life.truths() == WORKING
    life.later(1).step()
    assert life.truths() == FAILING
    assert "support-bot-train-1-5f0c1" not in life.names("Job")
    life.later(10).step()
    life.later(10).vanish().step()
    assert life.truths() == FAILED
    assert life.condition("Stalled")["reason"] == "GPUHourLimit"
    assert life.status["gpuSeconds"] == {"useful": 0, "queued": 0, "lost": 4 * 920}


def test_what_ended_attempts_held_counts_against_the_limit() -> None:
    life = trained(**GPUS, maxGPUHours=1)
    life.later(600).end("Train", None).step()
    life.later(60).step()
    life.run("Train").step()
    assert life.plan.wake_after == 300
    life.later(300).step()
    assert life.truths() == FAILING


def test_a_success_outruns_a_limit() -> None:
    life = Life(activeDeadlineSeconds=600)
    life.step()
    life.succeed("Prepare").succeed("Train").later(600).succeed("Finalize")
    assert life.truths() == SUCCEEDED


def test_children_go_so_long_after_the_end_and_never_come_back() -> None:
    life = Life(ttlSecondsAfterFinished=3600, parallelism={"nodes": 2, "ddp": {}})
    life.step()
    life.succeed("Prepare").succeed("Train").succeed("Finalize")
    assert life.names("Service")
    assert life.plan.wake_after == 3600
    life.later(3599).step()
    assert len(life.names("Job")) == 3
    life.later(1).step()
    life.vanish().step()
    assert life.children == {}
    assert life.plan.wake_after is None
    life.later(1000).step()
    assert life.children == {}
    assert life.truths() == SUCCEEDED


def test_without_a_time_to_live_children_stay() -> None:
    life = Life()
    life.step()
    life.succeed("Prepare").succeed("Train").succeed("Finalize")
    life.later(10**8).step()
    assert len(life.names("Job")) == 3


def test_children_of_what_failed_go_too() -> None:
    life = Life(ttlSecondsAfterFinished=0)
    life.step()
    life.end("Prepare", refusal("Prepare", 65, "EmptyDataset")).step()
    assert life.truths() == FAILED
    life.vanish().step()
    assert life.children == {}


@pytest.mark.parametrize(
    ("limit", "reason", "seconds"),
    [({"activeDeadlineSeconds": 60}, "DeadlineExceeded", 60), ({"maxGPUHours": 1}, "GPUHourLimit", 1800)],
)
def test_an_eval_run_has_the_same_limits(limit: dict[str, Any], reason: str, seconds: int) -> None:
    world = evalruns.Evaluation(evalruns.BY_URI | {"resources": {"gpus": 2}} | limit, *evalruns.CLAIMS)
    world.step()
    world.run("Evaluate", "tested").step()
    world.later(seconds).step()
    assert world.truths()["FailureTarget"] == "True"
    world.vanish().step()
    assert world.condition("Stalled")["reason"] == reason
    assert world.truths()["Finished"] == "True"
    assert world.status["gpuSeconds"] == {"useful": 0, "queued": 0, "lost": 2 * seconds}


def test_what_runs_beside_a_stage_that_failed_is_on_record_and_accounted() -> None:
    world = evalruns.Evaluation(evalruns.GATED | {"resources": {"gpus": 2}}, evalruns.READY_JOB, *evalruns.CLAIMS)
    world.step()
    for part in ("tested", "base", "unquantized"):
        world.run("Evaluate", part)
    world.step()
    world.later(100).end("Evaluate", refusal("Evaluate", 65, "EmptyDataset"), "base").step()
    assert {entry["part"]: entry["reason"] for entry in world.status["attempts"]} == {
        "base": "EmptyDataset",
        "tested": "Stopped",
        "unquantized": "Stopped",
    }
    assert world.status["gpuSeconds"] == {"useful": 0, "queued": 0, "lost": 3 * 2 * 100}
