"""A FineTuneJob's life as a table of states: each test is a sentence about one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.operator.finetunejobs import FAILED, SUCCEEDED, TWO_NODES, WORKING, Life, trained
from tests.unit.operator.makers import answer, checkpoint, refusal, variant
from tunesmith.api.conditions import timestamp
from tunesmith.core.objects import Object
from tunesmith.finetunejob.status import status
from tunesmith.finetunejob.status_schema import FineTuneJobStatus


def test_a_new_job_begins_with_prepare_and_pins_its_image() -> None:
    life = Life()
    life.step()
    assert life.names("Job") == ["support-bot-prepare-1-5f0c1"]
    assert life.states() == {"Prepare": "Pending", "Train": "Waiting", "Finalize": "Waiting"}
    assert life.status["resolved"]["images"] == {"trainer": "registry.example/trainer:1"}
    assert life.truths() == WORKING


def test_stages_run_one_after_another_to_the_end() -> None:
    life = Life(variants=[variant("w8a8"), variant("w4a16", "W4A16")])
    life.step()
    life.succeed("Prepare").succeed("Train").succeed("Finalize").succeed("Quantize", "w8a8").succeed("Quantize", "w4a16")
    assert [name.removeprefix("support-bot-") for name in life.created] == [
        "prepare-1-5f0c1",
        "train-1-5f0c1",
        "finalize-1-5f0c1",
        "quantize-w8a8-1-5f0c1",
        "quantize-w4a16-1-5f0c1",
    ]
    assert life.truths() == SUCCEEDED
    assert [entry["name"] for entry in life.status["artifacts"]] == ["Adapter", "Merged", "w8a8", "w4a16"]
    assert life.status["completionTime"]


def test_a_changed_operator_image_changes_nothing_that_has_begun() -> None:
    life = Life()
    life.step()
    life.config = type(life.config)(type(life.config.images)("registry.example/trainer:2", "s"))
    life.succeed("Prepare")
    assert life.job("Train")["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.example/trainer:1"


@pytest.mark.parametrize(("code", "reason"), [(64, "InvalidOverrides"), (65, "EmptyDataset")])
def test_bad_settings_or_data_fail_at_once(code: int, reason: str) -> None:
    life = Life()
    life.step()
    life.end("Prepare", refusal("Prepare", code, reason)).step()
    assert life.truths() == FAILED
    assert life.condition("Stalled")["reason"] == reason
    assert "mend it" in life.condition("Stalled")["message"]
    assert life.status["stage"] == "Failed"


def test_a_failure_of_the_program_is_retried_after_a_pause_until_retries_are_spent() -> None:
    life = Life(retries=1)
    life.step()
    life.end("Prepare", refusal("Prepare", 70, "InternalError")).step()
    assert life.truths() == WORKING
    assert life.plan.wake_after == 5
    assert life.created == ["support-bot-prepare-1-5f0c1"]
    life.later(5).step()
    assert life.created[1:] == ["support-bot-prepare-2-5f0c1"]
    life.end("Prepare", refusal("Prepare", 70, "ProcessLost")).step()
    assert life.truths() == FAILED
    assert life.condition("Ready")["reason"] == "ProcessLost"
    assert [entry["free"] for entry in life.status["attempts"]] == [False, False]


def test_retries_are_one_budget_of_all_stages() -> None:
    life = Life(retries=1)
    life.step()
    life.end("Prepare", None).step()
    life.later(60).step()
    life.succeed("Prepare").end("Train", None).step()
    assert life.truths() == FAILED


def test_a_complete_job_whose_result_was_lost_is_started_again() -> None:
    life = trained()
    life.end("Train", answer("Train")).pods("Train")[0]["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = "cut o"
    life.step()
    life.later(60).step()
    assert life.created[-1] == "support-bot-train-2-5f0c1"


def test_an_interrupted_training_goes_on_free_and_its_checkpoint_is_known() -> None:
    life = trained()
    life.end("Train", refusal("Train", 75, "Interrupted", outcome="Interrupted", checkpoint=checkpoint(1, 20))).step()
    assert life.status["retriesSpent"] == 0
    assert life.status["lastCheckpoint"]["step"] == 20
    assert life.created[-1] == "support-bot-train-2-5f0c1"


def test_a_disrupted_pod_makes_the_attempt_free_even_when_it_vanishes_before_the_job_has_failed() -> None:
    life = trained(parallelism=TWO_NODES)
    lost = life.pods("Train")[1]
    lost["metadata"]["deletionTimestamp"] = timestamp(life.now)
    lost["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": "tainted"}]
    life.step()
    life.vanish().end("Train", refusal("Train", 70, "InternalError", "a peer is gone")).step()
    assert life.status["attempts"][-1]["free"]
    assert life.status["attempts"][-1]["reason"] == "Disrupted"
    assert life.names("Job")[-1] == "support-bot-train-2-5f0c1"


def test_a_pod_that_somebody_deletes_makes_the_attempt_free_though_all_are_gone_before_the_job_has_failed() -> None:
    life = trained(parallelism=TWO_NODES)
    life.pods("Train")[1]["metadata"]["deletionTimestamp"] = timestamp(life.now)
    life.step()
    life.vanish().end("Train", None).step()
    assert (life.status["attempts"][-1]["reason"], life.status["attempts"][-1]["free"]) == ("Disrupted", True)
    assert "was deleted" in life.status["attempts"][-1]["message"]
    assert life.status["retriesSpent"] == 0


def test_a_pod_that_its_jobs_controller_deletes_because_another_failed_is_no_excuse() -> None:
    life = trained(parallelism=TWO_NODES)
    first, second = life.pods("Train")
    first["status"] = {"phase": "Failed", "containerStatuses": [{"name": "stage", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}
    second["metadata"]["deletionTimestamp"] = timestamp(life.now)
    life.step()
    assert "disruption" not in life.status["stages"][1]


def test_a_pod_on_a_node_that_never_answers_is_given_up() -> None:
    life = trained()
    life.remove("Job", life.job("Train")["metadata"]["name"]).later(59).step()
    assert not life.plan.delete
    assert life.plan.wake_after == 1
    life.later(1).step()
    assert [entry["kind"] for entry in life.plan.delete] == ["Pod"]


def test_a_job_deleted_by_hand_leads_to_the_next_attempt_once_none_of_its_pods_lives() -> None:
    life = trained()
    life.remove("Job", life.job("Train")["metadata"]["name"]).step()
    assert life.created[-1] == "support-bot-train-1-5f0c1"
    assert life.condition("Reconciling")["reason"] == "Ending"
    life.vanish().step()
    assert life.created[-1] == "support-bot-train-2-5f0c1"
    assert life.status["retriesSpent"] == 0


@pytest.mark.parametrize("label", [{"tunesmith.dev/attempt": "1x"}, {"tunesmith.dev/attempt": "0"}, {}], ids=["no number", "another attempt", "gone"])
def test_a_service_whose_attempt_label_was_edited_is_put_back_and_not_deleted(label: Object) -> None:
    life = trained(parallelism=TWO_NODES)
    labels = life.children["Service", "support-bot-train-1-5f0c1"]["metadata"]["labels"]
    del labels["tunesmith.dev/attempt"]
    labels |= label
    life.step()
    assert not life.plan.delete
    assert [entry["kind"] for entry in life.plan.apply] == ["NetworkPolicy", "Service"]
    assert life.states()["Train"] == "Running"


def test_a_job_whose_attempt_label_was_spoilt_counts_as_deleted_by_hand() -> None:
    life = trained()
    job = life.job("Train")
    job["metadata"]["labels"] = job["metadata"]["labels"] | {"tunesmith.dev/attempt": "first"}
    life.step()
    assert [entry["metadata"]["name"] for entry in life.plan.delete] == ["support-bot-train-1-5f0c1"]
    assert life.condition("Reconciling")["reason"] == "Ending"
    life.children = {key: child for key, child in life.children.items() if key[0] != "Pod"}
    life.step()
    assert life.created[-1] == "support-bot-train-2-5f0c1"


def test_a_job_that_was_not_made_before_the_operator_died_is_made_under_the_same_name() -> None:
    life = Life()
    life.owner["status"] = status(life.observed())
    life.step()
    assert life.names("Job") == ["support-bot-prepare-1-5f0c1"]


def test_a_result_is_not_believed_while_another_pod_lives() -> None:
    life = trained(parallelism=TWO_NODES)
    life.end("Train", answer("Train"))
    life.pods("Train")[1]["status"] = {"phase": "Running"}
    life.step()
    assert life.states()["Train"] == "Running"


def test_a_pod_that_only_bears_the_labels_tells_no_result() -> None:
    life = trained()
    life.end("Train", answer("Train"))
    (pod,) = life.pods("Train")
    pod["metadata"]["ownerReferences"] = [{"kind": "Job", "name": "theirs", "uid": "theirs", "controller": True}]
    life.step()
    assert life.states()["Train"] == "Waiting"
    assert life.status["attempts"][-1]["reason"] == "NoResult"


def test_the_other_pods_success_is_no_result() -> None:
    life = trained(parallelism=TWO_NODES)
    life.end("Train", answer("Train"))
    first, second = life.pods("Train")
    second["status"], first["status"] = first["status"], {"phase": "Succeeded"}
    life.step()
    assert life.states()["Train"] == "Waiting"


@pytest.mark.parametrize("kinds", [("Job",), ("Service",), ("Job", "Pod", "Service")])
def test_a_finished_stage_never_runs_again_whatever_vanishes(kinds: tuple[str, ...]) -> None:
    life = trained(parallelism=TWO_NODES, variants=[variant("w8a8")])
    for stage, part in (("Train", ""), ("Finalize", ""), ("Quantize", "w8a8")):
        life.succeed(stage, part)
        life.children = {
            key: child
            for key, child in life.children.items()
            if key[0] not in kinds or child["metadata"]["labels"].get("tunesmith.dev/stage") != stage
        }
        life.step()
        assert not [entry for entry in (*life.plan.create, *life.plan.apply) if entry["metadata"]["labels"].get("tunesmith.dev/stage") == stage]
    assert life.truths() == SUCCEEDED
    life.children.clear()
    life.step()
    assert life.plan == type(life.plan)()


@pytest.mark.parametrize("last", [answer("Prepare"), refusal("Prepare", 64, "InvalidSettings")])
def test_terminal_is_terminal(last: Object) -> None:
    life = Life()
    life.step()
    life.end("Prepare", last).step()
    for stage in ("Train", "Finalize") if last["outcome"] == "Succeeded" else ():
        life.succeed(stage)
    before = life.truths(), life.condition("Finished")["lastTransitionTime"]
    life.edit(suspend=True, retries=50).later(100)
    life.problem, life.references = {"reason": "Forbidden", "message": ""}, {}
    life.step()
    assert (life.truths(), life.condition("Finished")["lastTransitionTime"]) == before
    assert life.status["observedGeneration"] == 2


def test_services_of_superseded_attempts_are_removed_but_their_jobs_stay_for_their_logs() -> None:
    life = trained(parallelism=TWO_NODES)
    life.end("Train", refusal("Train", 75, "Interrupted", outcome="Interrupted")).step()
    life.step()
    assert life.names("Service") == ["support-bot-train-2-5f0c1"]
    assert "support-bot-train-1-5f0c1" in life.names("Job")


def test_a_status_that_was_wiped_is_found_again_from_the_jobs() -> None:
    life = Life()
    life.step()
    life.end("Prepare", refusal("Prepare", 75, "Interrupted", outcome="Interrupted")).step()
    life.run("Prepare").step()
    life.owner["status"] = {}
    for _ in range(3):
        life.step()
    assert life.created == ["support-bot-prepare-1-5f0c1", "support-bot-prepare-2-5f0c1"]
    assert life.states()["Prepare"] == "Running"


def test_nothing_begins_beside_pods_of_an_attempt_that_is_not_on_record() -> None:
    life = trained()
    life.remove("Job", life.job("Train")["metadata"]["name"])
    life.owner["status"] = {}
    for _ in range(3):
        life.step()
    assert life.names("Job") == ["support-bot-prepare-1-5f0c1"]
    assert life.condition("Reconciling")["reason"] == "Ending"
    life.vanish().step()
    assert life.names("Job")[-1] == "support-bot-train-1-5f0c1"


def test_the_attempts_list_is_bounded() -> None:
    life = Life()
    life.step()
    for _ in range(25):
        life.end("Prepare", refusal("Prepare", 75, "Interrupted", outcome="Interrupted")).step()
        life.later(300).step()
    assert [entry["attempt"] for entry in life.status["attempts"]] == list(range(6, 26))


def test_a_stage_costs_two_status_writes_and_the_end_one() -> None:
    life, written = Life(), []

    def look() -> None:
        if life.step() not in written[-1:]:
            written.append(life.status)

    for stage in ("Prepare", "Train", "Finalize"):
        look()
        look()  # the Job is there
        life.run(stage, phase="Pending")
        look()
        life.run(stage)
        look()
        life.end(stage, answer(stage))
        del life.job(stage)["status"]
        look()  # the pod has ended, and the Job controller has not said so
        life.end(stage, answer(stage))
        look()
    assert life.truths() == SUCCEEDED
    assert len(written) == 2 * 3 + 1


def test_a_job_deleted_before_it_was_on_record_is_not_made_again_while_its_pods_live() -> None:
    life = Life()
    life.step()
    life.run("Prepare", phase="Pending").step()
    assert "jobUID" not in life.status["stages"][0]
    life.remove("Job", life.names("Job")[0]).step()
    assert life.names("Job") == []
    life.vanish().step()
    assert len(life.names("Job")) == 1


def test_what_became_of_the_rows_is_shown_as_prepare_told_it_in_bounds_and_at_the_end_a_word_points_to_it() -> None:
    golden = json.loads((Path(__file__).parents[2] / "contract" / "prepare.result.json").read_text())
    told = {name: golden[name] for name in ("datasets", "validationDataset", "warnings")}
    told["datasets"][0] |= {
        "files": [{"name": f"{number}.jsonl", "rows": 1} for number in range(30)],
        "ignoredColumns": [f"c{number}" for number in range(30)],
    }
    life = Life()
    life.step()
    life.end("Prepare", answer("Prepare") | told).step()
    resolved = life.status["resolved"]
    FineTuneJobStatus.model_validate(life.status)
    assert (len(resolved["datasets"][0]["files"]), len(resolved["datasets"][0]["ignoredColumns"])) == (20, 20)
    assert resolved["datasets"][0]["cutTokens"] == 340
    assert resolved["validationDataset"]["rows"] == 39
    life.succeed("Train").succeed("Finalize")
    assert next(entry["message"] for entry in life.status["conditions"] if entry["type"] == "Ready").endswith(
        "; status.resolved.warnings has 1 on the data"
    )


def test_an_older_image_that_tells_less_of_the_rows_is_believed() -> None:
    life = Life()
    life.step()
    life.succeed("Prepare")
    assert life.status["resolved"]["datasets"] == answer("Prepare")["datasets"]
    assert "warnings" not in life.status["resolved"]
