"""Every leaf of a kind's spec, from its CRD, and another valid value for each."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from tunesmith import crd
from tunesmith.values import Object

Path = tuple[str, ...]
ITEM = "[]"
HOUR = 3600
_ITEMS: dict[str, Object] = {"tolerations": {"key": "gpu", "effect": "NoExecute"}}
"""Items of lists whose fields depend on one another: each of them can be changed here by itself."""
_TEXTS = ("3", "0.25", "pvc://models/other", "other", "example.com/gpu", "Merged")


def schema_of(kind: str) -> Object:
    """The schema of a kind's spec."""
    rendered = yaml.safe_load(crd.render(next(each for each in crd.KINDS if each.name == kind)))
    schema: Object = rendered["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return schema


def leaves(schema: Object, path: Path = ()) -> Iterator[Path]:
    """Paths of all leaves: scalars, lists of scalars and maps as a whole, and the fields of a list's items (`ITEM` on the way)."""
    for name, below in schema.get("properties", {}).items():
        if below.get("properties"):
            yield from leaves(below, (*path, name))
        elif below.get("items", {}).get("properties"):
            yield from leaves(below["items"], (*path, name, ITEM))
        else:
            yield (*path, name)


def value_at(spec: Any, path: Sequence[str]) -> Any:
    """What is at that path of a spec, in the first item of a list; None if nothing is."""
    for name in path:
        spec = (spec or [None])[0] if name == ITEM else (spec or {}).get(name)
    return spec


def changed(schema: Object, spec: Object, path: Path) -> Object:
    """`spec` with another valid value at `path`; blocks on the way that are missing are made, with what they require."""
    result = copy.deepcopy(spec)
    block, below = result, schema
    for name, following in itertools.pairwise(path):
        if name == ITEM:
            continue
        below = below["properties"][name]
        if following == ITEM:
            below = below["items"]
            block = block.setdefault(name, [_ITEMS.get(name, {}) | _filled(below)])[0]
        else:
            block = block.setdefault(name, _filled(below))
    # A limit of two seconds is passed at once, and what has ended does not begin anew.
    first = [HOUR] if path[-1].endswith("Seconds") else []
    block[path[-1]] = _other(below["properties"][path[-1]], value_at(spec, path), first)
    return result


def _filled(schema: Object) -> Any:
    """The least valid value of a schema."""
    if schema["type"] == "object":
        return {name: _filled(schema["properties"][name]) for name in schema.get("required", ())}
    return _other(schema, None)


def _other(schema: Object, present: Any, first: Sequence[int] = ()) -> Any:
    """A valid value that is not the present one; of numbers one of `first` if it may be."""
    sort = schema["type"]
    if sort == "boolean":
        return not present
    if sort == "integer":
        return next(number for number in (*first, 2, 3, schema.get("minimum", 0) + 1) if number != present and _in_bounds(schema, number))
    if sort == "string":
        texts = [text for text in (*schema.get("enum", ()), *_TEXTS) if text != present and _is_valid(schema, text)]
        return texts[0]
    if sort == "array":
        return [_filled(schema["items"])]
    if "additionalProperties" in schema:
        return {"other": _other(schema["additionalProperties"], None)}
    return _filled(schema)


def _in_bounds(schema: Object, number: int) -> bool:
    return bool(schema.get("minimum", number) <= number <= schema.get("maximum", number))


def _is_valid(schema: Object, text: str) -> bool:
    if "enum" in schema:
        return text in schema["enum"]
    return re.search(schema.get("pattern", ""), text) is not None and len(text) <= schema.get("maxLength", len(text))
