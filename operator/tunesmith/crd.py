"""Writes the CustomResourceDefinitions from the pydantic models: `python -m tunesmith.crd OUTDIR [--check]`.

JSON Schema as pydantic makes it is refused by the API server in several ways ($ref, anyOf with null, exclusive bounds, propertyNames);
`structural` turns it into the structural schema that the server wants.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from tunesmith.api.kind import Kind
from tunesmith.core.objects import GROUP, VERSION
from tunesmith.kinds import KINDS
from tunesmith_contract.base import Rule, rule

Schema = dict[str, Any]

HEADER = "# Written by `python -m tunesmith.crd`: do not edit.\n"
OBJECT_NAME: Schema = {
    "type": "object",
    "properties": {
        # Children are named `<name>-<stage>-<attempt>-<uid5>-<index>`, and Services are: their names begin with a letter.
        "name": {"type": "string", "maxLength": 40, "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
    },
}
COPIED = (
    "type",
    "description",
    "format",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "x-kubernetes-validations",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-preserve-unknown-fields",
    "required",
)
HANDLED = frozenset(
    ("title", "default", "const", "items", "properties", "additionalProperties", "patternProperties", "propertyNames", "$defs")
) | frozenset(
    # Marks that the contract's fields and ours carry.
    ("crd_default", "decided", "since", "inFile")
)


def structural(schema: Mapping[str, Any], definitions: Mapping[str, Schema]) -> Schema:
    """`schema` (pydantic's JSON Schema) as a structural OpenAPI v3 schema."""
    flat = _flatten(schema, definitions)
    unknown = flat.keys() - HANDLED - set(COPIED)
    if unknown:
        raise ValueError(f"no structural form is known for {sorted(unknown)}")
    text = " ".join([*flat.get("description", "").split(), *_default(flat)])
    described = {**flat, "description": text} if text else flat
    out: Schema = {key: described[key] for key in COPIED if key in described}
    if "const" in flat:
        out["enum"] = [flat["const"]]
    if flat.get("crd_default"):
        out["default"] = flat["default"]
    if flat.get("type") == "integer":
        out["format"] = "int32" if flat.get("maximum", 2**63) < 2**31 else "int64"
    if "items" in flat:
        out["items"] = structural(flat["items"], definitions)
    if "properties" in flat:
        out["properties"] = {name: structural(each, definitions) for name, each in flat["properties"].items()}
    values, key_rules = _map_of(flat)
    if values is not None:
        out["additionalProperties"] = structural(values, definitions)
        out["x-kubernetes-validations"] = [*out.get("x-kubernetes-validations", ()), *key_rules]
    return out


def _default(flat: Mapping[str, Any]) -> list[str]:
    """The sentence that gives a field's default, where it has one; the schema's own defaults show in the schema."""
    value = flat.get("default")
    if value is None or value == {} or flat.get("crd_default"):
        return []
    text = ", ".join(value) if isinstance(value, list) else str(value).lower() if isinstance(value, bool) else str(value)
    return [f"Default: {text}."]


def _flatten(schema: Mapping[str, Any], definitions: Mapping[str, Schema]) -> Schema:
    """`schema` with its $ref and its one non-null alternative merged in; what stands beside them wins, rules add up."""
    inner: Schema = {}
    if "$ref" in schema:
        inner = _flatten(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions)
    if "anyOf" in schema:
        (only,) = (each for each in schema["anyOf"] if each.get("type") != "null")
        inner = _flatten(only, definitions)
    merged = inner | {key: value for key, value in schema.items() if key not in ("$ref", "anyOf")}
    both = [*inner.get("x-kubernetes-validations", ()), *schema.get("x-kubernetes-validations", ())]
    return merged | ({"x-kubernetes-validations": both} if both else {})


def _map_of(flat: Mapping[str, Any]) -> tuple[Schema | None, list[Rule]]:
    """The schema of a map's values and CEL for its keys, which structural schemas cannot describe; None if this is no map."""
    limit = flat.get("propertyNames", {}).get("maxLength")
    rules = [rule(f"self.all(key, size(key) <= {limit})", f"keys must have at most {limit} characters")] if limit else []
    if "patternProperties" in flat:
        ((pattern, values),) = flat["patternProperties"].items()
        return values, [*rules, rule(f"self.all(key, key.matches('{pattern}'))", f"keys must be of the form `{pattern}`")]
    values = flat.get("additionalProperties")
    return (values, rules) if isinstance(values, dict) else (None, [])


def _of_model(model: type[BaseModel]) -> Schema:
    schema = model.model_json_schema(by_alias=True)
    return structural(schema, schema.get("$defs", {}))


def manifest(kind: Kind) -> Schema:
    """The CustomResourceDefinition of a kind."""
    subresources: Schema = {"status": {}}
    if kind.scale:
        subresources["scale"] = {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": subresources,
        "additionalPrinterColumns": list(kind.columns),
        "schema": {"openAPIV3Schema": _root_schema(kind)},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                # No short names: they clash across groups without a warning.
                "categories": ["tunesmith"],
            },
            "scope": "Namespaced",
            "versions": [version],
        },
    }


def _root_schema(kind: Kind) -> Schema:
    # Without this default a new object has no status, which kstatus takes for "done".
    status = _of_model(kind.status_schema) | {"default": {"observedGeneration": -1}}
    return {
        "type": "object",
        "description": kind.spec.__doc__,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": OBJECT_NAME,
            "spec": _of_model(kind.spec),
            "status": status,
        },
    } | ({"x-kubernetes-validations": list(kind.rules)} if kind.rules else {})


class _Dumper(yaml.SafeDumper):
    """Writes repeated values out: the API server reads aliases, people do not."""

    def ignore_aliases(self, data: Any) -> bool:
        """Never write an alias."""
        return True


def render(kind: Kind) -> str:
    """The CRD of a kind as YAML."""
    return HEADER + yaml.dump(manifest(kind), Dumper=_Dumper, sort_keys=False, width=150, allow_unicode=True)


def files() -> dict[str, str]:
    """Name and text of every file that this module writes."""
    return {f"{GROUP}_{kind.plural}.yaml": render(kind) for kind in KINDS.values()}


def main(arguments: list[str] | None = None) -> int:
    """Write the CRDs, or with --check tell whether they are what would be written."""
    parser = argparse.ArgumentParser(prog="tunesmith.crd", description="Write the CustomResourceDefinitions.")
    parser.add_argument("outdir", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file differs")
    options = parser.parse_args(arguments)
    wanted = files()
    if options.check:
        stale = [name for name, text in wanted.items() if not (options.outdir / name).is_file() or (options.outdir / name).read_text() != text]
        print("\n".join(f"{options.outdir / name} is not what the models say: run `make generate`" for name in stale), end="\n" if stale else "")
        return 1 if stale else 0
    options.outdir.mkdir(parents=True, exist_ok=True)
    for name, text in wanted.items():
        (options.outdir / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
