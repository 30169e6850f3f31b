"""What becomes of a ModelDeployment when what it names fails, goes, comes back as another, or waits for it."""

from typing import Any

import pytest

from tests.unit.operator.deployments import GATED, GOOD, OTHER, UNGATED, World, claim, evaluation, job, uri
from tests.unit.operator.makers import condition
from tunesmith.core.objects import Object

STALLED = condition("Stalled", "True", "InvalidDataset", "row 3 has no messages")
PLAIN_GATED: Object = {"model": {"uri": "pvc://models/base"}, "gate": GATED["gate"], "replicas": 1}
ITSELF = {"modelDeploymentRef": {"name": "support-bot"}}


def serving() -> tuple[World, str]:
    """A world where the judged model serves."""
    world = World(GATED, job(), evaluation())
    return world, world.serve()


@pytest.mark.parametrize("gone", [("FineTuneJob", "bot"), ("EvalRun", "bot-eval")])
def test_what_was_read_once_may_be_deleted(gone: tuple[str, str]) -> None:
    world = World(GATED, job(), evaluation())
    world.serve()
    before = world.step()
    world.forget(*gone)
    assert world.step() == before


def test_a_job_made_anew_changes_nothing_that_serves() -> None:
    world = World(GATED, job(), evaluation())
    world.serve()
    before = world.step()
    world.refer(job("bot", OTHER))
    assert world.step() == before


def test_a_job_made_anew_is_read_again_while_its_model_was_never_served() -> None:
    world = World(GATED, job(), evaluation("Failed"))
    world.step()
    world.refer(job("bot", OTHER))
    world.refer(evaluation("Passed", OTHER))
    status = world.step()
    assert (status["stage"], status["model"]["digest"]) == ("Starting", OTHER)


def test_the_model_stays_pinned_while_its_gate_is_still_awaited() -> None:
    world = World(GATED, job(), evaluation(None))
    world.step()
    world.forget("FineTuneJob", "bot")
    status = world.step()
    assert (status["stage"], status["model"]["uri"], status["model"]["digest"]) == ("WaitingForGate", uri("bot"), GOOD)


FAILED: list[tuple[str, list[Object]]] = [
    ("FineTuneJob bot failed", [job("bot", None, STALLED), evaluation(None)]),
    ("EvalRun bot-eval failed", [job(), evaluation(None, GOOD, "bot-eval", "", STALLED)]),
]


@pytest.mark.parametrize(("words", "named"), FAILED, ids=[row[0] for row in FAILED])
def test_one_that_failed_stalls_it_until_it_is_made_anew(words: str, named: list[Object]) -> None:
    world = World(GATED, *named)
    world.step()
    assert world.told()["Stalled"] == "True/DependencyFailed"
    assert words in world.message("Stalled")
    world.refer(job())
    world.refer(evaluation())
    world.serve()
    assert (world.told()["Stalled"], world.told()["Ready"]) == ("False/Serving", "True/Serving")


@pytest.mark.parametrize(("words", "named"), FAILED, ids=[row[0] for row in FAILED])
def test_one_that_fails_later_leaves_what_serves_alone(words: str, named: list[Object]) -> None:
    world, old = serving()
    before = world.step()
    for entry in named:
        world.refer(entry)
    assert world.step() == before
    assert world.revisions() == {old: "Active"}


def test_one_deleted_before_it_was_read_is_waited_for_by_name() -> None:
    world = World(GATED, job("bot", None), evaluation(None))
    world.step()
    world.forget("FineTuneJob", "bot")
    world.step()
    assert (world.told()["Reconciling"], world.message("Ready")) == ("True/DependencyNotReady", "FineTuneJob bot does not exist")
    world.refer(job())
    world.forget("EvalRun", "bot-eval")
    world.step()
    assert (world.told()["Reconciling"], world.message("Ready")) == ("True/EvalRunNotFinished", "EvalRun bot-eval does not exist")


def test_a_job_made_anew_is_served_once_the_gate_passed_its_digest() -> None:
    world, old = serving()
    before = world.step()
    world.refer(job("bot", OTHER))
    for undecided in (evaluation(None), evaluation("Failed", OTHER), evaluation("Passed", GOOD)):
        world.refer(undecided)
        assert world.step() == before
    world.refer(evaluation("Passed", OTHER))
    status = world.step()
    assert {entry["digest"]: entry["state"] for entry in status["revisions"]} == {OTHER: "Candidate", GOOD: "Active"}
    assert world.selected() == old


def test_a_job_made_anew_is_not_served_where_nothing_judges_it() -> None:
    world = World(UNGATED, job())
    world.serve()
    before = world.step()
    world.refer(job("bot", OTHER))
    assert world.step() == before


def test_a_path_whose_files_are_others_now_is_served_once_the_gate_passed_them() -> None:
    world = World(PLAIN_GATED, claim(), evaluation("Passed", GOOD, "bot-eval", "pvc://models/base"))
    old = world.serve()
    world.refer(evaluation("Failed", OTHER, "bot-eval", "pvc://models/base"))
    world.step()
    assert world.revisions() == {old: "Active"}
    world.refer(evaluation("Passed", OTHER, "bot-eval", "pvc://models/base"))
    assert {entry["digest"] for entry in world.step()["revisions"]} == {GOOD, OTHER}


