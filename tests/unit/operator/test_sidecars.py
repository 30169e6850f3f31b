"""Containers that others inject into our pods: only ours decides (a kubelet sorts the statuses by name, so theirs may come first)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.operator import deployments
from tests.unit.operator.finetunejobs import TWO_NODES, Life, last, trained
from tests.unit.operator.makers import START, answer, checkpoint, refusal
from tunesmith.api.conditions import timestamp
from tunesmith.core.objects import Object

BEFORE, AFTER = "istio-proxy", "workload-agent"
BUG = refusal("Train", 70, "InternalError", "a bug", fingerprint="a" * 12, step=7)


def ended(code: int, result: Object | None = None, why: str = "Error") -> Object:
    """The state of a container that has ended."""
    text = {"message": json.dumps(result)} if result else {}
    return {"terminated": {"exitCode": code, "reason": why, "startedAt": timestamp(START), "finishedAt": timestamp(START)} | text}


RUNS: Object = {"running": {"startedAt": timestamp(START)}}
SUCCESS = ended(0, answer("Train"), "Completed")


def status(ours: Object | None, others: dict[str, Object], phase: str, **more: Any) -> Object:
    """A pod's status as a kubelet reports it."""
    states = others | ({"stage": ours} if ours else {})
    return {"phase": phase, "containerStatuses": [{"name": name, "state": states[name]} for name in sorted(states)]} | more


def finished(life: Life) -> Life:
    """The Job's controller has seen all pods end."""
    life.job("Train")["status"] = {"conditions": [{"type": "Failed", "status": "True"}]}
    life.step()
    return life


@pytest.mark.parametrize("name", [BEFORE, AFTER])
@pytest.mark.parametrize("other", [ended(0), ended(1), ended(137, why="OOMKilled"), ended(128, why="StartError"), RUNS], ids=str)
def test_a_success_is_read_from_our_container_whatever_becomes_of_the_other(name: str, other: Object) -> None:
    life = trained()
    life.pods("Train")[0]["status"] = status(SUCCESS, {name: other}, "Failed")
    assert finished(life).states()["Train"] == "Succeeded"
    assert life.status["retriesSpent"] == 0


@pytest.mark.parametrize("name", [BEFORE, AFTER])
@pytest.mark.parametrize("other", [ended(0), ended(1), ended(137, why="OOMKilled"), ended(128, why="StartError"), RUNS], ids=str)
def test_a_failure_is_read_from_our_container_whatever_becomes_of_the_other(name: str, other: Object) -> None:
    life = trained()
    life.pods("Train")[0]["status"] = status(ended(70, BUG), {name: other}, "Failed")
    assert last(finished(life))["reason"] == "InternalError"


@pytest.mark.parametrize("other", [ended(1), ended(137, why="OOMKilled"), {"waiting": {"reason": "ImagePullBackOff"}}], ids=str)
@pytest.mark.parametrize("phase", ["Running", "Pending"])
def test_while_our_container_runs_nothing_else_counts(other: Object, phase: str) -> None:
    life = trained()
    life.pods("Train")[0]["status"] = status(RUNS, {BEFORE: other}, phase)
    life.later(3600).step()
    assert (life.states()["Train"], life.condition("Reconciling")["message"]) == ("Running", "Train: running")


def test_a_pod_of_which_only_the_other_container_runs_does_not_run() -> None:
    life = trained()
    life.pods("Train")[0]["status"] = status({"waiting": {"reason": "ErrImagePull", "message": "no such image"}}, {BEFORE: RUNS}, "Running")
    life.step()
    assert life.condition("Reconciling")["reason"] == "ErrImagePull"


def test_an_init_container_that_keeps_ours_from_beginning_is_named() -> None:
    life = trained()
    proxy = {"name": BEFORE, "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s"}}}
    waits = {"waiting": {"reason": "PodInitializing"}}
    life.pods("Train")[0]["status"] = status(waits, {}, "Pending", initContainerStatuses=[proxy])
    life.step()
    told_by = life.condition("Reconciling")
    assert told_by["reason"] == "CrashLoopBackOff"
    assert f"{BEFORE} has to begin before the stage does: back-off" in told_by["message"]
    life.pods("Train")[0]["status"] = status(RUNS, {}, "Running", initContainerStatuses=[proxy])
    assert life.step()["stage"] == "Train"


