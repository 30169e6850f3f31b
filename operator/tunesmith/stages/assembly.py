"""Whether all pods of an attempt are there, and what is done while they are not.

Pods that have a node hold its GPUs while they wait for the others. An autoscaler, or a person who mends an image, gets HOLD to answer. Then
all are deleted, so that somebody else can use what they held, and made again after a pause that doubles and differs between objects: two
that hold what the other lacks would otherwise ask for it at the same moment for ever. None of this counts: `pendingDeadlineSeconds` alone
ends it. While no pod has a node nothing is held, and the pods stay: an autoscaler looks at pods that wait.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from tunesmith.core.objects import Object
from tunesmith.stages.failures import Classification
from tunesmith.workload.node_faults import node_of
from tunesmith.workload.observation import obstacle
from tunesmith.workload.podstatus import has_begun, index_of, is_live, is_running, scheduled_at

HOLD = timedelta(minutes=15)
REASON = "PodsMissing"
_GAVE_UP = frozenset(("PeerUnavailable", "NoResult"))
"""Reasons of pods that ended because another did not come; the second where what they told is lost."""


def wanted(job: Object | None, entry: Mapping[str, Any]) -> int:
    """How many pods an attempt is to have."""
    return int(job["spec"].get("parallelism", 1) if job else entry.get("nodes", 1))


def missing(pods: Sequence[Object], number: int) -> int:
    """How many of so many pods are not made, have no node or cannot begin on it."""
    return number - len({index_of(pod) for pod in pods if _is_there(pod)})


def released_at(entry: Mapping[str, Any], job: Object, pods: Sequence[Object]) -> datetime | None:
    """When an attempt under way has held nodes long enough for pods that are missing; None if it holds none, or none is missing."""
    if entry["state"] != "Pending" or "ending" in entry or not all(map(is_live, pods)):
        return None
    held = [at for pod in pods if (at := scheduled_at(pod))]
    return min(held) + HOLD if held and missing(pods, wanted(job, entry)) else None


def release(job: Object, entry: Mapping[str, Any], pods: Sequence[Object], refused: str) -> tuple[str, str]:
    """Reason and message of an attempt that is ended for that."""
    number = wanted(job, entry)
    why = next((f": {note.message}" for pod in pods if (note := obstacle(pod))), f": {refused}" if refused else "")
    lacking = f"{missing(pods, number)} of {number} pods could not begin within {HOLD.total_seconds() / 60:.0f} minutes"
    return REASON, f"{lacking}, so the nodes of the others are released and asked for again{why}"


def excused(verdict: Classification, entry: Mapping[str, Any], job: Object | None, pods: Sequence[Object]) -> Classification:
    """The verdict on an attempt that ended; that its pods did not meet says nothing where not all of them had begun."""
    number = wanted(job, entry)
    absent = number - len({index_of(pod) for pod in pods if has_begun(pod)})
    if verdict.outcome != "Later" or verdict.reason not in _GAVE_UP or entry["state"] != "Pending" or not absent:
        return verdict
    return Classification(
        "Wait", REASON, f"{absent} of {number} pods did not begin while the others waited for them: {verdict.message}", verdict.result
    )


def pause(doubled: timedelta, uid: str, attempt: int) -> timedelta:
    """Between one and two times that long: the same for the same attempt of an object, other for others."""
    share = int(hashlib.sha256(f"{uid}/{attempt}".encode()).hexdigest()[:8], 16) / 2**32
    return doubled * (1 + share)


def _is_there(pod: Object) -> bool:
    if not is_live(pod):
        return True
    return (is_running(pod) or scheduled_at(pod) is not None or bool(node_of(pod))) and obstacle(pod) is None
