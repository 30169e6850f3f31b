"""What a ModelDeployment tells: the model, the gate, the conditions of kstatus."""

from typing import Any

import pytest

from tests.unit.operator.deployments import (
    GATED,
    GOOD,
    OTHER,
    UNGATED,
    World,
    claim,
    evaluation,
    job,
)
from tests.unit.operator.makers import condition
from tunesmith.modeldeployment.api import references

STALLED = condition("Stalled", "True", "InvalidDataset", "row 3 has no messages")
SUCCEEDED = condition("Succeeded", "True")
PLAIN = {"model": {"uri": "pvc://models/base"}, "replicas": 1}
PLAIN_GATED = {**PLAIN, "gate": GATED["gate"]}

# name, spec, what it names, stage, Ready, Reconciling, Stalled, GatePassed, number of revisions
FIRST_LOOKS: list[tuple[str, Any, list[Any], str, str, str, str, str, int]] = [
    ("a job that does not exist is waited for", GATED, [], "WaitingForModel", "False", "True", "False", "Unknown/EvalRunNotFinished", 0),
    ("a job without its artefact is waited for", UNGATED, [job("bot", None)], "WaitingForModel", "False", "True", "False", "Unknown/NoGate", 0),
    ("a failed job stalls", UNGATED, [job("bot", None, STALLED)], "Failed", "False", "False", "True", "Unknown/NoGate", 0),
    ("a job that made no such artefact stalls", UNGATED, [job("bot", None, SUCCEEDED)], "Failed", "False", "False", "True", "Unknown/NoGate", 0),
    ("without a gate the model starts unjudged", UNGATED, [job()], "Starting", "False", "True", "False", "Unknown/NoGate", 1),
    ("an EvalRun that does not exist is waited for", GATED, [job()], "WaitingForGate", "False", "True", "False", "Unknown/EvalRunNotFinished", 0),
    (
        "an EvalRun that runs is waited for",
        GATED,
        [job(), evaluation(None)],
        "WaitingForGate",
        "False",
        "True",
        "False",
        "Unknown/EvalRunNotFinished",
        0,
    ),
    ("a passed gate lets the model start", GATED, [job(), evaluation()], "Starting", "False", "True", "False", "True/Passed", 1),
    ("a failed verdict stalls", GATED, [job(), evaluation("Failed")], "GateFailed", "False", "False", "True", "False/GateFailed", 0),
    (
        "a gate that is undecided stalls",
        GATED,
        [job(), evaluation("Inconclusive")],
        "Inconclusive",
        "False",
        "False",
        "True",
        "False/Inconclusive",
        0,
    ),
    ("a gate that asks nothing stalls", GATED, [job(), evaluation("NoCriteria")], "NoCriteria", "False", "False", "True", "False/NoCriteria", 0),
    (
        "a verdict on another digest stalls",
        GATED,
        [job(), evaluation("Passed", OTHER)],
        "GateFailed",
        "False",
        "False",
        "True",
        "False/DigestNotEvaluated",
        0,
    ),
    (
        "a failed verdict on another digest says nothing",
        GATED,
        [job(), evaluation("Failed", OTHER)],
        "GateFailed",
        "False",
        "False",
        "True",
        "False/DigestNotEvaluated",
        0,
    ),
    (
        "an EvalRun that failed stalls",
        GATED,
        [job(), evaluation(None, GOOD, "bot-eval", "", STALLED)],
        "Failed",
        "False",
        "False",
        "True",
        "Unknown/DependencyFailed",
        0,
    ),
    ("a claim that does not exist is waited for", PLAIN, [], "WaitingForModel", "False", "True", "False", "Unknown/NoGate", 0),
    ("a path is served without a digest when nothing judges it", PLAIN, [claim()], "Starting", "False", "True", "False", "Unknown/NoGate", 1),
    (
        "a judged path waits for its EvalRun",
        PLAIN_GATED,
        [claim(), evaluation(None)],
        "WaitingForGate",
        "False",
        "True",
        "False",
        "Unknown/EvalRunNotFinished",
        0,
    ),
    (
        "a judged path is served",
        PLAIN_GATED,
        [claim(), evaluation("Passed", GOOD, "bot-eval", "pvc://models/base")],
        "Starting",
        "False",
        "True",
        "False",
        "True/Passed",
        1,
    ),
    ("a verdict on another path stalls", PLAIN_GATED, [claim(), evaluation()], "GateFailed", "False", "False", "True", "False/DigestNotEvaluated", 0),
]


@pytest.mark.parametrize(
    ("name", "spec", "named", "stage", "ready", "reconciling", "stalled", "gate", "revisions"), FIRST_LOOKS, ids=[row[0] for row in FIRST_LOOKS]
)
def test_first_look(
    name: str, spec: Any, named: list[Any], stage: str, ready: str, reconciling: str, stalled: str, gate: str, revisions: int
) -> None:
    world = World(spec, *named)
    status = world.step()
    assert status["stage"] == stage
    told = {kind: text.split("/")[0] for kind, text in world.told().items()}
    assert (told["Ready"], told["Reconciling"], told["Stalled"], world.told()["GatePassed"]) == (ready, reconciling, stalled, gate)
    assert len(status["revisions"]) == len(world.deployments()) == revisions


def test_a_failed_gate_names_the_criteria_that_failed_with_their_numbers() -> None:
    world = World(GATED, job(), evaluation("Failed"))
    world.step()
    assert world.message("Stalled") == "EvalRun bot-eval: knowledge/mmlu/acc is 0.41, must have min 0.45"


