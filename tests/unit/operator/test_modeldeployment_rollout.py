"""How revisions of a ModelDeployment replace one another."""

import json
from typing import Any

import pytest

from tests.orders import orders
from tests.unit.operator.deployments import GATED, OTHER, UNGATED, World, evaluation, job

NEW_MODEL = {"fineTuneJobRef": {"name": "bot2"}, "artifact": "Merged"}
NEW_GATE = {"evalRunRefs": [{"name": "bot2-eval"}]}
MISMATCH = {
    "schemaVersion": 1,
    "stage": "Serve",
    "attempt": 0,
    "outcome": "Failed",
    "startTime": "2026-01-01T00:00:00Z",
    "completionTime": "2026-01-01T00:00:01Z",
    "exitCode": 65,
    "reason": "DigestMismatch",
    "message": "model.safetensors has changed",
}


def new_model(verdict: str = "Passed") -> list[Any]:
    """A second job and its EvalRun."""
    return [job("bot2", OTHER), evaluation(verdict, OTHER, "bot2-eval")]


def serving_world() -> tuple[World, str]:
    """A world where the first model serves."""
    world = World(GATED, job(), evaluation(), *new_model())
    return world, world.serve()


def rolled_out() -> tuple[World, str, str]:
    """A world where the second model has just taken over from the first."""
    world, old = serving_world()
    world.change(model=NEW_MODEL, gate=NEW_GATE)
    world.step()
    new = world.named("Candidate")
    world.ready(new)
    world.step()
    return world, old, new


def test_it_is_not_ready_before_the_service_is_there_that_clients_ask() -> None:
    world = World(GATED, job(), evaluation())
    world.step()
    name = world.named("Candidate")
    world.ready(name)
    # The operator died after it had made the Deployment.
    del world.children["Service", "support-bot"]
    world.step()
    assert (world.revisions(), world.told()["Ready"], world.selected()) == ({name: "Candidate"}, "False/Starting", name)
    world.step()
    assert (world.revisions(), world.told()["Ready"]) == ({name: "Active"}, "True/Serving")


def test_a_new_model_starts_beside_the_old_one_which_serves_on() -> None:
    world, old = serving_world()
    world.change(model=NEW_MODEL, gate=NEW_GATE)
    status = world.step()
    assert sorted(world.revisions().values()) == ["Active", "Candidate"]
    assert (world.selected(), status["stage"]) == (old, "Starting")
    assert (world.told()["Ready"], world.told()["Reconciling"]) == ("True/Serving", "True/Starting")


def test_the_service_is_switched_when_all_pods_of_the_new_revision_are_ready() -> None:
    world, old, new = rolled_out()
    assert world.revisions() == {new: "Active", old: "Draining"}
    assert (world.selected(), world.told()["Ready"]) == (new, "True/Serving")
    assert world.plan.wake_after is None


def test_the_old_revision_goes_thirty_seconds_after_the_switch_was_seen() -> None:
    world, old, new = rolled_out()
    world.step()
    assert world.plan.wake_after == 30
    world.wait(29)
    world.step()
    assert (len(world.deployments()), world.plan.wake_after) == (2, 1)
    world.wait(1)
    world.step()
    assert world.revisions() == {new: "Active"}
    assert world.deployments() == [world.child(new)]
    assert old not in str(sorted(world.children))


def test_the_drain_does_not_begin_before_the_switch_is_seen() -> None:
    world, old, new = rolled_out()
    world.children["Service", "support-bot"]["spec"]["selector"]["tunesmith.dev/revision"] = old
    world.wait(3600)
    world.step()
    assert (world.revisions(), world.selected()) == ({new: "Active", old: "Draining"}, new)


def test_a_new_model_whose_gate_failed_is_never_started_and_the_old_one_serves_on() -> None:
    world, old = serving_world()
    world.refer(evaluation("Failed", OTHER, "bot2-eval"))
    world.change(model=NEW_MODEL, gate=NEW_GATE)
    world.step()
    assert world.revisions() == {old: "Active"}
    assert (world.told()["GatePassed"], world.told()["Stalled"]) == ("False/GateFailed", "True/GateFailed")
    assert world.told()["Ready"].startswith("True/")


def test_replicas_reach_the_serving_revision_while_the_gate_of_the_next_is_closed() -> None:
    world, old = serving_world()
    world.refer(evaluation("Failed", OTHER, "bot2-eval"))
    world.change(model=NEW_MODEL, gate=NEW_GATE, replicas=3)
    world.step()
    deployment = world.children["Deployment", world.child(old)]
    assert deployment["spec"]["replicas"] == 3
    assert "/bot/merged" in orders(deployment)["model"]["uri"]


def test_a_change_of_replicas_makes_no_revision() -> None:
    world, old = serving_world()
    world.change(replicas=2)
    world.step()
    assert world.revisions() == {old: "Active"}
    assert world.children["Deployment", world.child(old)]["spec"]["replicas"] == 2


@pytest.mark.parametrize(
    "changed", [{"engine": {"vllm": {"maxModelLen": 512}}}, {"resources": {"gpus": 1}}, {"scheduling": {"nodeSelector": {"zone": "a"}}}]
)
def test_a_change_of_what_determines_the_pods_makes_a_revision(changed: dict[str, Any]) -> None:
    world, _ = serving_world()
    world.change(**changed)
    world.step()
    assert sorted(world.revisions().values()) == ["Active", "Candidate"]


