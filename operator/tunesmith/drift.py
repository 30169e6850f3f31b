"""Whether a live object still is what was applied: what was asked for must be there, what the server added does not count."""

from __future__ import annotations

import hashlib
import json
import re
from decimal import Decimal
from typing import Any

from tunesmith.values import GROUP, Object

ANNOTATION = f"{GROUP}/applied"
"""Digest of what was applied: tells when a field is no longer asked for, which the live object alone cannot."""

ATOMIC = frozenset({"selector", "matchLabels", "nodeSelector"})
"""Maps that the server replaces as a whole: one key more would select other pods."""

_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|Ki|[MGTP]i?|)")
_SUFFIX: dict[str, Decimal] = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    "k": Decimal(1000),
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate("MGTP", 2)},
    **{f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTP", 1)},
}


def stamp(desired: Object) -> Object:
    """`desired` with its own digest in an annotation."""
    digest = hashlib.sha256(json.dumps(desired, sort_keys=True).encode()).hexdigest()[:16]
    metadata = desired["metadata"]
    return {**desired, "metadata": {**metadata, "annotations": {**metadata.get("annotations", {}), ANNOTATION: digest}}}


def drifted(desired: Object, live: Object) -> bool:
    """Whether `desired` (stamped) has to be applied over `live`."""
    return not _holds(desired, live)


def _holds(desired: Any, live: Any) -> bool:
    """Whether all of `desired` is in `live`."""
    if isinstance(desired, dict):
        return isinstance(live, dict) and all(_holds_member(key, value, live) for key, value in desired.items())
    if isinstance(desired, list):
        return isinstance(live, list) and _holds_list(desired, live)
    return bool(desired == live) or _same_quantity(desired, live)


def _holds_member(key: str, value: Any, live: dict[str, Any]) -> bool:
    if key not in live:
        # The server leaves out what is empty.
        return not value
    return bool(value == live[key]) if key in ATOMIC else _holds(value, live[key])


def _holds_list(desired: list[Any], live: list[Any]) -> bool:
    """Lists of objects may have further items, put there by others, that an apply would not take away; lists of scalars may not."""
    if any(isinstance(item, dict) for item in desired):
        return all(any(_holds(item, other) for other in live) for item in desired)
    return desired == live


def _same_quantity(desired: Any, live: Any) -> bool:
    """Whether two texts are one Kubernetes quantity: the server turns 1000m into 1."""
    if not isinstance(desired, str) or not isinstance(live, str):
        return False
    left, right = _QUANTITY.fullmatch(desired), _QUANTITY.fullmatch(live)
    return left is not None and right is not None and _amount(left) == _amount(right)


def _amount(match: re.Match[str]) -> Decimal:
    return Decimal(match[1]) * _SUFFIX[match[2]]
