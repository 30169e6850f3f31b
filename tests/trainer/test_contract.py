import json

import pytest
import yaml

from tests.trainer.bench import GOLDEN, ROOT
from tunesmith_trainer import contract
from tunesmith_trainer.runner import load

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


@pytest.mark.parametrize(
    ("block", "setting"),
    [("training", "numTrainEpochs"), ("training", "perDeviceTrainBatchSize"), ("checkpoints", "everySteps"), ("parallelism", "nodes")],
)
def test_a_setting_left_out_is_refused_since_defaults_are_the_operators(block, setting):
    value = json.loads((GOLDEN / "train.stage.json").read_text())
    del value[block][setting]
    with pytest.raises(ValueError, match=f"{setting}\n  Field required"):
        contract.TrainInput.model_validate(value)


OF_THE_OPERATOR = sorted((ROOT / "tests" / "unit" / "operator" / "golden").glob("*.yaml"))


@pytest.mark.parametrize("path", OF_THE_OPERATOR, ids=lambda path: path.stem)
def test_what_the_operator_writes_lacks_no_setting(path):
    templates = [each["spec"]["template"] for each in yaml.safe_load_all(path.read_text()) if each["kind"] in ("Job", "Deployment")]
    orders = [template["metadata"]["annotations"]["tunesmith.dev/orders"] for template in templates]
    assert orders
    for value in map(json.loads, orders):
        if value["stage"] != "Serve":
            load(value["stage"]).INPUT.model_validate(value)


def test_a_union_takes_exactly_one_member():
    with pytest.raises(ValueError, match="exactly one of fraction, dataset"):
        contract.Validation.model_validate({})
    with pytest.raises(ValueError, match="exactly one of fraction, dataset"):
        contract.Validation.model_validate({"fraction": "0.1", "dataset": {"uri": "pvc://a/b", "format": "Text"}})
