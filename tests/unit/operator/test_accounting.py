"""GPU-seconds: each test is a life of two pods with four GPUs each, told by the clock."""

from __future__ import annotations

import pytest

from tests.unit.operator.finetunejobs import Life
from tests.unit.operator.makers import START, answer, checkpoint, refusal, timestamp, variant
from tunesmith.core.objects import Object
from tunesmith.stages.gpu_seconds import asked

GPUS = 8
SPEC: Object = {"resources": {"gpus": 4}, "parallelism": {"nodes": 2, "ddp": {}}}


def training(**spec: object) -> Life:
    """A life whose Train has waited ten seconds and now runs."""
    life = Life(**(SPEC | spec))
    life.step()
    life.succeed("Prepare").later(10).run("Train").step()
    return life


def told(steps: int, resumed: int, seconds: float, attempt: int = 1) -> Object:
    """Train's answer after training from one step to another for so many seconds."""
    facts = {"globalStep": steps, "resumedFromStep": resumed, "trainRuntimeSeconds": seconds, "checkpoint": checkpoint(attempt, steps)}
    return answer("Train", attempt=attempt) | facts


def seconds(useful: int, queued: int, lost: int) -> dict[str, int]:
    return {"useful": GPUS * useful, "queued": GPUS * queued, "lost": GPUS * lost}


def test_a_job_without_gpus_has_no_account() -> None:
    life = Life()
    life.step()
    life.succeed("Prepare").succeed("Train").succeed("Finalize")
    assert "gpuSeconds" not in life.status
    assert all("gpus" not in entry for entry in life.status["attempts"])


def test_waiting_is_queued_training_is_useful_and_starting_up_is_lost() -> None:
    life = training()
    life.later(100).end("Train", told(40, 0, 80)).step()
    assert life.status["gpuSeconds"] == seconds(useful=80, queued=10, lost=20)
    (ended,) = (entry for entry in life.status["attempts"] if entry["stage"] == "Train")
    assert (ended["gpus"], ended["queuedSeconds"], ended["runningSeconds"]) == (GPUS, 10, 100)


def test_what_was_held_is_the_sum_of_useful_and_lost_whatever_happened() -> None:
    life = training()
    life.later(300).end("Train", None).step()
    life.later(60).step()
    life.later(7).run("Train").step()
    life.later(100).end("Train", told(40, 30, 50, attempt=2)).step()
    account = life.status["gpuSeconds"]
    assert account["useful"] + account["lost"] == GPUS * (300 + 100)
    assert account["queued"] == GPUS * (10 + 7)


def test_an_attempt_that_left_no_trace_is_lost_until_the_next_resumes_from_its_checkpoint() -> None:
    life = training()
    life.later(300).end("Train", None).step()
    assert life.status["gpuSeconds"] == seconds(useful=0, queued=10, lost=300)
    life.later(60).step()
    life.run("Train").step()
    # It resumed from step 30, which the first attempt had saved, and made ten steps more of five seconds each.
    life.later(100).end("Train", told(40, 30, 50, attempt=2)).step()
    assert life.status["gpuSeconds"] == seconds(useful=40 * 5, queued=10, lost=400 - 40 * 5)


def test_a_checkpoint_that_was_only_reported_is_paid_when_an_attempt_tells_of_it() -> None:
    life = training()
    life.pods("Train")[0]["metadata"]["uid"] = "first"
    life.progress = {"progressPercentage": 75, "metrics": [{"name": "last_checkpoint_step", "value": "30"}], "podUID": "first"}
    life.step()
    assert life.status["lastCheckpoint"]["step"] == 30
    life.later(100).end("Train", told(40, 0, 80)).step()
    assert life.status["gpuSeconds"] == seconds(useful=80, queued=10, lost=20)


