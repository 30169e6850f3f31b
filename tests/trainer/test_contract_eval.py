import json

import pytest

from tests.trainer.bench import GOLDEN
from tunesmith_trainer import contract_eval
from tunesmith_trainer.result import TERMINATION_LIMIT, cut
from tunesmith_trainer.runner import load

RESULTS = {
    "Quantize": contract_eval.QuantizeResult,
    "Evaluate": contract_eval.EvaluateResult,
    "Compare": contract_eval.CompareResult,
}


def golden(name, kind):
    return json.loads((GOLDEN / f"{name.lower()}.{kind}.json").read_text())


@pytest.mark.parametrize("name", RESULTS)
def test_a_golden_stage_file_is_read_without_loss(name):
    assert load(name).INPUT.model_validate(golden(name, "stage")).dump() == golden(name, "stage")


@pytest.mark.parametrize("name", RESULTS)
def test_a_golden_result_is_read_without_loss_and_fits_into_a_termination_message(name):
    assert RESULTS[name].model_validate(golden(name, "result")).dump() == golden(name, "result")
    assert json.loads(cut(golden(name, "result"))) == golden(name, "result")


def test_a_gate_of_sixteen_conditions_reaches_the_termination_message_whole():
    value = golden("Compare", "result")
    value["gate"] = [value["gate"][0] | {"outcome": "Inconclusive", "lower": "-0.378983", "upper": "-0.404935", "needed": 12345}] * 16
    value["results"] *= 8
    message = cut(value)
    assert len(message) <= TERMINATION_LIMIT
    assert json.loads(message)["gate"] == value["gate"]


@pytest.mark.parametrize(
    "members", [{}, {"harness": {"tasks": ["a"]}, "perplexity": {"dataset": {"uri": "pvc://a/b", "format": "Text"}, "maxLength": 8}}]
)
def test_a_suite_is_of_exactly_one_kind(members):
    with pytest.raises(ValueError, match="exactly one of harness, perplexity"):
        contract_eval.Suite.model_validate({"name": "s"} | members)


@pytest.mark.parametrize("task", ["../evil.yaml", "/etc/task.yaml", "a,b", ""])
def test_a_task_is_a_name_and_never_a_path(task):
    with pytest.raises(ValueError, match="validation error"):
        contract_eval.Harness.model_validate({"tasks": [task]})
