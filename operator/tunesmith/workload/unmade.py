"""Jobs whose pods are not made, and why: a quota, a LimitRange, Pod Security, an admission webhook.

The Job's controller puts that into no status: it posts an Event of the Job. So the edge asks for the Events of a Job that has lacked pods
for a while (`Cluster.refusal`), and what they say comes to the pure core as `Observed.refusals`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from tunesmith.core.objects import Object, controller_uid
from tunesmith.workload.observation import is_finished
from tunesmith.workload.podstatus import index_of, moment

PATIENCE, AGAIN = timedelta(seconds=5), timedelta(seconds=10)
"""A Job's controller makes pods within a second or two; and what it says may change."""
MESSAGE_LIMIT = 900
# The part of a pod's name that is another at each try: with it the status would be written at each.
_SUFFIX = re.compile(r'(pods? "[^"]*?)-[a-z0-9]{5}"')


def lacking(children: Sequence[Object]) -> list[tuple[Object, datetime]]:
    """The Jobs that run and have fewer pods than they are to have, each with when to ask why at the earliest."""
    pods = [child for child in children if child["kind"] == "Pod"]
    return [(job, since + PATIENCE) for job in children if job["kind"] == "Job" and (since := begun(job)) and _lacks(job, pods)]


def look_at(children: Sequence[Object], now: datetime) -> datetime | None:
    """When to look at Jobs that lack pods again; None if none does."""
    return min((at if at > now else now + AGAIN for _, at in lacking(children)), default=None)


def begun(job: Object) -> datetime | None:
    """Since when the Job's controller is to make its pods; None if it is not known."""
    at = (job.get("status") or {}).get("startTime") or job["metadata"].get("creationTimestamp")
    return moment(at) if at else None


def refusal(events: Iterable[Mapping[str, Any]], since: datetime | None) -> str:
    """The newest word of a Job's Events of reason FailedCreate, none that is older; empty if there is none."""
    told = sorted((at, str(event.get("message", ""))) for event in events if (at := _last(event)) and (since is None or moment(at) >= since))
    text = told[-1][1].removeprefix("Error creating: ") if told else ""
    return _SUFFIX.sub(r'\1"', text)[:MESSAGE_LIMIT]


def _last(event: Mapping[str, Any]) -> str:
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"), event["metadata"].get("creationTimestamp"))
    return next((str(at) for at in times if at), "")


def _lacks(job: Object, pods: Sequence[Object]) -> bool:
    if is_finished(job) or job["spec"].get("suspend") or "deletionTimestamp" in job["metadata"]:
        return False
    made = {index_of(pod) for pod in pods if controller_uid(pod) == job["metadata"]["uid"]}
    return len(made) < int(job["spec"].get("parallelism", 1))
