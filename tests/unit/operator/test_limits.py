"""Limits end an object for good: first the attempts under way, with time to save, then the object."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from tests.unit.operator import evalruns
from tests.unit.operator.finetunejobs import FAILED, FAILING, SUCCEEDED, WORKING, Life, trained
from tests.unit.operator.makers import START, checkpoint, claim, refusal, staged, unplace
from tests.unit.operator.test_failures import over, told
from tunesmith.api.conditions import timestamp
from tunesmith.core.objects import Object

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
    life = trained(activeDeadlineSeconds=600)
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
    life.later(1000).run("Train").step()
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
    life.run("Prepare").step()
    (pod,) = life.pods("Prepare")
    life.later(600).step()
    assert life.truths() == FAILING
    pod["status"] = {"phase": "Failed"}
    life.step()
    assert life.truths() == FAILED


WAITING: dict[str, dict[str, Any]] = {
    "another object": {"model": {"fineTuneJobRef": {"name": "missing"}, "artifact": "Merged"}},
    "a claim": {"datasets": [{"name": "chat", "uri": "pvc://missing/rows.jsonl", "format": "Text"}]},
    "a queue": {"scheduling": {"queueName": "gpus"}},
    "a node": {},
}


@pytest.mark.parametrize("what", WAITING)
def test_an_object_that_waits_is_not_active(what: str) -> None:
    life = Life(claim("datasets"), claim("models"), activeDeadlineSeconds=60, **WAITING[what])
    life.step()
    if what == "a node":
        life.run("Prepare", phase="Pending")
        unplace(life.pods("Prepare")[0], life.now)
    for _ in range(5):
        life.later(86_400).step()
        assert life.truths() == WORKING
    assert not {"activeSeconds", "activeSince"} & life.status.keys()


def test_the_time_is_that_in_which_attempts_ran_however_long_they_waited_between() -> None:
    life = trained(activeDeadlineSeconds=600, scheduling={"queueName": "gpus"}, resources={"gpus": 1})
    life.job("Train")["spec"]["suspend"] = False
    life.step()
    for number in (1, 2):
        life.later(250).step()
        assert life.status["activeSince"]
        # Kueue takes the pods away, and gives them back a day later.
        life.job("Train")["spec"]["suspend"] = True
        life.children = {key: child for key, child in life.children.items() if key[0] != "Pod"}
        life.step()
        assert (life.status["activeSeconds"], life.status.get("activeSince")) == (250 * number, None)
        life.later(86_400).step()
        assert life.truths() == WORKING
        life.job("Train")["spec"]["suspend"] = False
        life.run("Train").step()
    assert life.plan.wake_after == 100
    life.later(100).step()
    assert life.truths() == FAILING


def test_an_attempt_that_nobody_saw_run_counts_too() -> None:
    life = trained(activeDeadlineSeconds=600)
    over(life, told(75, "Interrupted"))
    life.run("Train")
    times = {"startedAt": timestamp(life.now), "finishedAt": timestamp(life.now + timedelta(seconds=599))}
    gone = told(75, "Interrupted")
    gone["containerStatuses"][0]["state"]["terminated"] |= times
    over(life.later(900), gone)
    assert life.status["activeSeconds"] == 599
    life.run("Train").step()
    life.later(1).step()
    assert life.truths() == FAILING


def test_stages_side_by_side_count_once() -> None:
    world = evalruns.Evaluation(evalruns.GATED | {"activeDeadlineSeconds": 100}, evalruns.READY_JOB, *evalruns.CLAIMS)
    world.step()
    for part in ("tested", "base", "unquantized"):
        world.run("Evaluate", part)
    world.step()
    world.later(99).step()
    assert world.truths()["Reconciling"] == "True"
    assert "FailureTarget" not in world.truths()
    world.later(1).step()
    assert world.truths()["FailureTarget"] == "True"


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
