"""What all models of the contract are made of."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from tunesmith_contract.base import Block, OneOf, decided, filled, json_name, left_out, since, written


class Inner(Block):
    """A block in a block."""

    steps: int = Field(10, description="Steps.")
    names: list[str] = Field(["all"])
    scale: int | None = decided("Default: 2 steps.")


class Outer(Block):
    """A block with a list of blocks."""

    parts: list[Inner] | None = None


class Choice(OneOf):
    """A choice with something beside it."""

    beside: ClassVar[tuple[str, ...]] = ("name",)

    name: str
    one: Inner | None = None
    run_uri: str | None = since(2)
    kind: Literal["a"] | None = None


def test_json_names_spell_uri_in_capitals() -> None:
    assert [json_name(name) for name in ("uri", "run_uri", "max_steps", "uri_count")] == ["uri", "runURI", "maxSteps", "uriCount"]


def test_defaults_are_filled_in_at_every_depth_of_what_is_given() -> None:
    assert filled(Inner, {}) == {"steps": 10, "names": ["all"]}
    assert filled(Choice, {"name": "x", "one": {"steps": 1}}) == {"name": "x", "one": {"steps": 1, "names": ["all"]}}
    assert filled(Choice, {"name": "x"}) == {"name": "x"}
    assert filled(Outer, {"parts": [{}]}) == {"parts": [{}]}, "what a list holds is not known by one name"


def test_a_default_that_was_filled_in_and_changed_changes_no_other() -> None:
    filled(Inner, {})["names"].append("more")
    assert filled(Inner, {})["names"] == ["all"]


def test_a_choice_writes_its_rule_from_its_fields_and_holds_to_it() -> None:
    (rule,) = Choice.model_json_schema()["x-kubernetes-validations"]
    assert rule["message"] == "must have exactly one of `one`, `runURI`, `kind`"
    for given in ({}, {"one": {}, "kind": "a"}):
        with pytest.raises(ValidationError, match="exactly one of one, runURI, kind"):
            Choice.model_validate({"name": "x"} | given)


def test_what_is_left_to_a_default_is_found_at_every_depth() -> None:
    choice = Choice(name="x", one=Inner.model_validate({"steps": 1}))
    assert list(left_out([choice], "choices")) == ["choices[0].one.names", "choices[0].one.scale"]


def test_a_field_is_written_if_it_is_wanted_and_there() -> None:
    choice: dict[str, Any] = written(Choice(name="x", run_uri="pvc://a"), lambda field: field.json_schema_extra is None)
    assert choice == {"name": "x"}
