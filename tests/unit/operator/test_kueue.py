"""Kueue's manners: our Job goes into the queue suspended, and what Kueue does to it is survived and told."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.operator import deployments, evalruns
from tests.unit.operator.finetunejobs import FAILED, SUCCEEDED, WORKING, Life
from tests.unit.operator.makers import World, answer, checkpoint, refusal
from tunesmith.core.objects import Object
from tunesmith.workload.kueue import PRIORITY, QUEUE

SCHEDULING = {"queueName": "gpus", "cpuQueueName": "cpus", "workloadPriorityClassName": "batch"}
SPEC: Object = {"resources": {"gpus": 4}, "scheduling": SCHEDULING}


def told(world: World, stage: str, **conditions: tuple[str, str, str]) -> None:
    """Kueue writes the Workload of a stage's Job; each condition is its status, reason and message."""
    job = world.job(stage)
    name = f"job-{job['metadata']['name']}"
    reference = {"kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"], "controller": True}
    entries = [{"type": type_, "status": status, "reason": reason, "message": text} for type_, (status, reason, text) in conditions.items()]
    metadata = {"name": name, "ownerReferences": [reference]}
    world.children["Workload", name] = {"kind": "Workload", "metadata": metadata, "status": {"conditions": entries}}


def admit(world: World, stage: str) -> None:
    """Kueue admits the Job, to a flavor of its choice, and its pods run."""
    told(world, stage, QuotaReserved=("True", "QuotaReserved", "ok"), Admitted=("True", "Admitted", "The workload is admitted"))
    spec = world.job(stage)["spec"]
    spec["suspend"] = False
    spec["template"]["spec"]["nodeSelector"] = {"flavor": "spot"}
    world.run(stage)