def test_an_undecided_gate_says_what_would_decide_it() -> None:
    world = World(GATED, job(), evaluation("Inconclusive"))
    world.step()
    message = world.message("Stalled")
    assert message == world.message("GatePassed")
    assert message.startswith("EvalRun bot-eval could not decide: measure more items")
    assert "knowledge/mmlu/acc is 0.41, must have min 0.45: between 0.32 and 0.5 by 100 items, about 900 would decide" in message


def test_an_evalrun_without_a_gate_opens_none_whatever_a_release_before_called_it() -> None:
    before = evaluation("Passed")
    before["spec"].pop("gate")
    world = World(GATED, job(), before)
    world.step()
    assert (world.told()["GatePassed"], world.revisions()) == ("False/NoCriteria", {})
    assert "name one with a `gate`" in world.message("GatePassed")


@pytest.mark.parametrize("verdict", ["NoCriteria", "Inconclusive"])
def test_what_serves_by_a_recorded_verdict_goes_on_and_another_revision_waits(verdict: str) -> None:
    world = World(GATED, job(), evaluation())
    world.step()
    (name,) = world.revisions()
    world.ready(name)
    world.step()
    world.step()
    world.refer(evaluation(verdict))
    world.step()
    assert (world.revisions(), world.told()["Ready"], world.told()["GatePassed"]) == ({name: "Active"}, "True/Serving", "True/Passed")
    world.change(engine={"vllm": {"maxModelLen": 64}})
    world.step()
    assert (world.revisions(), world.told()["Ready"], world.told()["Stalled"]) == ({name: "Active"}, "True/Serving", f"True/{verdict}")


def test_two_evalruns_must_both_pass_and_a_failure_is_told_before_a_wait() -> None:
    both = {**GATED, "gate": {"evalRunRefs": [{"name": "first"}, {"name": "second"}]}}
    world = World(both, job(), evaluation(None, name="first"), evaluation("Failed", name="second"))
    world.step()
    assert world.told()["GatePassed"] == "False/GateFailed"
    world.refer(evaluation(name="first"))
    world.refer(evaluation(name="second"))
    world.step()
    assert world.told()["GatePassed"] == "True/Passed"


def test_when_all_pods_are_ready_it_serves() -> None:
    world = World({**GATED, "replicas": 2}, job(), evaluation())
    world.step()
    name = world.named("Candidate")
    world.ready(name, 1)
    assert world.step()["stage"] == "Starting"
    world.ready(name, 2)
    status = world.step()
    assert (status["stage"], status["replicas"], status["readyReplicas"]) == ("Serving", 2, 2)
    assert status["url"] == "http://support-bot.team-a.svc.cluster.local/v1"
    assert world.told() == {"Ready": "True/Serving", "Reconciling": "False/Serving", "Stalled": "False/Serving", "GatePassed": "True/Passed"}


def test_the_scale_selector_names_the_active_revision_and_is_never_empty() -> None:
    world = World(GATED)
    assert world.step()["selector"] == f"tunesmith.dev/uid={world.owner['metadata']['uid']}"
    world.refer(job())
    world.refer(evaluation())
    name = world.serve()
    assert world.owner["status"]["selector"].endswith(f",tunesmith.dev/revision={name}")


def test_a_second_look_with_nothing_changed_is_the_same() -> None:
    world = World(GATED, job(), evaluation())
    world.serve()
    before = world.step()
    world.wait(1000)
    assert world.step() == before


def test_scaled_to_zero_is_done() -> None:
    world = World(GATED, job(), evaluation())
    name = world.serve()
    world.change(replicas=0)
    world.step()
    world.ready(name, 0)
    status = world.step()
    assert (status["stage"], world.told()["Ready"]) == ("ScaledToZero", "True/ScaledToZero")


def test_a_judged_path_pins_the_digest_that_was_evaluated() -> None:
    world = World(PLAIN_GATED, claim(), evaluation("Passed", GOOD, "bot-eval", "pvc://models/base"))
    assert world.step()["revisions"][0]["digest"] == GOOD


def test_a_write_that_a_person_must_mend_is_told() -> None:
    world = World(GATED, job(), evaluation())
    world.serve()
    world.problem = {"reason": "NameConflict", "message": "Service support-bot belongs to another"}
    world.step()
    assert (world.told()["Stalled"], world.told()["Ready"]) == ("True/NameConflict", "True/Serving")


def test_an_unscheduled_pod_tells_what_it_waits_for() -> None:
    world = World(UNGATED, job())
    world.step()
    name = world.named("Candidate")
    world.unready(name)
    world.pods[name]["status"] = {
        "phase": "Pending",
        "conditions": [condition("PodScheduled", "False", "Unschedulable", "0/3 nodes have nvidia.com/gpu")],
    }
    world.step()
    assert world.message("Ready").endswith(f"Unschedulable: pod pod-{name}: 0/3 nodes have nvidia.com/gpu")


def test_a_serving_revision_that_loses_a_pod_stays_ready_and_says_so() -> None:
    world = World({**UNGATED, "replicas": 2}, job())
    world.step()
    name = world.named("Candidate")
    world.ready(name, 2)
    world.step()
    world.ready(name, 1)
    assert world.step()["stage"] == "Scaling"
    assert (world.told()["Ready"], world.told()["Reconciling"]) == ("True/Serving", "True/Scaling")


def test_references_are_what_the_spec_names() -> None:
    assert references(GATED) == {("FineTuneJob", "bot"), ("EvalRun", "bot-eval")}
    assert references(PLAIN) == {("PersistentVolumeClaim", "models")}
