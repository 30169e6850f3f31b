"""Objects that a release before has begun: they keep its image, which refuses what it does not know."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from tests.unit.operator.corpus import RECORDED, played
from tests.unit.operator.finetunejobs import Life
from tests.unit.operator.makers import answer
from tunesmith.core.objects import Object
from tunesmith.stages.attempt import Attempt, StageKey
from tunesmith_contract.results import parse_result
from tunesmith_contract.stages import CONTRACT_VERSION, stage_json

CORPUS: Object = json.loads(RECORDED.read_text())


def same(text: str, recorded: str) -> bool:
    return recorded in (text, hashlib.sha256(text.encode()).hexdigest())


@pytest.mark.parametrize("entry", CORPUS["entries"], ids=lambda entry: entry["name"])
def test_an_object_pinned_to_an_image_of_version_1_gets_its_orders_byte_for_byte(entry: dict[str, Any]) -> None:
    made = played(entry["kind"], entry["spec"], CORPUS["answers"], entry["status"])["made"]
    assert made.keys() == entry["made"].keys()
    for name, recorded in entry["made"].items():
        assert same(made[name], recorded), made[name]


@pytest.mark.parametrize("entry", CORPUS["entries"], ids=lambda entry: entry["name"])
def test_a_new_object_has_its_children_under_the_same_names(entry: dict[str, Any]) -> None:
    assert played(entry["kind"], entry["spec"], CORPUS["answers"], None)["made"].keys() == entry["made"].keys()


def test_a_new_object_records_the_version_beside_its_image_and_keeps_it() -> None:
    life = Life()
    life.step()
    assert life.status["resolved"]["contractVersion"] == CONTRACT_VERSION
    life.owner["status"]["resolved"].pop("contractVersion")
    assert "contractVersion" not in life.step()["resolved"], "what is pinned stays as it is"


def test_a_result_with_fields_of_a_later_version_is_understood() -> None:
    later = answer("Train") | {"schemaVersion": 99, "more": {"of": "it"}}
    later["checkpoint"] = later["checkpoint"] | {"more": 1}
    told = parse_result("Train", json.dumps(later))
    assert told
    assert "more" not in told.facts()


def test_a_field_of_a_later_version_is_left_out_of_an_input() -> None:
    life = Life(resources={"gpus": 2})
    life.step()
    from tunesmith.finetunejob.build import stage_input

    life.succeed("Prepare")
    given = stage_input(life.observed(), life.status, Attempt(life.owner, StageKey("Train"), 1))
    first, second = stage_json(given, 1), stage_json(given, 2)
    assert second == {**first, "schemaVersion": 2, "gpus": 2}
