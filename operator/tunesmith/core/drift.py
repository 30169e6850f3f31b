"""Whether a live object still is what was applied: what was asked for must be there, what the server added does not count."""

from __future__ import annotations

import hashlib
import json
import re
from decimal import Decimal
from typing import Any

from tunesmith.core.objects import GROUP, Object

ANNOTATION = f"{GROUP}/applied"
"""Digest of what was applied: tells when a field is no longer asked for, which the live object alone cannot."""

ATOMIC = frozenset({"selector", "matchLabels", "labelSelector", "podSelector", "nodeSelector", "tolerations", "ingress", "egress", "items"})
"""What the server replaces as a whole: one key more would select other pods, one rule more would let others in, one file more be read."""

_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|Ki|[MGTP]i?|)")
_SUFFIX: dict[str, Decimal] = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    "k": Decimal(1000),
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate("MGTP", 2)},
    **{f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTP", 1)},
}


def checksum(value: Any) -> str:
    """A short digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def digest(desired: Object) -> str:
    """Digest of what is asked for. Without its annotations: they say what it is, and nothing runs by them."""
    return checksum({**desired, "metadata": {name: value for name, value in desired["metadata"].items() if name != "annotations"}})


def stamp(desired: Object) -> Object:
    """`desired` with its own digest in an annotation."""
    metadata = desired["metadata"]
    return {**desired, "metadata": {**metadata, "annotations": {**metadata.get("annotations", {}), ANNOTATION: digest(desired)}}}


def applied(live: Object) -> str | None:
    """Digest of what was applied last; None if a live object does not tell."""
    return (live["metadata"].get("annotations") or {}).get(ANNOTATION)


def differences(desired: Any, live: Any, path: str = "") -> frozenset[str]:
    """Paths of what in `desired` (stamped) is not so in `live`; none: there is nothing to apply."""
    if isinstance(desired, dict) and isinstance(live, dict):
        return frozenset[str]().union(*(_of_member(key, value, live, f"{path}.{key}") for key, value in desired.items()))
    if isinstance(desired, list) and isinstance(live, list):
        return _of_list(desired, live, path)
    same = desired == live or _same_quantity(desired, live)
    return frozenset() if same else frozenset({path})


def _of_member(key: str, value: Any, live: dict[str, Any], path: str) -> frozenset[str]:
    if key not in live:
        return frozenset() if _is_left_out(value) else frozenset({path})
    if key in ATOMIC:
        # In a map (a node selector) an empty text is a value like any other; in an item of a list (a toleration) it is left out.
        return frozenset() if live[key] == (_kept(value) if isinstance(value, list) else value) else frozenset({path})
    return differences(value, live[key], path)


def _is_left_out(value: Any) -> bool:
    """Whether the server leaves out a member of that value. Not False, 0 and {}: a missing one of those is another wish, or somebody's edit."""
    return value is None or value in ("", [])


def _kept(value: Any) -> Any:
    """What the server keeps of the members of a value."""
    if isinstance(value, dict):
        return {key: _kept(below) for key, below in value.items() if not _is_left_out(below)}
    return [_kept(item) for item in value] if isinstance(value, list) else value


def _of_list(desired: list[Any], live: list[Any], path: str) -> frozenset[str]:
    """Lists of objects may have further items, put there by others, that an apply would not take away; lists of scalars may not."""
    if not any(isinstance(item, dict) for item in desired):
        return frozenset() if desired == live else frozenset({path})
    return frozenset[str]().union(*(_of_item(item, live, f"{path}[{number}]") for number, item in enumerate(desired)))


def _of_item(desired: Any, live: list[Any], path: str) -> frozenset[str]:
    """Against the item that comes closest, which is the one of the same name where items have names."""
    return min((differences(desired, item, path) for item in live), key=len, default=frozenset({path}))


def _same_quantity(desired: Any, live: Any) -> bool:
    """Whether two texts are one Kubernetes quantity: the server turns 1000m into 1."""
    if not isinstance(desired, str) or not isinstance(live, str):
        return False
    left, right = _QUANTITY.fullmatch(desired), _QUANTITY.fullmatch(live)
    return left is not None and right is not None and _amount(left) == _amount(right)


def _amount(match: re.Match[str]) -> Decimal:
    return Decimal(match[1]) * _SUFFIX[match[2]]
