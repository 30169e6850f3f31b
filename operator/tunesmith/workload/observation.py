"""Reads one attempt of a stage from its Job and its pods: is it over, what is it doing, and if it does not run, why not.

`failures.py` says how one ended that is over.

A training pod whose node stops is replaced within 90 s of the stop, with the control plane's defaults:

    40-60 s  the kubelet's last lease was renewed up to 10 s before the stop; kube-controller-manager waits `--node-monitor-grace-period` (50 s)
             from when it saw that, looks every 5 s, then marks the node's pods not ready and taints it
    +10 s    the pods' tolerationSeconds (pods.TRAINING_UNREACHABLE_SECONDS), then they are deleted
    +5 s     SILENT since the pods were marked, then they are deleted by force, and the next attempt is made at once
    +5 s     it is scheduled and its containers start (the image is there)

Meanwhile the pods on other nodes must have given up: the trainer finds a peer that is gone or silent within 60 s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tunesmith.core.objects import CONTAINER, Object
from tunesmith.workload.podstatus import (
    STARTING,
    conditions_of,
    container_of,
    index_of,
    init_containers,
    is_live,
    is_running,
    is_unknown,
    moment,
    scheduled,
    scheduled_at,
    silent_since,
    status_of,
)

OVERDUE = timedelta(seconds=30)
"""A pod that outlives its deletion by this much is on a node that no longer answers."""
DISRUPTIVE = frozenset(("NodeLost", "NodeShutdown", "Preempting", "Shutdown", "Terminated"))
"""Values of a pod's `status.reason` that tell of the node, not of the program. Evicted is not among them: a pod that had to make room
also has DisruptionTarget, and one that took more than its own limits has not."""
SILENT = timedelta(seconds=15)
"""A kubelet that lives puts right within 10 s what others wrote into its pods' status."""
LOST = timedelta(minutes=6)
"""A pod whose node is silent for so long is deleted, whatever it tolerates: longer than Kubernetes would leave it there by default."""
UNPLACED = timedelta(seconds=120)
"""An attempt whose pods cannot all be placed for so long is given up if it can do with fewer nodes."""


@dataclass(frozen=True)
class Note:
    """What an attempt is doing; `running` when a pod runs."""

    reason: str
    message: str
    running: bool = False


def is_finished(job: Object) -> bool:
    """Whether the Job is over and no controller will make another pod for it."""
    return any(condition["type"] in ("Complete", "Failed") and condition["status"] == "True" for condition in conditions_of(job))


def overdue_at(pod: Object) -> datetime | None:
    """When a live pod that is being deleted has to be given up; None if it is not being deleted. (deletionTimestamp includes the grace period.)"""
    metadata = pod["metadata"]
    if "deletionTimestamp" not in metadata or not is_live(pod):
        return None
    deletion, silent = moment(metadata["deletionTimestamp"]), silent_since(pod)
    if silent is None:
        return deletion + OVERDUE
    # Nobody is there to use the grace period.
    asked = deletion - timedelta(seconds=metadata.get("deletionGracePeriodSeconds", 0))
    return max(asked, silent + SILENT)


def lost_at(pod: Object, patience: timedelta = timedelta(0)) -> datetime | None:
    """When a live pod that nobody deletes has to be, since its node does not answer; None if it does.

    `patience`: how long the user wants it to stay. A pod that no kubelet has taken note of since it was bound is on such a node too.
    """
    if not is_live(pod) or "deletionTimestamp" in pod["metadata"]:
        return None
    silent = silent_since(pod) or (scheduled_at(pod) if is_unknown(pod) else None)
    return silent + max(LOST, patience + SILENT) if silent else None


def unplaced_at(pod: Object) -> datetime | None:
    """When a pod without a node has waited long enough for one; None if it has one, or nobody has looked for one yet."""
    condition = scheduled(pod)
    waits = is_live(pod) and condition.get("status") == "False" and condition.get("reason") == "Unschedulable"
    return moment(condition["lastTransitionTime"]) + UNPLACED if waits else None