def test_steps_are_paid_once_however_many_attempts_come_and_go_between_two_that_tell() -> None:
    life = training()
    saved = refusal("Train", 75, "Interrupted", outcome="Interrupted", globalStep=1000, resumedFromStep=0, checkpoint=checkpoint(1, 1000))
    life.later(5000).end("Train", saved | {"trainRuntimeSeconds": 5000}).step()
    for attempt in range(2, 24):
        life.later(3600).step()
        life.run("Train").step()
        life.end("Train", refusal("Train", 69, "StoreUnavailable", attempt=attempt)).step()
    life.later(3600).step()
    life.run("Train").step()
    life.later(1000).end("Train", told(1100, 1000, 500, attempt=24)).step()
    assert life.status["gpuSeconds"]["useful"] == GPUS * (5000 + 500)


def test_an_interrupted_attempt_keeps_its_steps_and_the_next_is_paid_for_its_own_only() -> None:
    life = training()
    saved = refusal(
        "Train", 75, "Interrupted", outcome="Interrupted", **{k: told(20, 0, 60)[k] for k in ("globalStep", "resumedFromStep", "checkpoint")}
    )
    life.later(90).end("Train", saved | {"trainRuntimeSeconds": 60}).step()
    assert life.status["gpuSeconds"] == seconds(useful=60, queued=10, lost=30)
    life.step()
    life.run("Train").step()
    life.later(70).end("Train", told(40, 20, 50, attempt=2)).step()
    assert life.status["gpuSeconds"] == seconds(useful=110, queued=10, lost=50)


def test_a_trainer_that_does_not_tell_its_runtime_is_paid_by_the_time_its_pods_ran() -> None:
    life = training()
    life.later(100).end("Train", answer("Train") | {"globalStep": 40, "resumedFromStep": 0}).step()
    assert life.status["gpuSeconds"] == seconds(useful=100, queued=10, lost=0)


def test_a_finished_run_that_is_adopted_is_not_paid_more_than_it_held() -> None:
    life = training()
    life.later(3).end("Train", told(40, 0, 9000)).step()
    assert life.status["gpuSeconds"] == seconds(useful=3, queued=10, lost=0)


def test_other_stages_earn_what_their_successful_attempt_held() -> None:
    life = Life(**(SPEC | {"variants": [variant("w8a8")]}))
    life.step()
    life.succeed("Prepare").run("Train").step()
    life.end("Train", told(40, 0, 0)).step()
    life.succeed("Finalize").run("Quantize", "w8a8").step()
    life.later(50).end("Quantize", None, "w8a8").step()
    life.later(60).step()
    life.run("Quantize", "w8a8").step()
    life.later(30).succeed("Quantize", "w8a8")
    assert life.status["gpuSeconds"] == {"useful": 4 * 30, "queued": 0, "lost": 4 * 50}


def test_the_kubelets_times_count_where_it_tells_them() -> None:
    """The operator may have been down."""
    life = Life(**SPEC)
    life.step()
    life.succeed("Prepare")
    life.later(1000).end("Train", told(40, 0, 80))
    for pod in life.pods("Train"):
        (container,) = pod["status"]["containerStatuses"]
        times = {"startedAt": timestamp(START.replace(second=15)), "finishedAt": timestamp(START.replace(minute=START.minute + 2, second=5))}
        container["state"]["terminated"] |= times
    life.step()
    assert life.status["gpuSeconds"] == seconds(useful=80, queued=10, lost=30)


def test_an_account_is_not_changed_by_looking_again() -> None:
    life = training()
    life.later(100).end("Train", told(40, 0, 80)).step()
    before = life.status["gpuSeconds"]
    life.later(1000).step()
    assert life.status["gpuSeconds"] == before


@pytest.mark.parametrize(
    ("limits", "gpus"),
    [
        ({"memory": "1Gi"}, {}),
        ({"memory": "1Gi", "amd.com/gpu": "4"}, {"gpus": 8}),
        ({"hugepages-2Mi": "2Gi", "ephemeral-storage": "1Gi", "nvidia.com/mig-1g.5gb": "1"}, {"gpus": 2}),
        ({"example.com/odd": "1k"}, {}),
    ],
)
def test_gpus_are_whatever_device_the_pods_ask_for(limits: Object, gpus: Object) -> None:
    containers = [{"resources": {"limits": limits}}, {"name": "injected", "resources": {"limits": {"example.com/nic": "1"}}}]
    assert asked({"spec": {"parallelism": 2, "template": {"spec": {"containers": containers}}}}) == gpus
