import json

import pytest

from tests.trainer.bench import GOLDEN
from tunesmith_trainer import contract
from tunesmith_trainer.stage import load

RESULTS = {
    "Prepare": contract.PrepareResult,
    "Train": contract.TrainResult,
    "Finalize": contract.FinalizeResult,
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_golden_stage_file_is_read_without_loss(name):
    value = json.loads((GOLDEN / f"{name.lower()}.stage.json").read_text())
    assert load(name).INPUT.model_validate(value).dump() == value


@pytest.mark.parametrize("name", RESULTS)
def test_a_golden_result_is_read_without_loss(name):
    value = json.loads((GOLDEN / f"{name.lower()}.result.json").read_text())
    assert RESULTS[name].model_validate(value).dump() == value


def test_a_golden_failure_is_read_without_loss():
    value = json.loads((GOLDEN / "train-failed.result.json").read_text())
    assert contract.Failure.model_validate(value).dump() == value


def test_an_unknown_field_is_refused():
    value = json.loads((GOLDEN / "train.stage.json").read_text())
    value["training"]["learning_rate_"] = "1"
    with pytest.raises(ValueError, match="learning_rate_"):
        contract.TrainInput.model_validate(value)


def test_a_union_takes_exactly_one_member():
    with pytest.raises(ValueError, match="exactly one of fraction, dataset"):
        contract.Validation.model_validate({})
    with pytest.raises(ValueError, match="exactly one of fraction, dataset"):
        contract.Validation.model_validate({"fraction": "0.1", "dataset": {"uri": "pvc://a/b", "format": "Text"}})
