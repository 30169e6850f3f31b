"""What an attempt of Train is given when it cannot have what the spec says: fewer rows at a time, fewer nodes; and how a lost node is let go."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.orders import orders
from tests.unit.operator.finetunejobs import Life, trained
from tests.unit.operator.makers import finetunejob, refusal, unplace
from tunesmith.api.conditions import timestamp
from tunesmith.core.objects import Object
from tunesmith.finetunejob.build import build, stage_input
from tunesmith.finetunejob.sizing import size
from tunesmith.stages.attempt import Attempt, StageKey
from tunesmith.stages.entries import SIZE
from tunesmith.workload import podspec
from tunesmith_contract.stages import CONTRACT_VERSION, stage_json

TRAIN = StageKey("Train")


def spec(nodes: int, rows: int, accumulation: int, **parallelism: int) -> Object:
    """A spec with that batch."""
    training = {"perDeviceTrainBatchSize": rows, "gradientAccumulationSteps": accumulation}
    made: Object = finetunejob(training=training, parallelism={"nodes": nodes, "ddp": {}} | parallelism)["spec"]
    return made


@pytest.mark.parametrize(
    ("given", "limits", "expected"),
    [
        (spec(8, 4, 2), {}, (8, 4, 2)),
        (spec(8, 4, 2), {"batchSizeLimit": 2}, (8, 2, 4)),
        (spec(1, 3, 1), {"batchSizeLimit": 1}, (1, 1, 3)),
        (spec(1, 5, 2), {"batchSizeLimit": 2}, (1, 2, 5)),
        (spec(1, 7, 1), {"batchSizeLimit": 3}, (1, 1, 7)),
        (spec(8, 4, 1, minNodes=4), {"nodesLimit": 7}, (4, 4, 2)),
        (spec(8, 3, 7, minNodes=4), {"nodesLimit": 7}, (7, 3, 8)),
        (spec(8, 4, 1, minNodes=5), {"nodesLimit": 7}, None),
        (spec(8, 4, 1, minNodes=4), {"nodesLimit": 3}, None),
        (spec(6, 5, 1, minNodes=1), {"nodesLimit": 5}, (5, 3, 2)),
        (spec(2, 4, 1, minNodes=1), {"nodesLimit": 1, "batchSizeLimit": 2}, (1, 2, 4)),
        (spec(8, 4, 1), {"nodesLimit": 7}, None),
    ],
)
def test_the_global_batch_is_cut_anew_and_stays_the_same(given: Object, limits: dict[str, int], expected: tuple[int, int, int] | None) -> None:
    cut = size(given, TRAIN, limits)
    assert (tuple(cut.values()) if cut else None) == expected
    if expected:
        nodes, rows, accumulation = expected
        training = given["training"]
        whole = given["parallelism"]["nodes"] * training["perDeviceTrainBatchSize"] * training["gradientAccumulationSteps"]
        assert nodes * rows * accumulation == whole


def told(life: Life) -> Any:
    """What the newest attempt of Train was told."""
    return orders(life.job("Train"))


def batch(life: Life) -> tuple[int, int]:
    """Rows at a time and accumulation that the newest attempt was told."""
    training = told(life)["training"]
    return training["perDeviceTrainBatchSize"], training["gradientAccumulationSteps"]


def test_out_of_memory_halves_the_rows_at_a_time_until_there_is_one_and_costs_no_retries() -> None:
    life, seen = trained(retries=0), []
    digest = life.status["resolved"]["runDigest"]
    for _ in range(3):
        seen.append(batch(life))
        life.end("Train", refusal("Train", 70, "OutOfMemory")).step()
        life.step()
    assert seen == [(4, 1), (2, 2), (1, 4)]
    assert life.condition("Stalled")["reason"] == "OutOfMemory"
    assert "perDeviceTrainBatchSize is 1 already" in life.condition("Stalled")["message"]
    tried = [entry for entry in life.status["attempts"] if entry["stage"] == "Train"]
    assert [(entry["perDeviceTrainBatchSize"], entry["gradientAccumulationSteps"]) for entry in tried] == seen
    assert "the next attempt has perDeviceTrainBatchSize 2, gradientAccumulationSteps 2" in tried[0]["message"]
    assert life.status["resolved"]["runDigest"] == digest


def test_what_fitted_into_memory_is_kept_for_the_attempts_after_it() -> None:
    life = trained()
    life.end("Train", refusal("Train", 70, "OutOfMemory")).step()
    life.run("Train").end("Train", refusal("Train", 75, "Interrupted", outcome="Interrupted")).step()
    assert batch(life) == (2, 2)


ELASTIC = {"nodes": 4, "minNodes": 2, "ddp": {}}


def waiting(life: Life, without: int) -> Life:
    """The pods of the newest attempt are made; the last ones find no node."""
    life.run("Train")
    for index, pod in enumerate(life.pods("Train")):
        if index < 4 - without:
            pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "True"}]
        else:
            unplace(pod, life.now)
    life.step()
    return life


def elastic(**given: Any) -> Life:
    """A life in which Train is about to run."""
    life = Life(parallelism=ELASTIC | given, training={"perDeviceTrainBatchSize": 3, "gradientAccumulationSteps": 2})
    life.step()
    life.succeed("Prepare")
    return life


def test_an_attempt_that_finds_too_few_nodes_is_followed_by_a_smaller_one_and_that_by_a_whole_one() -> None:
    life = waiting(elastic(), without=1)
    assert life.plan.wake_after == 120
    life.later(119).step()
    assert life.names("Job")[-1] == "support-bot-train-1-5f0c1"
    life.later(1).step()
    assert life.names("Job") == ["support-bot-prepare-1-5f0c1"]
    life.step()
    assert life.condition("Reconciling")["reason"] == "Ending"
    life.vanish().step()
    assert life.job("Train")["spec"]["parallelism"] == 3
    assert told(life)["rendezvous"]["nodes"] == told(life)["parallelism"]["nodes"] == 3
    assert batch(life) == (2, 4)
    ended = life.status["attempts"][-1]
    assert (ended["reason"], ended["free"], ended["nodes"]) == ("Unschedulable", True, 4)
    assert "only 3 of its pods found a node within 120 s" in ended["message"]
    life.run("Train").end("Train", refusal("Train", 75, "Interrupted", outcome="Interrupted")).step()
    assert (life.status["attempts"][-1]["nodes"], life.job("Train")["spec"]["parallelism"]) == (3, 4)
    assert batch(life) == (3, 2)


def test_resuming_asks_for_all_nodes_again() -> None:
    life = waiting(elastic(), without=2)
    life.later(120).step()
    life.vanish().step()
    assert life.job("Train")["spec"]["parallelism"] == 2
    life.edit(suspend=True).step()
    life.vanish().step()
    life.edit(suspend=False).step()
    assert life.job("Train")["spec"]["parallelism"] == 4


@pytest.mark.parametrize(("given", "without"), [({}, 3), ({"minNodes": 4}, 1), ({"minNodes": 3}, 2)])
def test_an_attempt_waits_on_where_no_smaller_one_is_allowed(given: dict[str, int], without: int) -> None:
    life = waiting(elastic(**given), without)
    life.later(500).step()
    assert life.names("Job")[-1] == "support-bot-train-1-5f0c1"
    assert life.condition("Reconciling")["reason"] == "Unschedulable"


def test_a_job_that_a_queue_holds_is_not_taken_for_one_that_finds_no_nodes() -> None:
    life = waiting(elastic(), without=1)
    life.job("Train")["spec"]["suspend"] = True
    life.later(500).step()
    assert life.condition("Reconciling")["reason"] == "Ending"
    assert "ending" not in life.status["stages"][1]


def test_the_operator_dying_between_its_record_and_the_deletion_loses_nothing() -> None:
    life = waiting(elastic(), without=1).later(120)
    life.owner["status"] = json.loads(json.dumps(life._status(life.observed())))
    life.step()
    life.vanish().step()
    assert life.job("Train")["spec"]["parallelism"] == 3


def test_a_status_that_was_wiped_finds_the_smaller_attempt_again_as_it_is() -> None:
    life = waiting(elastic(), without=1).later(120)
    life.step()
    life.vanish().step()
    life.run("Train").step()
    prepared = life.status["stages"][0]
    life.owner["status"] = {"stages": [prepared], "resolved": life.status["resolved"]}
    life.step()
    train = life.status["stages"][1]
    assert train["nodes"] == 3
    assert stage_json(stage_input(life.observed(), life.status, Attempt(life.owner, TRAIN, train["attempt"])), CONTRACT_VERSION) == told(life)


@pytest.mark.parametrize("there", [True, False], ids=["its Job is there", "its Job is yet to be made"])
def test_an_attempt_that_has_no_size_on_record_gets_its_service_too(there: bool) -> None:
    life = trained(parallelism={"nodes": 2, "ddp": {}})
    job = life.job("Train")["metadata"]["name"]
    gone = [("Service", job)] if there else [key for key in life.children if key[0] != "Job" or key[1] == job]
    for key in gone:
        del life.children[key]
    (entry,) = (entry for entry in life.status["stages"] if entry["name"] == "Train")
    for name in (*SIZE, "jobUID"):
        entry.pop(name, None)
    plan = build(life.observed(), life.status)
    made_now = [made for made in (*plan.apply, *plan.create) if made["kind"] != "NetworkPolicy"]
    assert [(made["kind"], made["metadata"]["name"]) for made in made_now] == [("Service", job)] + [("Job", job)] * (not there)


def test_what_the_run_is_does_not_depend_on_how_small_its_attempts_may_be() -> None:
    prepared = []
    for parallelism in ({"nodes": 4, "ddp": {}}, ELASTIC):
        life = Life(parallelism=parallelism)
        life.step()
        prepared.append(orders(life.job("Prepare")))
    assert prepared[0] == prepared[1]


def lost(life: Life, marked: int, grace: int = 120) -> Object:
    """A pod of Train whose node was marked `marked` seconds ago, and which is deleted now."""
    pod = life.pods("Train")[0]
    conditions = [
        {"type": "Ready", "status": "False", "lastTransitionTime": timestamp(life.later(-marked).now)},
        {"type": "ContainersReady", "status": "True"},
        {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": "tainted"},
    ]
    life.later(marked)
    pod["metadata"] |= {"deletionTimestamp": timestamp(life.later(grace).now), "deletionGracePeriodSeconds": grace}
    life.later(-grace)
    pod["status"] = {"phase": "Running", "conditions": conditions}
    return pod


def test_a_pod_whose_node_does_not_answer_is_not_waited_for() -> None:
    life = trained()
    lost(life, marked=10)
    life.step()
    assert not life.plan.delete
    assert life.plan.wake_after == 5
    life.later(5).step()
    assert [entry["kind"] for entry in life.plan.delete] == ["Pod"]
    life.job("Train")["status"] = {"conditions": [{"type": "Failed", "status": "True"}]}
    life.vanish().step()
    assert life.created[-1] == "support-bot-train-2-5f0c1"
    assert life.status["attempts"][-1]["free"]


def test_a_pod_whose_node_lives_gets_all_of_its_grace_period() -> None:
    life = trained()
    lost(life, marked=10)["status"]["conditions"][0]["status"] = "True"
    life.later(149).step()
    assert not life.plan.delete
    life.later(1).step()
    assert life.plan.delete


def test_a_pod_that_waits_for_a_readiness_gate_is_not_taken_for_one_whose_node_is_silent() -> None:
    life = trained()
    conditions = {entry["type"]: entry for entry in lost(life, marked=60)["status"]["conditions"]}
    conditions["Ready"]["reason"] = "ReadinessGatesNotReady"
    life.step()
    assert not life.plan.delete
    # The node controller flips a condition that was True, which has no reason.
    del conditions["Ready"]["reason"]
    life.step()
    assert life.plan.delete


def test_the_next_attempt_of_a_stopped_node_begins_within_85_seconds_of_the_stop() -> None:
    """The slowest that the control plane's defaults allow (observation.py); 5 s are left for its pods to start."""
    life = trained()
    stopped = life.now
    life.later(60 + podspec.TRAINING_UNREACHABLE_SECONDS)
    lost(life, marked=podspec.TRAINING_UNREACHABLE_SECONDS)
    life.job("Train")["status"] = {"conditions": [{"type": "Failed", "status": "True"}]}
    while life.step() and life.created[-1] != "support-bot-train-2-5f0c1":
        assert life.plan.wake_after or life.plan.delete
        life.vanish() if life.plan.delete else life.later(life.plan.wake_after or 0)
    assert (life.now - stopped).total_seconds() <= 85
