"""What is to be known of a kind: one row for each, in its package's `kind.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from tunesmith.core.objects import Object, Observed, Plan
from tunesmith_contract.base import Rule


@dataclass(frozen=True)
class Kind:
    """A custom resource: its schema, the columns that `kubectl get` shows of it, and three pure functions."""

    name: str
    plural: str
    spec: type[BaseModel]
    status_schema: type[BaseModel]
    columns: tuple[Object, ...]
    references: Callable[[Mapping[str, Any]], frozenset[tuple[str, str]]]
    """Kind and name of the objects, in its namespace, that a spec names."""
    status: Callable[[Observed], Object]
    build: Callable[[Observed, Mapping[str, Any]], Plan]
    """The changes that the status asks for."""
    scale: bool = False
    """Whether it has the subresource /scale."""
    rules: tuple[Rule, ...] = ()
    """CEL for the whole object, where its name is known."""


def column(name: str, path: str, type_: str = "string", wide: bool = False, description: str = "") -> Object:
    """Return a column of `kubectl get`; `wide`: only with `-o wide`."""
    entry: Object = {"name": name, "type": type_, "jsonPath": path}
    return entry | ({"description": description} if description else {}) | ({"priority": 1} if wide else {})


def condition(type_: str, part: str = "status") -> str:
    """Return the path of a part of the condition of that type."""
    return f'.status.conditions[?(@.type=="{type_}")].{part}'


STAGE = column("Stage", ".status.stage")
READY = column("Ready", condition("Ready"))
AGE = column("Age", ".metadata.creationTimestamp", "date")
WHY = (column("Reason", condition("Ready", "reason"), wide=True), column("Message", condition("Ready", "message"), wide=True))
