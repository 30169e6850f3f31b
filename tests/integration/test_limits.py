"""Limits on a real API server: what is ended, what is removed, and that nothing of it comes back."""

from __future__ import annotations

import time

import pytest

from tests.integration.operators import FINE_TUNE_JOB, RESULTS, Namespace, OperatorProcess, answer, play_all
from tunesmith.api.conditions import find
from tunesmith.core.objects import Object

SECONDS = 3
"""Time that passes is what is counted here."""


@pytest.mark.usefixtures("unscheduled")
def test_a_deadline_ends_the_attempt_then_the_object_and_no_restart_revives_it(operator: OperatorProcess, space: Namespace) -> None:
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB | {"activeDeadlineSeconds": 8})
    (pod,) = space.wait_pods(tune, "Prepare")
    space.run_pod(pod)
    status = space.wait_condition("FineTuneJob", "tune", "Finished")
    told = find(status, "Stalled")
    assert told
    assert (told["status"], told["reason"]) == ("True", "DeadlineExceeded")
    assert [entry["reason"] for entry in status["attempts"]] == ["JobDeleted"]
    assert space.names("Job", "Pod") == set()
    operator.kill()
    operator.start()
    operator.wait_resyncs(2)
    assert space.status("FineTuneJob", "tune") == status
    assert space.names("Job", "Pod") == set()


def test_an_attempt_without_a_node_fails_in_time_with_the_schedulers_words(operator: OperatorProcess, space: Namespace) -> None:
    space.create("FineTuneJob", "tune", FINE_TUNE_JOB | {"pendingDeadlineSeconds": 8})
    told = find(space.wait_condition("FineTuneJob", "tune", "Finished"), "Stalled")
    assert told
    assert told["reason"] == "PendingDeadlineExceeded"
    assert "Prepare" in told["message"]
    assert "no nodes available" in told["message"]


def test_children_go_after_their_time_and_the_object_stays_as_it_was(operator: OperatorProcess, space: Namespace) -> None:
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB | {"ttlSecondsAfterFinished": 2})
    play_all(space, tune)
    status = space.wait_condition("FineTuneJob", "tune", "Succeeded")
    space.wait(lambda: not space.names("Job", "Pod"), "the children to be gone", lambda: sorted(space.names("Job", "Pod")))
    operator.kill()
    operator.start()
    operator.wait_resyncs(2)
    assert space.names("Job", "Pod") == set()
    assert space.status("FineTuneJob", "tune") == status


@pytest.mark.usefixtures("unscheduled")
def test_a_limit_may_be_set_on_what_runs(operator: OperatorProcess, space: Namespace) -> None:
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    (pod,) = space.wait_pods(tune, "Prepare")
    space.run_pod(pod)
    space.patch("FineTuneJob", "tune", {"spec": {"activeDeadlineSeconds": 1}})
    told = find(space.wait_condition("FineTuneJob", "tune", "Finished"), "Stalled")
    assert told
    assert told["reason"] == "DeadlineExceeded"


@pytest.mark.usefixtures("unscheduled")
def test_gpu_seconds_are_those_for_which_the_pods_were_waited_for_and_ran(operator: OperatorProcess, space: Namespace) -> None:
    began = time.monotonic()
    tune = start_training(space, {"resources": {"gpus": 4}, "parallelism": {"nodes": 2, "ddp": {}}}, SECONDS)
    space.wait_running(tune, "Train")
    checkpoint = {"uri": f"{RESULTS['Prepare']['runURI']}/checkpoints/attempt-1/step-3", "step": 3}
    facts = {"checkpoint": checkpoint, "globalStep": 3, "resumedFromStep": 0, "trainRuntimeSeconds": 1}
    time.sleep(SECONDS)
    for pod in space.stage_pods(tune, "Train", 1):
        space.end_pod(pod, answer("Train", 1, facts, 75, "Interrupted"), 75)
    space.wait_pods(tune, "Train", 2, count=2)
    status = space.status("FineTuneJob", "tune")
    (ended,) = (entry for entry in status["attempts"] if entry["stage"] == "Train")
    assert ended["gpus"] == 8
    # Whole seconds, between two moments that are cut off each.
    assert SECONDS - 1 <= ended["queuedSeconds"]
    assert SECONDS - 1 <= ended["runningSeconds"]
    assert ended["queuedSeconds"] + ended["runningSeconds"] <= time.monotonic() - began + 2
    assert status["gpuSeconds"] == {"useful": 8, "queued": 8 * ended["queuedSeconds"], "lost": 8 * (ended["runningSeconds"] - 1)}


@pytest.mark.usefixtures("unscheduled")
def test_gpus_held_for_longer_than_the_limit_end_the_object_and_what_runs(operator: OperatorProcess, space: Namespace) -> None:
    # A GPU-hour of 1024 GPUs takes 3.5 s.
    nodes = 16
    tune = start_training(space, {"resources": {"gpus": 64}, "parallelism": {"nodes": nodes, "ddp": {}}, "maxGPUHours": 1})
    status = space.wait_condition("FineTuneJob", "tune", "Finished")
    told = find(status, "Stalled")
    assert told
    assert (told["reason"], told["message"]) == ("GPUHourLimit", "Train failed: held GPUs for 1 GPU-hours (maxGPUHours)")
    (ended,) = (entry for entry in status["attempts"] if entry["stage"] == "Train")
    # A status tells whole seconds.
    assert ended["runningSeconds"] > 3600 / (64 * nodes) - 2
    space.wait(lambda: not space.stage_pods(tune, "Train", 1), "its pods to be gone")


def start_training(space: Namespace, spec: Object, seconds: float = 0) -> Object:
    """A FineTuneJob whose pods at Train run, all of them, after so long a wait."""
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB | spec)
    space.play(tune, "Prepare", RESULTS["Prepare"])
    pods = space.wait_pods(tune, "Train", count=spec["parallelism"]["nodes"])
    time.sleep(seconds)
    for pod in pods:
        space.run_pod(pod)
    return tune
