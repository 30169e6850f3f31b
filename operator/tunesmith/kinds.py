"""The table of kinds: all that the edge knows of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.values import Object, Observed, Plan


@dataclass(frozen=True)
class Kind:
    """One kind as the reconciler sees it: three pure functions."""

    name: str
    status: Callable[[Observed], Object]
    build: Callable[[Observed, Mapping[str, Any]], Plan]
    references: Callable[[Mapping[str, Any]], frozenset[tuple[str, str]]]


KINDS: Mapping[str, Kind] = {}
