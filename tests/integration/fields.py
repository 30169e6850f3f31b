"""The fields of a live object that a manager owns, from `managedFields`, and edits of them as a person makes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunesmith.core.objects import Object

_OTHERS = {
    "Always": "IfNotPresent",
    "IfNotPresent": "Always",
    "ClusterIP": "NodePort",
    "File": "FallbackToLogsOnError",
    "Memory": "",
    "OnRootMismatch": "Always",
    "RollingUpdate": "Recreate",
    "RuntimeDefault": "Unconfined",
    "TCP": "UDP",
}
"""Values of enumerations, each with another of the same."""


@dataclass(frozen=True)
class Field:
    """A field or, with `item`, an item of a list whose items have keys."""

    pointer: str
    """JSON pointer into the object as it was."""
    item: bool = False
    identity: bool = False
    """Part of its item's key: to change it is to put another item in its place."""


def owned(live: Object, manager: str) -> list[Field]:
    """What `manager` has applied or made of `live`: what is made by a POST is put back by an apply."""
    fields: list[Field] = []
    for entry in live["metadata"]["managedFields"]:
        if entry["manager"] == manager:
            fields += _walk(entry["fieldsV1"], live, "", frozenset())
    return list(dict.fromkeys(fields))


def _walk(tree: Object, value: Any, pointer: str, key: frozenset[str]) -> Iterator[Field]:
    for name, below in tree.items():
        sort, _, text = name.partition(":")
        if sort == "f":
            here = f"{pointer}/{text.replace('~', '~0').replace('/', '~1')}"
            if not below:
                yield Field(here, identity=text in key)
            elif text in value:
                yield from _walk(below, value[text], here, frozenset())
        elif sort == "k":
            wanted: Object = json.loads(text)
            number = next(number for number, item in enumerate(value) if wanted.items() <= item.items())
            yield Field(f"{pointer}/{number}", item=True)
            yield from _walk(below, value[number], f"{pointer}/{number}", frozenset(wanted))


def value_at(obj: Any, pointer: str) -> Any:
    """What a JSON pointer points at; None if it is not there."""
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        obj = obj[int(name)] if isinstance(obj, list) else obj.get(name)
    return obj


def other_values(value: Any) -> Iterator[Any]:
    """Values of the same sort: one of them will be let in, if any is."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1, 0)
    elif isinstance(value, str):
        yield from ([_OTHERS[value]] if value in _OTHERS else [])
        yield from (f"{value}x", f"2{value}", "other", "2")
    elif isinstance(value, list):
        yield [*value, *value[:1]] if value and isinstance(value[0], dict) else [*value, "more"]
    elif isinstance(value, dict):
        yield {**value, "more": "x"}


def edits(field: Field, live: Object, remove: bool) -> Iterator[list[Object]]:
    """JSON patches that change the field, or take it away; the first that is let in counts."""
    if remove:
        yield [{"op": "remove", "path": field.pointer}]
    elif not field.item and not field.identity:
        for value in other_values(value_at(live, field.pointer)):
            yield [{"op": "replace", "path": field.pointer, "value": value}]
