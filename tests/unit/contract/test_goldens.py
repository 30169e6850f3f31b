"""The golden files of the stage contract (tests/contract), which docs/contract.md shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tunesmith_contract import stages
from tunesmith_contract.base import Block
from tunesmith_contract.data import Validation
from tunesmith_contract.evaluation import Harness, Suite
from tunesmith_contract.results import SUCCESSES, Failure, TrainFailure, parse_result

FOLDER = Path(__file__).parents[2] / "contract"
FAILURES: dict[str, type[Block]] = {"serve.result": Failure, "train-failed.result": TrainFailure}


def goldens(kind: str) -> list[Path]:
    """The golden files of stage inputs or results."""
    return sorted(FOLDER.glob(f"*.{kind}.json"))


def golden(name: str) -> dict[str, Any]:
    """One golden file's content."""
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return content


def parsed(value: dict[str, Any]) -> stages.Input:
    """A stage's input."""
    model: type[stages.Input] = getattr(stages, f"{value['stage']}Input")
    return model.model_validate(value)


@pytest.mark.parametrize("path", goldens("stage"), ids=lambda path: path.stem)
def test_a_golden_input_is_read_and_written_without_loss(path: Path) -> None:
    value = json.loads(path.read_text())
    assert parsed(value).dump() == value
    assert stages.stage_json(parsed(value), stages.CONTRACT_VERSION) == value


@pytest.mark.parametrize("path", goldens("result"), ids=lambda path: path.stem)
def test_a_golden_result_is_read_and_written_without_loss(path: Path) -> None:
    value = json.loads(path.read_text())
    assert (FAILURES.get(path.stem) or SUCCESSES[value["stage"]]).model_validate(value).dump() == value
    assert parse_result(value["stage"], path.read_text())


@pytest.mark.parametrize(
    "place", [("training", "learning_rate_"), ("training", "runURI"), ("method", "dpo"), ("rendezvous", "port")], ids=lambda place: ".".join(place)
)
def test_a_field_that_is_not_known_is_refused(place: tuple[str, str]) -> None:
    value = golden("train.stage")
    value[place[0]][place[1]] = "1"
    with pytest.raises(ValidationError, match=place[1]):
        parsed(value)


@pytest.mark.parametrize(
    ("block", "setting"),
    [
        ("training", "numTrainEpochs"),
        ("training", "learningRate"),
        ("training", "overrides"),
        ("checkpoints", "everySteps"),
        ("parallelism", "nodes"),
        ("parallelism", "processesPerNode"),
    ],
)
def test_a_setting_left_out_is_refused_since_defaults_are_the_operators(block: str, setting: str) -> None:
    value = golden("train.stage")
    del value[block][setting]
    with pytest.raises(ValidationError, match=rf"{block}\.{setting} must be given"):
        parsed(value)


@pytest.mark.parametrize(("setting", "value"), [("lrSchedulerType", "warmup_stable_decay"), ("seed", 2**32), ("maxLength", 1)])
def test_a_setting_out_of_its_bounds_is_refused_by_the_stage_too(setting: str, value: Any) -> None:
    given = golden("train.stage")
    given["training"][setting] = value
    with pytest.raises(ValidationError, match=setting):
        parsed(given)


@pytest.mark.parametrize("name", ["schemaVersion", "stage"])
def test_an_input_says_its_version_and_its_stage(name: str) -> None:
    value = golden("train.stage")
    del value[name]
    with pytest.raises(ValidationError, match=f"{name} must be given"):
        stages.TrainInput.model_validate(value)


def test_an_adapter_of_no_module_is_refused() -> None:
    value = golden("train.stage")
    value["adapter"]["lora"]["targetModules"] = []
    with pytest.raises(ValidationError, match="targetModules must name a module"):
        parsed(value)


def test_ports_have_the_defaults_of_the_contract() -> None:
    value = golden("serve.stage")
    del value["port"], value["readyPort"]
    served = parsed(value)
    assert isinstance(served, stages.ServeInput)
    assert (served.port, served.ready_port) == (8000, 8001)


@pytest.mark.parametrize("changes", [{"servedModelNmae": "x"}, {"runURI": "pvc://a/b"}, {"attempt": 1}, {"port": 0}])
def test_a_field_of_serve_that_is_unknown_or_out_of_range_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        parsed(golden("serve.stage") | changes)


@pytest.mark.parametrize("value", [{}, {"fraction": "0.1", "dataset": {"uri": "pvc://a/b", "format": "Text"}}])
def test_a_choice_takes_exactly_one_member(value: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="exactly one of fraction, dataset"):
        Validation.model_validate(value)


PERPLEXITY = {"dataset": {"uri": "pvc://a/b", "format": "Text"}, "maxLength": 8}


@pytest.mark.parametrize("members", [{}, {"harness": {"tasks": ["a"]}, "perplexity": PERPLEXITY}])
def test_a_suite_is_of_exactly_one_kind(members: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="exactly one of harness, perplexity"):
        Suite.model_validate({"name": "s"} | members)


@pytest.mark.parametrize("task", ["../evil.yaml", "/etc/task.yaml", "a,b", ""])
def test_a_task_is_a_name_and_never_a_path(task: str) -> None:
    with pytest.raises(ValidationError):
        Harness.model_validate({"tasks": [task]})
