"""Pods whose other containers run on when ours has ended: a proxy that was injected, and that nothing ends.

For the Job's controller such a pod still runs. So what that controller does when a pod has ended is done here: the attempt is over when
our containers have ended, and where one has failed the others are ended. Its pods are deleted, which releases their GPUs; what our
containers have told is put on record before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from tunesmith.core.objects import CONTAINER, Object
from tunesmith.workload.node_faults import node_of
from tunesmith.workload.podstatus import INDEX_ANNOTATION, index_of, is_live, is_over, moment, terminated

LINGER = timedelta(seconds=30)
"""For the other containers to end by themselves, as most do."""
NEVER = datetime.min.replace(tzinfo=UTC)
KEPT, TEXT_LIMIT = 2, 2048
"""Ends that are put on record, and the length of a termination message."""


def due(pods: Sequence[Object]) -> list[datetime]:
    """When each pod that goes on without our container has had time enough to end by itself."""
    return [_ended_at(pod) + LINGER for pod in _lingering(pods)]


def outlived(job: Object, pods: Sequence[Object], now: datetime) -> bool:
    """Whether our containers of all pods of an attempt have ended, in pods of which one goes on."""
    late = [at for at in due(pods) if at <= now]
    complete = len({index_of(pod) for pod in pods}) >= int(job["spec"].get("parallelism", 1))
    return bool(late) and complete and not any(map(is_live, pods)) and len(late) == len(due(pods))


def failed(pods: Sequence[Object], now: datetime) -> list[Object]:
    """The pods that go on though our container in them has failed."""
    return [pod for pod in _lingering(pods) if (terminated(pod) or {}).get("exitCode") and _ended_at(pod) + LINGER <= now]


def ending(pods: Sequence[Object]) -> dict[str, Any]:
    """What to put on record of an attempt that ends because our container has failed in these pods."""
    first = sorted(pods, key=_ended_at)[:KEPT]
    name, code = first[0]["metadata"]["name"], (terminated(first[0]) or {}).get("exitCode")
    message = f"pod {name}: the stage ended with exit code {code}, and another container of the pod runs on"
    return {"ending": {"reason": "PodFailed", "message": message}, "ends": [_record(pod) for pod in first]}


def revived(ends: Sequence[Object], pods: Sequence[Object], owner_uid: str | None) -> Iterator[Object]:
    """Pods made from their recorded ends, but those that are still there."""
    there = {pod["metadata"]["name"] for pod in pods}
    for end in ends:
        if end["pod"] in there:
            continue
        state = {name: end[name] for name in ("exitCode", "reason", "message", "finishedAt") if name in end}
        reference = {"uid": owner_uid, "controller": True}
        metadata = {"name": end["pod"], "annotations": {INDEX_ANNOTATION: str(end["index"])}, "ownerReferences": [reference] if owner_uid else []}
        status = {"phase": "Failed", "containerStatuses": [{"name": CONTAINER, "state": {"terminated": state}}]}
        yield {"kind": "Pod", "metadata": metadata, "spec": {"nodeName": end.get("node", "")}, "status": status}


def _lingering(pods: Sequence[Object]) -> list[Object]:
    return [pod for pod in pods if terminated(pod) and not is_over(pod) and "deletionTimestamp" not in pod["metadata"]]


def _ended_at(pod: Object) -> datetime:
    told = (terminated(pod) or {}).get("finishedAt") or pod["metadata"].get("creationTimestamp")
    return moment(told) if told else NEVER


def _record(pod: Object) -> Object:
    state = terminated(pod) or {}
    told = {name: state[name] for name in ("exitCode", "reason", "finishedAt") if name in state}
    text = {"message": state["message"][:TEXT_LIMIT]} if state.get("message") else {}
    return {"pod": pod["metadata"]["name"], "index": index_of(pod)} | ({"node": node} if (node := node_of(pod)) else {}) | told | text
