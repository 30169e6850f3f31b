"""Conditions as kstatus, Flux, Argo CD and `kubectl wait` read them (docs/DESIGN.md section 1, KEP-1623).

`Ready`, `Reconciling` and `Stalled` are set together by the one function that names the state, so that no combination
that those tools misread can be written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tunesmith.core.errors import NotReadyYet, TunesmithError

MESSAGE_LIMIT = 1024


def timestamp(moment: datetime) -> str:
    """`moment` as metav1.Time: RFC 3339, UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Condition:
    """One condition before it has a time: `status` is "True", "False" or "Unknown"."""

    type: str
    status: str
    reason: str
    message: str = ""


def working(reason: str, message: str) -> tuple[Condition, ...]:
    """Not done yet, going on by itself: kstatus InProgress."""
    return (
        Condition("Ready", "False", reason, message),
        Condition("Reconciling", "True", reason, message),
        Condition("Stalled", "False", reason, ""),
    )


def done(reason: str, message: str) -> tuple[Condition, ...]:
    """The desired state is reached: kstatus Current."""
    return (
        Condition("Ready", "True", reason, message),
        Condition("Reconciling", "False", reason, ""),
        Condition("Stalled", "False", reason, ""),
    )


def stalled(reason: str, message: str, serving: str = "") -> tuple[Condition, ...]:
    """Nothing more happens until a person acts: kstatus Failed. `serving`: what serves on meanwhile, in words; both conditions tell both."""
    ready = Condition("Ready", "False", reason, message)
    if serving:
        ready = Condition("Ready", "True", "Serving", f"{serving}; {message}")
        message = f"{message[: MESSAGE_LIMIT - len(serving) - 2]}; {serving}"
    return (ready, Condition("Reconciling", "False", reason, ""), Condition("Stalled", "True", reason, message))


def suspended(message: str) -> tuple[Condition, ...]:
    """Held by `spec.suspend`: kstatus InProgress, Argo CD Suspended."""
    return (
        Condition("Ready", "False", "Suspended", message),
        Condition("Reconciling", "False", "Suspended", ""),
        Condition("Stalled", "False", "Suspended", ""),
    )


def told_by(error: TunesmithError) -> tuple[Condition, ...]:
    """What an error comes to: either its cause goes by itself, or a person must act."""
    return (working if isinstance(error, NotReadyYet) else stalled)(error.reason, error.message)


def bounded(told: tuple[Condition, ...], succeeded: str = "Unknown", held: bool = False) -> tuple[Condition, ...]:
    """`told` (Ready first) and what the kinds that end tell beside it, for the same reason. `held`: nothing is left, by `spec.suspend`."""
    ready, finished = told[0], succeeded != "Unknown"
    message = ready.message if finished else ""
    return (
        *told,
        Condition("Succeeded", succeeded, ready.reason, message),
        Condition("Finished", str(finished), ready.reason, message),
        Condition("Suspended", str(held), "Suspended" if held else "NotSuspended"),
    )


def merge(recorded: Iterable[Mapping[str, Any]], now: Iterable[Condition], generation: int, moment: datetime) -> list[dict[str, Any]]:
    """`now` as metav1.Conditions. `lastTransitionTime` is kept from `recorded` where the status is the same; types not in `now` are dropped."""
    before = {entry["type"]: entry for entry in recorded}
    merged = []
    for condition in now:
        old = before.get(condition.type)
        kept = old["lastTransitionTime"] if old and old["status"] == condition.status else timestamp(moment)
        merged.append(
            {
                "type": condition.type,
                "status": condition.status,
                "reason": condition.reason,
                "message": condition.message[:MESSAGE_LIMIT],
                "observedGeneration": generation,
                "lastTransitionTime": kept,
            }
        )
    return merged


def find(status: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """The condition of that type in a status, if it is there."""
    return next((entry for entry in status.get("conditions", ()) if entry["type"] == kind), None)


def is_true(status: Mapping[str, Any], kind: str) -> bool:
    """Whether the condition of that type is True."""
    entry = find(status, kind)
    return entry is not None and entry["status"] == "True"
