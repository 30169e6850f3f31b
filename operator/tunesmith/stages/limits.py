"""Limits on an object that ends: how long it may be active or wait, how many GPU-hours it may hold, how long its children stay.

Passing a limit ends the object for good, in two steps as a Job does it: the condition `FailureTarget` first, with which the Jobs under way
are deleted and no other is made; when no pod lives (training has saved, and what it told is on record), the failure itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from tunesmith.api.conditions import Condition, find, is_true, timestamp
from tunesmith.core.objects import Observed
from tunesmith.stages import gpu_seconds
from tunesmith.workload.podstatus import moment

TARGET = "FailureTarget"
Entry = Mapping[str, Any]


def target(observed: Observed, entries: Iterable[Entry], active: Mapping[str, Any], waits: Callable[[Entry], str]) -> Condition | None:
    """The condition that ends the object, once a limit is passed. `active`: its `activity`. `waits` tells what the attempt under way of an
    entry waits for."""
    spec, now = observed.spec, observed.now
    known = find(observed.recorded, TARGET)
    if known:
        # What is decided stays: the attempts are ending already.
        return Condition(TARGET, "True", known["reason"], known["message"])
    if spec.get("suspend"):
        return None
    deadline = _deadline(spec, active, now)
    if deadline and deadline <= now:
        message = f"was active for more than {spec['activeDeadlineSeconds']} s (activeDeadlineSeconds)"
        return Condition(TARGET, "True", "DeadlineExceeded", message)
    late = next((entry for entry in entries if (ends := _pending_deadline(spec, entry)) and ends <= now), None)
    if late:
        waited = f"waited for more than {spec['pendingDeadlineSeconds']} s (pendingDeadlineSeconds)"
        return Condition(TARGET, "True", "PendingDeadlineExceeded", f"{waited}: {waits(late)}")
    limit = spec.get("maxGPUHours")
    if limit and gpu_seconds.held(observed.recorded, now) >= limit * 3600:
        return Condition(TARGET, "True", "GPUHourLimit", f"held GPUs for {limit} GPU-hours (maxGPUHours)")
    return None


def moments(observed: Observed, status: Mapping[str, Any]) -> Iterator[datetime]:
    """When the next limits will be passed, if nothing else happens."""
    spec, now = observed.spec, observed.now
    if is_true(status, "Finished"):
        if removal := _removal(spec, status):
            yield removal
        return
    if spec.get("suspend") or find(status, TARGET):
        return
    if deadline := _deadline(spec, status, now):
        yield deadline
    entries = status.get("stages", ())
    yield from (ends for entry in entries if (ends := _pending_deadline(spec, entry)))
    holding = sum(entry.get("gpus", 0) for entry in entries if entry["state"] == "Running")
    if holding and spec.get("maxGPUHours"):
        left = spec["maxGPUHours"] * 3600 - gpu_seconds.held(status, now)
        yield now + timedelta(seconds=-(-left // holding))


def expired(observed: Observed, status: Mapping[str, Any]) -> bool:
    """Whether the children have stayed long enough after the end."""
    removal = _removal(observed.spec, status) if is_true(status, "Finished") else None
    return removal is not None and removal <= observed.now


def _removal(spec: Mapping[str, Any], status: Mapping[str, Any]) -> datetime | None:
    if "ttlSecondsAfterFinished" not in spec:
        return None
    return moment(status["completionTime"]) + timedelta(seconds=spec["ttlSecondsAfterFinished"])


def activity(observed: Observed, entries: Sequence[Entry], unseen: int) -> dict[str, Any]:
    """`{activeSeconds?, activeSince?}` of the status: how long attempts have run, and since when one does.

    Time in which all wait, for a queue, for nodes or for another object, is not active. Stages side by side count once. As in a Job,
    resuming starts again. `unseen`: seconds for which an attempt ran that began and ended while nobody looked.
    """
    if observed.spec.get("suspend"):
        return {}
    seconds, since = int(observed.recorded.get("activeSeconds", 0)), observed.recorded.get("activeSince")
    running = [gpu_seconds.since(entry) for entry in entries if entry["state"] == "Running"]
    if running:
        since = since or timestamp(min(running))
    elif since:
        seconds, since = seconds + max(0, int((observed.now - moment(since)).total_seconds())), None
    else:
        seconds += unseen
    return ({"activeSeconds": seconds} if seconds else {}) | ({"activeSince": since} if since else {})


def _deadline(spec: Mapping[str, Any], active: Mapping[str, Any], now: datetime) -> datetime | None:
    """When it will have been active for too long, if what runs goes on."""
    if "activeDeadlineSeconds" not in spec:
        return None
    left = timedelta(seconds=spec["activeDeadlineSeconds"] - active.get("activeSeconds", 0))
    if "activeSince" in active:
        return moment(active["activeSince"]) + left
    return now if left <= timedelta(0) else None


def _pending_deadline(spec: Mapping[str, Any], entry: Mapping[str, Any]) -> datetime | None:
    again = "waitingSince" in entry
    if "pendingDeadlineSeconds" not in spec or not (entry["state"] == "Pending" or (again and entry["state"] == "Waiting")):
        return None
    return (moment(entry["waitingSince"]) if again else gpu_seconds.since(entry)) + timedelta(seconds=spec["pendingDeadlineSeconds"])