def test_an_operator_upgrade_rolls_nothing() -> None:
    world, old = serving_world()
    before = world.children["Deployment", world.child(old)]
    world.image = "registry.example/serving:2"
    world.step()
    assert world.revisions() == {old: "Active"}
    assert world.children["Deployment", world.child(old)] == before


def test_a_new_revision_takes_the_new_image() -> None:
    world, _ = serving_world()
    world.image = "registry.example/serving:2"
    world.change(engine={"vllm": {"maxModelLen": 512}})
    status = world.step()
    assert {entry["image"][-1]: entry["state"] for entry in status["revisions"]} == {"1": "Active", "2": "Candidate"}


def test_a_failing_candidate_is_made_anew_with_a_new_image() -> None:
    world = World(UNGATED, job())
    world.step()
    failing = world.named("Candidate")
    world.unready(failing, restartCount=4, lastState={"terminated": {"exitCode": 1, "message": "no such symbol"}})
    world.step()
    world.image = "registry.example/serving:2"
    world.step()
    assert world.named("Candidate") != failing


# name, the container's status, reason, part of the message
FAILURES: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "changed weights are told at the first termination",
        {"lastState": {"terminated": {"exitCode": 65, "message": json.dumps(MISMATCH)}}},
        "DigestMismatch",
        "has changed",
    ),
    (
        "an engine that keeps dying is told with its last words",
        {"restartCount": 2, "state": {"terminated": {"exitCode": 1, "message": "CUDA error"}}},
        "EngineFailed",
        "CUDA error",
    ),
    (
        "an engine killed for memory is told",
        {"restartCount": 3, "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}},
        "OutOfMemory",
        "raise `resources.memory`",
    ),
]


@pytest.mark.parametrize(("name", "container", "reason", "words"), FAILURES, ids=[row[0] for row in FAILURES])
def test_a_candidate_that_never_gets_ready_stalls_and_the_old_one_serves_on(name: str, container: dict[str, Any], reason: str, words: str) -> None:
    world, old = serving_world()
    world.change(model=NEW_MODEL, gate=NEW_GATE)
    world.step()
    world.unready(world.named("Candidate"), **container)
    world.step()
    assert (world.told()["Stalled"], world.selected()) == (f"True/{reason}", old)
    assert world.told()["Ready"] == "True/Serving"
    for kind in ("Ready", "Stalled"):
        assert words in world.message(kind)
        assert f"revision {old} serves" in world.message(kind)


def test_with_nothing_serving_a_failing_candidate_leaves_ready_false() -> None:
    world = World(UNGATED, job())
    world.step()
    world.unready(world.named("Candidate"), lastState={"terminated": {"exitCode": 65, "message": json.dumps(MISMATCH)}})
    world.step()
    assert (world.told()["Ready"], world.told()["Reconciling"]) == ("False/DigestMismatch", "False/DigestMismatch")


def test_one_crash_is_not_a_failure_yet() -> None:
    world = World(UNGATED, job())
    world.step()
    world.unready(world.named("Candidate"), restartCount=1, lastState={"terminated": {"exitCode": 1}})
    assert world.step()["stage"] == "Starting"


def test_a_failing_candidate_goes_when_the_spec_changes_back() -> None:
    world, old = serving_world()
    before = dict(world.owner["spec"])
    world.change(model=NEW_MODEL, gate=NEW_GATE)
    world.step()
    world.unready(world.named("Candidate"), lastState={"terminated": {"exitCode": 65, "message": json.dumps(MISMATCH)}})
    world.step()
    world.change(**before)
    status = world.step()
    assert (world.revisions(), status["stage"]) == ({old: "Active"}, "Serving")
    assert world.deployments() == [world.child(old)]


def test_a_third_model_replaces_the_candidate_not_the_active_one() -> None:
    world, old = serving_world()
    world.change(model=NEW_MODEL, gate=NEW_GATE)
    world.step()
    second = world.named("Candidate")
    world.change(engine={"vllm": {"maxModelLen": 64}})
    world.step()
    assert world.revisions()[old] == "Active"
    assert world.named("Candidate") != second
    assert len(world.deployments()) == 2


def test_a_revision_on_its_way_out_comes_back_without_a_new_start() -> None:
    world, old, new = rolled_out()
    world.step()
    world.change(model=GATED["model"], gate=GATED["gate"])
    world.step()
    assert (world.revisions(), world.selected()) == ({old: "Active", new: "Draining"}, old)


def test_a_third_revision_waits_until_the_first_has_gone() -> None:
    world, old, new = rolled_out()
    world.step()
    world.change(engine={"vllm": {"maxModelLen": 64}})
    world.step()
    third = world.named("Candidate")
    world.ready(third)
    world.step()
    assert world.revisions() == {third: "Candidate", new: "Active", old: "Draining"}
    world.wait(30)
    world.step()
    world.step()
    assert world.revisions() == {third: "Active", new: "Draining"}


def test_a_candidate_whose_gate_was_exchanged_is_judged_again() -> None:
    world = World(GATED, job(), evaluation())
    world.step()
    world.change(gate={"evalRunRefs": [{"name": "stricter"}]})
    world.step()
    assert (world.revisions(), world.deployments()) == ({}, [])
    assert world.children == {}


def test_a_deployment_deleted_by_hand_comes_back() -> None:
    world, old = serving_world()
    del world.children["Deployment", world.child(old)]
    world.step()
    assert world.deployments() == [world.child(old)]
