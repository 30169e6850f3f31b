"""What keeps a FineTuneJob from going on, and what is told about it: each test is a sentence about one state."""

from __future__ import annotations

import pytest

from tests.unit.operator.finetunejobs import STALLED, SUSPENDED, TWO_NODES, WORKING, Life, trained
from tests.unit.operator.makers import artifact, claim, owner, refusal, unplace
from tunesmith.core.objects import Key, Object


def test_suspend_ends_the_attempt_and_holds_only_when_no_pod_is_left_and_resume_is_free() -> None:
    life = trained()
    life.edit(suspend=True).step()
    assert [entry["kind"] for entry in life.plan.delete] == ["Job"]
    assert life.truths() == WORKING
    life.step()
    assert life.condition("Ready")["reason"] == "Suspending"
    life.vanish().step()
    assert life.truths() == SUSPENDED
    life.edit(suspend=False).step()
    assert life.created[-1] == "support-bot-train-2-5f0c1"
    assert life.truths() == WORKING
    assert life.status["retriesSpent"] == 0


def test_a_job_made_suspended_makes_nothing() -> None:
    life = Life(suspend=True)
    life.step()
    assert life.plan == type(life.plan)()
    assert life.truths() == SUSPENDED


def test_a_missing_claim_is_waited_for() -> None:
    life = Life(claim("models"))
    life.step()
    assert life.condition("Reconciling")["reason"] == "VolumeNotFound"
    assert "datasets" in life.condition("Reconciling")["message"]
    assert not life.children


def test_two_nodes_need_shared_volumes_where_training_mounts_them() -> None:
    data = [{"name": "chat", "uri": "pvc://rows/train.jsonl", "format": "Messages"}]
    life = Life(claim("models"), claim("datasets"), claim("rows", "ReadWriteOnce"), parallelism=TWO_NODES, datasets=data)
    life.step()
    assert life.truths() == WORKING
    life = Life(claim("datasets"), claim("models", "ReadWriteOnce"), parallelism=TWO_NODES)
    life.step()
    assert (life.truths(), life.status["stage"]) == (STALLED, "Stalled")
    assert life.condition("Stalled")["reason"] == "VolumeNotShared"
    assert not life.children


def test_a_model_of_another_job_must_lie_on_a_shared_volume_too() -> None:
    made = {**artifact("Merged"), "uri": "pvc://elsewhere/merged"}
    source = {"fineTuneJobRef": {"name": "first"}, "artifact": "Merged"}
    life = Life(claim("datasets"), claim("models"), claim("elsewhere", "ReadWriteOnce"), dependency(made), model=source, parallelism=TWO_NODES)
    life.step()
    assert life.condition("Stalled")["reason"] == "VolumeNotShared"
    assert "elsewhere" in life.condition("Stalled")["message"]


def test_more_than_eight_claims_are_refused() -> None:
    life = Life(datasets=[{"name": f"d{number}", "uri": f"pvc://d{number}/x.jsonl", "format": "Text"} for number in range(8)])
    life.step()
    assert life.condition("Stalled")["reason"] == "TooManyVolumes"


def dependency(*artifacts: Object, **conditions: str) -> Object:
    """A FineTuneJob that is named by another."""
    job = owner("FineTuneJob", "first", {})
    told = [{"type": kind, "status": value, "reason": "EmptyDataset", "message": "no row is left"} for kind, value in conditions.items()]
    return job | {"status": {"artifacts": list(artifacts), "conditions": told}}


@pytest.mark.parametrize(
    ("named", "truths", "reason"),
    [
        ([], WORKING, "DependencyNotReady"),
        ([dependency()], WORKING, "DependencyNotReady"),
        ([dependency(Finished="True", Stalled="True")], STALLED, "DependencyFailed"),
        ([dependency(artifact("Merged"))], WORKING, "Starting"),
    ],
)
def test_a_model_of_another_job_is_waited_for(named: list[Object], truths: Object, reason: str) -> None:
    life = Life(claim("datasets"), claim("models"), *named, model={"fineTuneJobRef": {"name": "first"}, "artifact": "Merged"})
    life.step()
    assert life.truths() == truths
    assert life.condition("Ready")["reason"] == reason


def test_jobs_that_wait_for_one_another_stall_until_one_is_made_anew() -> None:
    life = Life(claim("datasets"), claim("models"), dependency(), model={"fineTuneJobRef": {"name": "first"}, "artifact": "Merged"})
    # The other names this one, so this one is among what it names, at whatever distance.
    ours = Key("FineTuneJob", "team-a", "support-bot")
    life.references[ours] = life.owner
    life.step()
    assert life.truths() == STALLED
    assert life.condition("Stalled")["reason"] == "DependencyCycle"
    del life.references[ours]
    life.step()
    assert life.condition("Ready")["reason"] == "DependencyNotReady"


def test_a_model_once_found_stays_pinned_when_its_job_is_deleted() -> None:
    life = Life(claim("datasets"), claim("models"), dependency(artifact("Merged")), model={"fineTuneJobRef": {"name": "first"}, "artifact": "Merged"})
    life.step()
    life.references.popitem()
    life.end("Prepare", refusal("Prepare", 75, "Interrupted", outcome="Interrupted")).step()
    assert life.created[-1] == "support-bot-prepare-2-5f0c1"


def test_the_reason_of_a_pod_that_cannot_be_placed_is_told() -> None:
    life = trained()
    unplace(life.pods("Train")[0], life.now)
    life.step()
    assert life.condition("Reconciling")["reason"] == "Unschedulable"
    assert "Insufficient nvidia.com/gpu" in life.condition("Reconciling")["message"]
    assert life.states()["Train"] == "Pending"


def test_the_reason_of_an_image_that_cannot_be_pulled_is_told() -> None:
    life = trained()
    waiting = {"reason": "ImagePullBackOff", "message": "not found"}
    life.pods("Train")[0]["status"] = {"phase": "Pending", "containerStatuses": [{"name": "stage", "state": {"waiting": waiting}}]}
    life.step()
    assert life.condition("Reconciling")["reason"] == "ImagePullBackOff"


def test_a_problem_that_a_person_must_mend_is_told() -> None:
    life = Life()
    life.problem = {"reason": "NameConflict", "message": "Job x exists and belongs to another"}
    life.step()
    assert life.truths() == STALLED
    assert life.condition("Stalled")["reason"] == "NameConflict"
