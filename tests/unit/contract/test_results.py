"""What is read of a stage's result."""

from __future__ import annotations

import json

import pytest

from tests.unit.operator.makers import answer, refusal
from tunesmith.core.objects import Object
from tunesmith_contract.results import parse_result


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


def test_a_result_that_does_not_say_of_which_attempt_it_is_is_none_but_of_serve() -> None:
    whole = answer("Train") | {"worldSize": 1}
    for name in ("attempt", "schemaVersion"):
        assert parse_result("Train", json.dumps({key: value for key, value in whole.items() if key != name})) is None
    assert parse_result("Serve", json.dumps(refusal("Serve", 65, "InvalidModel") | {"attempt": None}))


def test_a_field_that_no_status_records_may_have_any_form() -> None:
    assert parse_result("Evaluate", json.dumps(answer("Evaluate", "base") | {"items": "of a later form", "environment": 1}))
