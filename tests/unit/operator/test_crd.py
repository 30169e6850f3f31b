"""The CRDs: checked in as generated, and shaped as the API conventions and docs/DESIGN.md section 1 ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith import crd
from tunesmith.api.kind import Kind
from tunesmith.kinds import KINDS

ROOT = Path(__file__).resolve().parents[3]
EACH_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)


def schemas(kind: Kind) -> dict[str, Any]:
    root = crd.manifest(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return {part: root["properties"][part] for part in ("spec", "status")}


def walk(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema in `schema` with the path it stands at."""
    yield path, schema
    for name, each in schema.get("properties", {}).items():
        yield from walk(each, f"{path}.{name}")
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from walk(schema["additionalProperties"], f"{path}{{}}")


def everywhere(kind: Kind) -> list[tuple[str, dict[str, Any]]]:
    return [entry for part, schema in schemas(kind).items() for entry in walk(schema, part)]


@EACH_KIND
def test_the_file_checked_in_is_what_the_models_say(kind: Kind) -> None:
    file = ROOT / "crds" / f"tunesmith.dev_{kind.plural}.yaml"
    assert file.read_text() == crd.render(kind), "run `make generate`"


def test_nothing_else_lies_beside_the_generated_files() -> None:
    assert {path.name for path in (ROOT / "crds").iterdir()} == set(crd.files())


def test_check_tells_which_file_is_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert crd.main([str(tmp_path / "new")]) == 0
    assert crd.main([str(tmp_path / "new"), "--check"]) == 0
    (tmp_path / "new" / "tunesmith.dev_evalruns.yaml").write_text("{}")
    assert crd.main([str(tmp_path / "new"), "--check"]) == 1
    assert "tunesmith.dev_evalruns.yaml is not what the models say" in capsys.readouterr().out


@EACH_KIND
def test_a_crd_is_small_enough_for_client_side_apply(kind: Kind) -> None:
    assert len(crd.render(kind)) < 100_000
    assert yaml.safe_load(crd.render(kind)) == crd.manifest(kind)


@EACH_KIND
def test_there_are_no_floats(kind: Kind) -> None:
    assert [path for path, schema in everywhere(kind) if schema["type"] == "number"] == []


@EACH_KIND
def test_every_string_list_map_and_number_is_bounded(kind: Kind) -> None:
    needed = {"string": {"maxLength"}, "array": {"maxItems"}, "integer": {"minimum", "maximum"}}
    unbounded = []
    for path, schema in everywhere(kind):
        wanted = needed.get(schema["type"], set()) | ({"maxProperties"} if "additionalProperties" in schema else set())
        if not wanted <= schema.keys() and "enum" not in schema:
            unbounded.append(path)
    assert unbounded == []


@EACH_KIND
def test_every_field_is_described(kind: Kind) -> None:
    assert [path for path, schema in everywhere(kind) if path[-1] not in "]}" and not schema.get("description")] == []


@EACH_KIND
def test_nothing_is_left_that_a_structural_schema_must_not_have(kind: Kind) -> None:
    for path, schema in everywhere(kind):
        assert schema["type"] in ("object", "array", "string", "integer", "boolean"), path
        assert not schema.keys() & {"$ref", "anyOf", "title", "const", "exclusiveMinimum", "exclusiveMaximum", "propertyNames"}, path
        assert not ("properties" in schema and "additionalProperties" in schema), path


@EACH_KIND
def test_unknown_fields_are_kept_nowhere_but_in_what_a_stage_told(kind: Kind) -> None:
    kept = [path for path, schema in everywhere(kind) if "x-kubernetes-preserve-unknown-fields" in schema]
    assert kept == ([] if kind.name == "ModelDeployment" else ["status.stages[].result"])


def test_only_replicas_has_a_default_in_a_spec() -> None:
    defaults = [f"{kind.name} {path}" for kind in KINDS.values() for path, schema in walk(schemas(kind)["spec"], "spec") if "default" in schema]
    assert defaults == ["ModelDeployment spec.replicas"]


@EACH_KIND
def test_a_new_object_does_not_look_done_to_kstatus(kind: Kind) -> None:
    assert schemas(kind)["status"]["default"] == {"observedGeneration": -1}


@EACH_KIND
def test_conditions_merge_by_type(kind: Kind) -> None:
    conditions = schemas(kind)["status"]["properties"]["conditions"]
    assert (conditions["x-kubernetes-list-type"], conditions["x-kubernetes-list-map-keys"]) == ("map", ["type"])


@EACH_KIND
def test_get_tunesmith_lists_the_kind_and_its_columns_read_fields_that_exist(kind: Kind) -> None:
    manifest = crd.manifest(kind)
    assert manifest["spec"]["names"]["categories"] == ["tunesmith"]
    paths = {path.replace("[]", "") for path, _ in everywhere(kind)} | {"metadata.creationTimestamp"}
    for column in manifest["spec"]["versions"][0]["additionalPrinterColumns"]:
        before, _, rest = column["jsonPath"].lstrip(".").partition("[?(")
        after = rest.partition(")]")[2]
        assert before + after in paths, column


@EACH_KIND
def test_every_rule_says_what_to_do_and_where(kind: Kind) -> None:
    rules = [(path, rule) for path, schema in everywhere(kind) for rule in schema.get("x-kubernetes-validations", ())]
    assert rules
    for path, rule in rules:
        assert rule["message"], path
        assert rule["reason"] in ("FieldValueInvalid", "FieldValueForbidden"), path


def test_an_alternative_of_two_types_is_refused_rather_than_guessed() -> None:
    with pytest.raises(ValueError, match="unpack"):
        crd.structural({"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]}, {})


def test_a_keyword_without_a_structural_form_is_not_dropped_in_silence() -> None:
    with pytest.raises(ValueError, match="exclusiveMinimum"):
        crd.structural({"type": "integer", "exclusiveMinimum": 0}, {})


def test_the_keys_of_a_map_are_checked_by_rules() -> None:
    schema = {"type": "object", "patternProperties": {"^[a-z]+$": {"type": "string"}}, "propertyNames": {"maxLength": 9}}
    rules = [entry["rule"] for entry in crd.structural(schema, {})["x-kubernetes-validations"]]
    assert rules == ["self.all(key, size(key) <= 9)", "self.all(key, key.matches('^[a-z]+$'))"]