def test_a_container_that_does_not_end_keeps_no_attempt_alive() -> None:
    life = trained(resources={"gpus": 4})
    life.pods("Train")[0]["status"] = status(SUCCESS, {BEFORE: RUNS}, "Running")
    life.step()
    assert life.states()["Train"] == "Running"
    assert life.plan.wake_after == 30
    life.later(29).step()
    assert life.states()["Train"] == "Running"
    life.later(1)
    recorded = life._status(life.observed())
    assert recorded["stages"][1]["state"] == "Succeeded", "the result is on record before anything is deleted"
    life.step()
    assert [entry["metadata"]["name"] for entry in life.plan.delete] == ["support-bot-train-1-5f0c1"]
    assert last(life)["runningSeconds"] == 0, "what the other container did beyond our end was no training"
    assert life.states()["Finalize"] == "Pending"


def test_a_failure_beside_a_container_that_does_not_end_goes_on_with_the_next_attempt() -> None:
    life = trained()
    life.pods("Train")[0]["status"] = status(ended(70, BUG), {AFTER: RUNS}, "Running")
    life.step()
    life.later(30).step()
    assert (last(life)["reason"], life.status["retriesSpent"]) == ("InternalError", 1)
    assert life.names("Job") == ["support-bot-prepare-1-5f0c1"]
    life.vanish().later(5).step()
    assert life.names("Job")[-1] == "support-bot-train-2-5f0c1"


def test_a_pod_that_failed_unnoticed_ends_the_others_and_its_result_is_kept() -> None:
    """The Job's controller sees a pod that runs: the other node would wait for its peer until the collectives' own timeout."""
    life = trained(parallelism=TWO_NODES)
    first, second = life.pods("Train")
    second["status"] = status(ended(70, BUG), {BEFORE: RUNS}, "Running")
    second["spec"] = {"nodeName": "gpu-2"}
    first["status"] = status(RUNS, {BEFORE: RUNS}, "Running")
    life.step()
    assert life.states()["Train"] == "Running"
    life.later(30).step()
    assert life.names("Job") == ["support-bot-prepare-1-5f0c1"]
    assert life.status["stages"][1]["ends"][0]["node"] == "gpu-2"
    life.children.pop(("Pod", second["metadata"]["name"]))
    saved = refusal("Train", 75, "Interrupted", outcome="Interrupted", checkpoint=checkpoint(1, 20))
    first["status"] = status(ended(75, saved), {BEFORE: RUNS}, "Running")
    life.step()
    assert (last(life)["reason"], last(life)["fingerprint"], last(life)["failedOn"]) == ("InternalError", "a" * 12, ["gpu-2"])
    assert life.status["retriesSpent"] == 1
    assert "ends" not in life.status["stages"][1]


def test_a_job_that_its_queue_stops_is_not_over_because_another_container_runs_on() -> None:
    life = trained()
    life.job("Train")["spec"]["suspend"] = True
    life.pods("Train")[0]["status"] = status(ended(75, refusal("Train", 75, "Interrupted")), {BEFORE: RUNS}, "Running")
    life.later(600).step()
    assert life.names("Job")[-1] == "support-bot-train-1-5f0c1"
    assert life.status["attempts"][-1]["stage"] == "Prepare"


def test_what_a_job_asks_for_is_what_our_container_asks_for() -> None:
    life = Life(resources={"gpus": 4})
    life.step()
    life.succeed("Prepare")
    containers = life.job("Train")["spec"]["template"]["spec"]["containers"]
    containers.insert(0, {"name": BEFORE, "resources": {"limits": {"example.com/device": "7"}}})
    life.run("Train").step()
    assert life.status["stages"][1]["gpus"] == 4


def test_a_revision_does_not_fail_by_another_container() -> None:
    world = deployments.World(deployments.GATED, deployments.job(), deployments.evaluation(), deployments.claim())
    world.step()
    name = world.named("Candidate")
    world.unready(name)
    (ours,) = world.pods[name]["status"]["containerStatuses"]
    ours["state"] = RUNS
    proxy = {"name": BEFORE, "ready": False, "restartCount": 9, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    world.pods[name]["status"]["containerStatuses"] = [proxy | {"lastState": ended(137, why="OOMKilled")}, ours]
    world.step()
    assert world.told()["Stalled"] == "False/Starting"
    assert "the engine is loading the model" in world.message("Reconciling")
