import json

import pytest
import yaml

from tests.trainer.bench import GOLDEN, ROOT
from tunesmith_trainer.result import TERMINATION_LIMIT, cut
from tunesmith_trainer.runner import STAGES, load


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_takes_its_golden_input(name):
    value = json.loads((GOLDEN / f"{name.lower()}.stage.json").read_text())
    assert load(name).INPUT.model_validate(value).stage == name


@pytest.mark.parametrize("name", STAGES)
def test_a_golden_result_fits_into_a_termination_message(name):
    value = json.loads((GOLDEN / f"{name.lower()}.result.json").read_text())
    assert json.loads(cut(value)) == value


OF_THE_OPERATOR = sorted((ROOT / "tests" / "unit" / "operator" / "golden").glob("*.yaml"))


@pytest.mark.parametrize("path", OF_THE_OPERATOR, ids=lambda path: path.stem)
def test_what_the_operator_writes_lacks_no_setting(path):
    templates = [each["spec"]["template"] for each in yaml.safe_load_all(path.read_text()) if each["kind"] in ("Job", "Deployment")]
    orders = [template["metadata"]["annotations"]["tunesmith.dev/orders"] for template in templates]
    assert orders
    for value in map(json.loads, orders):
        if value["stage"] != "Serve":
            load(value["stage"]).INPUT.model_validate(value)


def test_a_gate_of_sixteen_conditions_reaches_the_termination_message_whole():
    value = json.loads((GOLDEN / "compare.result.json").read_text())
    value["gate"] = [value["gate"][0] | {"outcome": "Inconclusive", "lower": "-0.378983", "upper": "-0.404935", "needed": 12345}] * 16
    value["results"] *= 8
    message = cut(value)
    assert len(message) <= TERMINATION_LIMIT
    assert json.loads(message)["gate"] == value["gate"]
