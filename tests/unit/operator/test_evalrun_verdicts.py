"""What an EvalRun's status tells of the gate."""

import pytest

from tests.unit.operator.evalruns import CLAIMS, GATED, PLAIN, READY_JOB, Evaluation
from tests.unit.operator.makers import answer
from tunesmith.evalrun.status_schema import EvalRunStatus


def gated() -> Evaluation:
    return Evaluation(GATED, READY_JOB, *CLAIMS)


def test_without_baselines_and_gate_there_is_one_evaluation_and_the_verdict_is_told() -> None:
    world = Evaluation(PLAIN, READY_JOB, *CLAIMS)
    status = world.finish("NoCriteria")
    assert [entry["name"] for entry in status["stages"]] == ["Evaluate", "Compare"]
    assert (status["gate"], status["verdict"]) == ([], "NoCriteria")
    assert world.message("Ready") == "verdict NoCriteria: no gate"


def test_bounds_items_and_overlap_are_in_the_status_as_compare_told_them() -> None:
    gate = [criterion | {"minSamples": 100, "confidence": "0.9"} for criterion in GATED["gate"]]
    world = Evaluation({**GATED, "gate": gate}, READY_JOB, *CLAIMS)
    world.finish("Passed", compare=False)
    judged = {"outcome": "Inconclusive", "value": "9.1", "lower": "0.9", "upper": "1.1", "samples": 50}
    told = {
        "verdict": "Inconclusive",
        "gate": [judged | {"needed": 712}, judged],
        "overlap": [{"suite": "heldOut", "items": 50, "equal": 1, "similar": 2}],
    }
    world.later(60).end("Compare", answer("Compare") | told)
    status = world.rest()
    EvalRunStatus.model_validate(status)
    assert status["gate"][0] == gate[0] | judged | {"needed": 712}
    assert status["overlap"] == told["overlap"]
    assert world.message("Ready") == (
        "verdict Inconclusive: 0 of 2 criteria hold; heldOut/perplexity inconclusive (50 items, about 712 would decide); "
        "heldOut/perplexity inconclusive (50 items, at its limit)"
    )


@pytest.mark.parametrize(
    ("verdict", "message"),
    [
        ("Passed", "verdict Passed: 2 of 2 criteria hold"),
        ("Failed", "verdict Failed: 0 of 2 criteria hold; heldOut/perplexity failed; heldOut/perplexity failed"),
    ],
)
def test_a_verdict_is_a_result_whichever_it_is(verdict: str, message: str) -> None:
    world = gated()
    status = world.finish(verdict)
    assert status["verdict"] == verdict
    assert world.truths() == {
        "Ready": "True",
        "Reconciling": "False",
        "Stalled": "False",
        "Succeeded": "True",
        "Finished": "True",
        "Suspended": "False",
    }
    assert world.message("Ready") == message
    assert status["gate"][0] == GATED["gate"][0] | {"outcome": verdict, "value": "9.1", "baselineValue": "12.5"}
    assert status["results"] == [{"metric": "heldOut/perplexity", "tested": "9.1", "baselines": {"base": "12.5", "unquantized": "12.5"}}]
    assert status["resultsURI"].endswith("/results.json")
    assert status["reportURI"].endswith("/report.html")
    assert (status["startTime"], status["completionTime"]) == ("2026-01-02T03:04:05Z", "2026-01-02T03:08:05Z")