def test_other_settings_for_a_model_that_passed_need_no_new_verdict_when_its_evalrun_is_gone() -> None:
    world, old = serving()
    world.forget("EvalRun", "bot-eval")
    world.forget("FineTuneJob", "bot")
    world.change(engine={"vllm": {"maxModelLen": 64}})
    status = world.step()
    assert sorted(world.revisions().values()) == ["Active", "Candidate"]
    assert {entry["verdict"] for entry in status["revisions"]} == {"Passed"}
    assert world.revisions()[old] == "Active"


def test_other_settings_are_judged_again_where_the_evalrun_was_made_anew() -> None:
    world, old = serving()
    world.refer(evaluation(None))
    world.change(engine={"vllm": {"maxModelLen": 64}})
    world.step()
    assert (world.revisions(), world.told()["Reconciling"]) == ({old: "Active"}, "True/EvalRunNotFinished")
    world.refer(evaluation("Failed"))
    world.step()
    assert (world.revisions(), world.told()["Stalled"], world.told()["Ready"]) == ({old: "Active"}, "True/GateFailed", "True/Serving")


@pytest.mark.parametrize("verdicts", [(GOOD, OTHER), (OTHER, GOOD)], ids=["the second", "the first"])
def test_every_evalrun_of_the_gate_must_be_about_that_very_digest(verdicts: tuple[str, str]) -> None:
    gate = {"evalRunRefs": [{"name": "first"}, {"name": "second"}]}
    runs = [evaluation("Passed", digest, name) for digest, name in zip(verdicts, ("first", "second"), strict=True)]
    world = World({**GATED, "gate": gate}, job(), *runs)
    world.step()
    assert (world.told()["GatePassed"], world.told()["Stalled"]) == ("False/DigestNotEvaluated", "True/DigestNotEvaluated")
    wrong = "second" if verdicts[1] == OTHER else "first"
    assert world.message("Stalled") == f"EvalRun {wrong} evaluated {OTHER} at {uri('bot')}; the model is {GOOD} at {uri('bot')}"
    assert world.revisions() == {}


def cyclic(run: Object, **spec: Any) -> Object:
    """`run`, unfinished, with another model or baselines."""
    return {**run, "spec": {**run["spec"], **spec}}


@pytest.mark.parametrize("spec", [{"model": ITSELF}, {"baselines": [{"name": "served", "model": ITSELF}]}], ids=["model", "baseline"])
def test_a_gate_that_waits_for_itself_stalls_and_goes_on_when_it_is_exchanged(spec: Any) -> None:
    world = World(GATED, job(), cyclic(evaluation(None), **spec), evaluation(name="other"))
    world.step()
    assert (world.told()["Stalled"], world.told()["GatePassed"]) == ("True/GateCycle", "Unknown/GateCycle")
    assert "EvalRun bot-eval waits for this ModelDeployment to serve" in world.message("Stalled")
    world.change(gate={"evalRunRefs": [{"name": "other"}]})
    world.serve()
    assert world.told()["Ready"] == "True/Serving"


def test_a_gate_that_waits_for_itself_is_told_before_the_model_is_there() -> None:
    world = World(GATED, job("bot", None), cyclic(evaluation(None), model=ITSELF))
    world.step()
    assert world.told()["Stalled"] == "True/GateCycle"


def test_an_evalrun_that_has_its_models_waits_for_nobody() -> None:
    # The deployment that it found them at was deleted; this is another of the same name.
    run = cyclic(evaluation(None), baselines=[{"name": "served", "model": ITSELF}])
    run["status"]["evaluated"] = {"uri": uri("bot"), "digest": GOOD}
    world = World(GATED, job(), run)
    world.step()
    assert world.told()["Reconciling"] == "True/EvalRunNotFinished"


def test_gates_that_wait_for_one_another_stall() -> None:
    ours = cyclic(evaluation(None), model={"modelDeploymentRef": {"name": "rival"}})
    rival = {"kind": "ModelDeployment", "metadata": {"name": "rival"}, "spec": {"gate": {"evalRunRefs": [{"name": "rival-eval"}]}}}
    theirs = cyclic(evaluation(None, name="rival-eval"), model=ITSELF)
    world = World(GATED, job(), ours, rival, theirs)
    world.step()
    assert world.told()["Stalled"] == "True/GateCycle"
    other = World(UNGATED, job())
    world.refer({**rival, "status": other.step()})
    world.step()
    assert world.told()["Stalled"] == "True/GateCycle", "a candidate does not serve"
    other.serve()
    world.refer({**rival, "status": other.step()})
    world.step()
    assert world.told()["Reconciling"] == "True/EvalRunNotFinished"


def test_what_serves_already_may_be_compared_with_by_the_gate_of_its_successor() -> None:
    world = World(UNGATED, job())
    world.serve()
    world.refer(cyclic(evaluation(None), baselines=[{"name": "served", "model": ITSELF}]))
    world.change(gate=GATED["gate"])
    world.step()
    assert world.told()["Reconciling"] == "True/EvalRunNotFinished"