def placed(pods: Sequence[Object], now: datetime) -> int | None:
    """How many pods of an attempt have a node, once the others have waited long enough for one; None before."""
    waiting = [at for pod in pods if (at := unplaced_at(pod))]
    return sum(scheduled(pod).get("status") == "True" for pod in pods) if waiting and min(waiting) <= now else None


def disruption_of(pods: Iterable[Object]) -> str:
    """What took a pod away that was not the program's fault; empty if nothing did."""
    for pod in pods:
        status, name = status_of(pod), pod["metadata"]["name"]
        for condition in conditions_of(pod):
            if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
                return f"{condition.get('reason', 'DisruptionTarget')}: pod {name}: {condition.get('message', '')}"
        if status.get("reason") in DISRUPTIVE:
            return f"{status['reason']}: pod {name}: {status.get('message', '')}"
        if "deletionTimestamp" in pod["metadata"] and is_live(pod) and silent_since(pod):
            return f"NodeLost: pod {name}: its node does not answer"
    return ""


def removal_of(job: Object | None, pods: Sequence[Object]) -> str:
    """Which pod somebody deleted while its attempt was under way; empty if nobody did.

    The Job's controller deletes pods too: where one has failed, and where the Job is suspended or deleted. Such a pod saves and tells
    its result as any other, but is gone a moment later, often before that result was seen.
    """
    ended_by_controller = job is None or is_finished(job) or job["spec"].get("suspend") or "deletionTimestamp" in job["metadata"]
    if ended_by_controller or any(status_of(pod).get("phase") == "Failed" for pod in pods):
        return ""
    names = (pod["metadata"]["name"] for pod in pods if is_live(pod) and "deletionTimestamp" in pod["metadata"])
    return next((f"PodDeleted: pod {name} was deleted" for name in names), "")


ALL_DELETED = "PodDeleted: none of its pods is left, and one that fails stays until it is deleted"
"""What took the pods of a Job that is there and has none: that one was deleted was not seen in time."""
NOTHING_RUNS = Note("Starting", "no pod runs yet")
"""Of an attempt whose Job may not even be there: two states that a user need not tell apart, for one status write less."""


def describe(job: Object | None, pods: Sequence[Object], refused: str = "") -> Note:
    """What an attempt is doing that is not over. `refused`: why pods of it are not made."""
    live = [pod for pod in pods if is_live(pod)]
    if job is None or job["metadata"].get("deletionTimestamp"):
        return Note("Ending", _ending(live))
    blocked = next((note for pod in live if (note := obstacle(pod))), None)
    if blocked:
        return blocked
    if refused:
        return Note("PodsRefused", f"pods of Job {job['metadata']['name']} are not made: {refused}")
    running = [pod for pod in live if is_running(pod)]
    wanted = int(job["spec"].get("parallelism", 1))
    if pods and len(running) == len(live) and len({index_of(pod) for pod in pods}) >= wanted:
        # They may all have ended, and the Job controller has not said so yet.
        return Note("Running", "running", running=True)
    return Note("Starting", f"{len(running)} of {wanted} pods run") if running else NOTHING_RUNS


def _ending(live: Sequence[Object]) -> str:
    return f"{len(live)} pods are saving their work and ending"


def obstacle(pod: Object) -> Note | None:
    """What keeps a pod from running, if anything does: no node for it, no image."""
    name = pod["metadata"]["name"]
    condition = scheduled(pod)
    if condition.get("status") == "False":
        return Note(condition.get("reason", "Unschedulable"), f"pod {name}: {condition.get('message', '')}")
    for container in (container_of(pod), *init_containers(pod)):
        waiting = container.get("state", {}).get("waiting")
        if waiting and waiting.get("reason") not in STARTING:
            which = "" if container.get("name", CONTAINER) == CONTAINER else f"container {container.get('name')} has to begin before the stage does: "
            return Note(waiting.get("reason", "Waiting"), f"pod {name}: {which}{waiting.get('message', '')}")
    return None