def evict(world: World, stage: str) -> None:
    """Kueue takes the Job's quota: the Job controller deletes its pods, which have time to save."""
    told(
        world,
        stage,
        QuotaReserved=("False", "Pending", "Preempted to accommodate a higher priority Workload"),
        Admitted=("False", "NoReservation", "The workload has no reservation"),
        Evicted=("True", "Preempted", "Preempted to accommodate a workload"),
    )
    world.job(stage)["spec"]["suspend"] = True
    for pod in world.pods(stage):
        pod["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"


def queue(world: World, stage: str) -> Any:
    return next(entry.get("queue") for entry in world.status["stages"] if entry["name"] == stage)


def queued(**spec: Any) -> Life:
    """A life whose Train waits in its queue."""
    life = Life(**(SPEC | spec))
    life.step()
    admit(life, "Prepare")
    life.succeed("Prepare").step()
    return life


def test_a_job_is_created_suspended_in_the_queue_of_its_kind() -> None:
    life = Life(**SPEC)
    life.step()
    assert life.job("Prepare")["spec"]["suspend"] is True
    assert life.job("Prepare")["metadata"]["labels"][QUEUE] == "cpus"
    admit(life, "Prepare")
    life.succeed("Prepare")
    train = life.job("Train")
    assert train["spec"]["suspend"] is True
    assert {QUEUE: "gpus", PRIORITY: "batch"}.items() <= train["metadata"]["labels"].items()


def test_the_pods_do_not_carry_the_queue_lest_each_of_them_wait_in_it_too() -> None:
    life = queued()
    assert not {QUEUE, PRIORITY} & life.job("Train")["spec"]["template"]["metadata"]["labels"].keys()


def test_one_queue_serves_all_stages_if_no_other_is_named() -> None:
    life = Life(**(SPEC | {"scheduling": {"queueName": "gpus"}}))
    life.step()
    assert life.job("Prepare")["metadata"]["labels"][QUEUE] == "gpus"
    assert PRIORITY not in life.job("Prepare")["metadata"]["labels"]


@pytest.mark.parametrize("scheduling", [{}, {"nodeSelector": {"pool": "a"}}, {"workloadPriorityClassName": "batch"}])
def test_without_a_queue_a_job_begins_at_once(scheduling: Object) -> None:
    life = Life(scheduling=scheduling)
    life.step()
    assert "suspend" not in life.job("Prepare")["spec"]
    assert not {QUEUE, PRIORITY} & life.job("Prepare")["metadata"]["labels"].keys()


def test_every_container_asks_for_what_kueue_counts() -> None:
    life = queued()
    (container,) = life.job("Train")["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"


def test_the_queue_is_told_while_the_job_waits_in_it() -> None:
    life = queued()
    assert queue(life, "Train") == {"name": "gpus"}
    assert life.condition("Reconciling")["reason"] == "Queued"
    assert "queue gpus" in life.condition("Reconciling")["message"]
    told(life, "Train", QuotaReserved=("False", "Pending", "insufficient unused quota for nvidia.com/gpu, 2 more needed"))
    life.step()
    assert queue(life, "Train") == {
        "name": "gpus",
        "workload": "job-support-bot-train-1-5f0c1",
        "quotaReserved": False,
        "admitted": False,
        "evicted": False,
        "reason": "Pending",
        "message": "insufficient unused quota for nvidia.com/gpu, 2 more needed",
    }
    assert "2 more needed" in life.condition("Reconciling")["message"]


def test_the_comings_and_goings_of_others_in_the_queue_write_no_status() -> None:
    life = queued()
    told(life, "Train", QuotaReserved=("False", "Pending", "2 more needed"))
    before = life.step()
    told(life, "Train", QuotaReserved=("False", "Pending", "7 more needed"))
    assert life.step() == before


def test_the_moment_between_admission_and_start_writes_no_status() -> None:
    life = queued()
    told(life, "Train", QuotaReserved=("False", "Pending", "2 more needed"))
    before = life.step()
    told(life, "Train", QuotaReserved=("True", "QuotaReserved", ""), Admitted=("True", "Admitted", ""))
    assert life.step() == before
    admit(life, "Train")
    life.step()
    assert (queue(life, "Train")["admitted"], life.states()["Train"]) == (True, "Running")


def test_quota_that_waits_for_admission_checks_is_told() -> None:
    life = queued()
    told(life, "Train", QuotaReserved=("True", "QuotaReserved", "ok"), Admitted=("False", "UnsatisfiedAdmissionChecks", "waits for nodes"))
    life.step()
    assert queue(life, "Train")["quotaReserved"] is True
    assert life.condition("Reconciling")["reason"] == "Queued"
    assert "waits for nodes" in life.condition("Reconciling")["message"]


@pytest.mark.parametrize("reason", ["Inadmissible", "Misconfigured", "ExceedsMaxQuota"])
def test_an_inadmissible_queue_is_shown(reason: str) -> None:
    life = queued()
    told(life, "Train", QuotaReserved=("False", reason, "LocalQueue gpus doesn't exist"))
    life.step()
    assert life.truths() == WORKING
    assert life.condition("Reconciling")["reason"] == "QueueInadmissible"
    assert "LocalQueue gpus doesn't exist" in life.condition("Reconciling")["message"]


def test_a_queue_that_never_admits_ends_with_the_deadline_for_pending() -> None:
    life = queued(pendingDeadlineSeconds=300)
    told(life, "Train", QuotaReserved=("False", "Inadmissible", "LocalQueue gpus doesn't exist"))
    life.step()
    life.later(300).step()
    life.step()
    assert life.truths() == FAILED
    assert life.condition("Stalled")["reason"] == "PendingDeadlineExceeded"
    assert "LocalQueue gpus doesn't exist" in life.condition("Stalled")["message"]


def test_an_admitted_job_runs_as_kueue_changed_it_and_is_not_made_again() -> None:
    life = queued()
    admit(life, "Train")
    life.step()
    assert life.states()["Train"] == "Running"
    assert life.job("Train")["spec"]["template"]["spec"]["nodeSelector"] == {"flavor": "spot"}
    life.succeed("Train")
    assert life.created.count("support-bot-train-1-5f0c1") == 1


def test_an_evicted_job_saves_waits_and_runs_again_as_the_same_attempt_at_no_cost() -> None:
    life = queued()
    life.later(10)
    admit(life, "Train")
    life.step()
    evict(life, "Train")
    life.later(100).step()
    assert life.states()["Train"] == "Running"
    assert life.condition("Reconciling")["reason"] == "Ending"
    life.later(20).vanish().step()
    assert life.states()["Train"] == "Pending"
    assert life.condition("Reconciling")["reason"] == "Queued"
    assert "evicted from queue gpus" in life.condition("Reconciling")["message"]
    assert "Preempted" in life.condition("Reconciling")["message"]
    assert queue(life, "Train")["evicted"] is True
    life.later(1000)
    admit(life, "Train")
    life.step()
    assert life.states()["Train"] == "Running"
    assert queue(life, "Train")["evicted"] is False
    assert life.status["attempts"][1:] == []
    assert life.created.count("support-bot-train-1-5f0c1") == 1
    trained = {"globalStep": 40, "resumedFromStep": 25, "trainRuntimeSeconds": 30, "checkpoint": checkpoint(1, 40)}
    life.later(60).end("Train", answer("Train") | trained).step()
    (ended,) = (entry for entry in life.status["attempts"] if entry["stage"] == "Train")
    assert (ended["attempt"], ended["queuedSeconds"], ended["runningSeconds"]) == (1, 1010, 180)
    assert life.status.get("retriesSpent", 0) == 0
    # 40 steps of two seconds, on four GPUs; saving, ending and starting twice are lost.
    assert life.status["gpuSeconds"] == {"useful": 4 * 80, "queued": 4 * 1010, "lost": 4 * 100}


def test_what_took_evicted_pods_is_no_excuse_for_those_that_run_next() -> None:
    life = queued()
    admit(life, "Train")
    life.step()
    evict(life, "Train")
    for pod in life.pods("Train"):
        pod["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": "spot"}]
    life.step()
    life.vanish().step()
    admit(life, "Train")
    life.step()
    life.end("Train", refusal("Train", 70, "InternalError")).step()
    assert life.status["retriesSpent"] == 1


def test_a_job_that_waits_again_has_the_whole_time_to_wait_again() -> None:
    life = queued(pendingDeadlineSeconds=300)
    admit(life, "Train")
    life.step()
    evict(life, "Train")
    life.later(5000).vanish().step()
    assert life.plan.wake_after == 300
    life.later(299).step()
    assert life.truths() == WORKING


def test_pods_of_both_admissions_side_by_side_are_one_attempt() -> None:
    """Kueue may let a Job go on while pods that it evicted still save: the Job controller replaces them at once."""
    life = queued()
    admit(life, "Train")
    life.step()
    evict(life, "Train")
    life.step()
    (old,) = life.pods("Train")
    life.children["Pod", "old"] = old | {"metadata": old["metadata"] | {"name": "old"}}
    del life.children["Pod", old["metadata"]["name"]]
    admit(life, "Train")
    life.step()
    life.vanish().end("Train", answer("Train")).step()
    assert life.states()["Train"] == "Succeeded"
    life.succeed("Finalize") if life.job("Finalize")["spec"].get("suspend") is False else admit(life, "Finalize")
    life.succeed("Finalize")
    assert life.truths() == SUCCEEDED


def test_a_job_that_a_person_suspended_is_told_as_such() -> None:
    life = Life()
    life.step()
    life.job("Prepare")["spec"]["suspend"] = True
    life.step()
    assert life.condition("Reconciling")["reason"] == "Queued"
    assert "names no queue" in life.condition("Reconciling")["message"]


def test_an_eval_runs_jobs_wait_in_their_queues_too() -> None:
    world = evalruns.Evaluation(evalruns.BY_URI | SPEC, *evalruns.CLAIMS)
    world.step()
    assert world.job("Evaluate", "tested")["metadata"]["labels"][QUEUE] == "gpus"
    assert world.job("Evaluate", "tested")["spec"]["suspend"] is True


def test_a_deployment_stands_in_the_queue_and_its_template_does_not_say_so_itself() -> None:
    world = deployments.World(deployments.GATED | {"scheduling": {"queueName": "gpus", "workloadPriorityClassName": "serving"}})
    world.step()
    world.refer(deployments.job())
    world.refer(deployments.evaluation())
    world.step()
    (deployment,) = (child for child in world.children.values() if child["kind"] == "Deployment")
    assert {QUEUE: "gpus", PRIORITY: "serving"}.items() <= deployment["metadata"]["labels"].items()
    assert not {QUEUE, PRIORITY} & deployment["spec"]["template"]["metadata"]["labels"].keys()
