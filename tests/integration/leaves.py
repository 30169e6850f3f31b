"""Every leaf of a kind's spec, from its CRD, and other values for each."""

from __future__ import annotations

import copy
import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from tunesmith import crd
from tunesmith.core.objects import Object
from tunesmith.kinds import KINDS

Path = tuple[str, ...]
ITEM = "[]"
HOUR = 3600
_ITEMS: dict[str, Object] = {"tolerations": {"key": "gpu", "effect": "NoExecute"}}
"""Items of lists whose fields depend on one another: each of them can be changed here by itself."""
_TEXTS = (
    "3",
    "4",
    "0.25",
    "0.5",
    "pvc://models/other",
    "pvc://models/third",
    "other",
    "third",
    "example.com/gpu",
    "example.com/tpu",
    "Merged",
    "80Gi",
    "40Gi",
)


@functools.cache
def schema_of(kind: str) -> Object:
    """The schema of a kind's spec, which every caller shares."""
    manifest = crd.manifest(KINDS[kind])
    schema: Object = manifest["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
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


def changed(schema: Object, spec: Object, path: Path, number: int) -> list[Object]:
    """`spec` with another valid value at `path`: the first that the schema knows (`number` 0) or the second one (1), if there is one."""
    leaf = schema_at(schema, path)
    # A limit of two seconds is passed at once, and what has ended does not begin anew.
    first = [HOUR, 2 * HOUR] if path[-1].endswith("Seconds") else []
    others = [value for value in _values(leaf, first) if value != value_at(spec, path)]
    return [placed(schema, spec, path, value) for value in others[number : number + 1]]


def placed(schema: Object, spec: Object, path: Path, value: Any) -> Object:
    """`spec` with `value` at `path`; blocks on the way that are missing are made, with what they require."""
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
    block[path[-1]] = value
    return result


def schema_at(schema: Object, path: Path) -> Object:
    """The schema of what is at `path`."""
    for name in path:
        schema = schema["items"] if name == ITEM else schema["properties"][name]
    return schema


def strings(schema: Object, mark: str) -> Iterator[tuple[Path, Any]]:
    """Each leaf that holds strings, with a value in which one string is a valid one and `mark`; maps twice, for keys and for values."""
    for path in leaves(schema):
        leaf = schema_at(schema, path)
        if leaf["type"] == "string":
            yield path, _filled(leaf) + mark
        elif leaf["type"] == "array" and leaf["items"]["type"] == "string":
            yield path, [_filled(leaf["items"]) + mark]
        elif "additionalProperties" in leaf:
            text = _filled(leaf["additionalProperties"])
            yield path, {"other": text + mark}
            yield path, {"other" + mark: text}


def _filled(schema: Object) -> Any:
    """The least valid value of a schema."""
    if schema["type"] == "object" and "additionalProperties" not in schema:
        return {name: _filled(schema["properties"][name]) for name in schema.get("required", ())}
    return next(iter(_values(schema)))


def _values(schema: Object, first: Sequence[int] = ()) -> Iterator[Any]:
    """Valid values of a leaf, all different; of numbers those of `first` come first."""
    sort = schema["type"]
    if sort == "boolean":
        yield from (True, False)
    elif sort == "integer":
        least = schema.get("minimum", 0)
        yield from dict.fromkeys(number for number in (*first, 2, 3, least + 1, least) if _in_bounds(schema, number))
    elif sort == "string":
        yield from dict.fromkeys(text for text in (*schema.get("enum", ()), *_TEXTS) if _is_valid(schema, text))
    elif sort == "array":
        yield from ([value] for value in _values(schema["items"]))
    elif "additionalProperties" in schema:
        yield from ({"other": value} for value in _values(schema["additionalProperties"]))
    else:
        yield _filled(schema)


def _in_bounds(schema: Object, number: int) -> bool:
    return bool(schema.get("minimum", number) <= number <= schema.get("maximum", number))


def _is_valid(schema: Object, text: str) -> bool:
    if "enum" in schema:
        return text in schema["enum"]
    return re.search(schema.get("pattern", ""), text) is not None and len(text) <= schema.get("maxLength", len(text))
