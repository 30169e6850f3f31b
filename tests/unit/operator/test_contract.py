"""The golden files of the stage contract (tests/contract) as the operator reads and writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from tests.unit.operator.makers import answer, refusal
from tunesmith import contract
from tunesmith.core.objects import Object
from tunesmith.evalrun import api as evalrun
from tunesmith.finetunejob import api as finetunejob
from tunesmith.modeldeployment import api as modeldeployment
from tunesmith.results import RESULTS, parse_result

FOLDER = Path(__file__).parents[2] / "contract"
BLOCKS: dict[str, type[BaseModel]] = {
    "method": finetunejob.Method,
    "adapter": finetunejob.Adapter,
    "training": finetunejob.Training,
    "parallelism": finetunejob.Parallelism,
    "checkpoints": finetunejob.Checkpoints,
    "preparation": finetunejob.Preparation,
    "validation": finetunejob.Validation,
    "output": finetunejob.Output,
    "variant": finetunejob.Variant,
    "engine": modeldeployment.Engine,
}
LISTS: dict[str, type[BaseModel]] = {
    "variants": finetunejob.Variant,
    "suites": evalrun.Suite,
    "gate": evalrun.Criterion,
}


def goldens(kind: str) -> list[Path]:
    """The golden files of stage inputs or results."""
    return sorted(FOLDER.glob(f"*.{kind}.json"))


@pytest.mark.parametrize("path", goldens("stage"), ids=lambda path: path.stem)
def test_a_golden_input_is_one_that_the_operator_can_write(path: Path) -> None:
    golden = json.loads(path.read_text())
    assert contract.stage_json(getattr(contract, f"{golden['stage']}Input").model_validate(golden), contract.CONTRACT_VERSION) == golden
    for place in (golden, golden.get("run", {})):
        for name in BLOCKS.keys() & place.keys():
            BLOCKS[name].model_validate(place[name])
        for name in LISTS.keys() & place.keys():
            for item in place[name]:
                LISTS[name].model_validate(item)


@pytest.mark.parametrize("path", goldens("result"), ids=lambda path: path.stem)
def test_a_golden_result_is_understood(path: Path) -> None:
    golden = json.loads(path.read_text())
    RESULTS[golden["stage"]].model_validate(golden)
    assert parse_result(golden["stage"], path.read_text())


@pytest.mark.parametrize("stage", ["Prepare", "Train", "Finalize", "Quantize", "Evaluate", "Compare"])
def test_a_result_is_read_whatever_the_outcome(stage: str) -> None:
    good = parse_result(stage, json.dumps(answer(stage, "w8a8")))
    assert good and good.facts().keys() == answer(stage, "w8a8").keys() - {
        "schemaVersion",
        "stage",
        "attempt",
        "outcome",
        "startTime",
        "completionTime",
    }
    bad = parse_result(stage, json.dumps(refusal(stage, 64, "InvalidSettings")))
    assert bad and bad.final


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "Traceback (most recent call last):", json.dumps(answer("Prepare")), json.dumps({"outcome": "Succeeded"})],
)
def test_what_is_no_result_of_that_stage_is_none(text: str) -> None:
    assert parse_result("Train", text) is None


def test_a_success_without_what_it_made_is_not_believed() -> None:
    lacking: Object = {name: value for name, value in answer("Finalize").items() if name != "artifacts"}
    assert parse_result("Finalize", json.dumps(lacking)) is None
