"""Reads one pod: has our container begun, has it ended, is there a node for the pod, does that node still answer.

Other containers may have been injected into a pod, before ours in the list of statuses, or after: none of them is looked at.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tunesmith.core.objects import CONTAINER, Object

INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
STARTING = frozenset(("ContainerCreating", "PodInitializing"))
"""Reasons of a container that waits for nothing but its turn."""

GATED = "ReadinessGatesNotReady"


def moment(text: str) -> datetime:
    """A metav1.Time as datetime."""
    return datetime.fromisoformat(text)


def is_live(pod: Object) -> bool:
    """Whether our container may still be running somewhere, or may yet begin."""
    return not is_over(pod) and terminated(pod) is None


def is_over(pod: Object) -> bool:
    """Whether all containers of the pod have ended."""
    return status_of(pod).get("phase") in ("Succeeded", "Failed")


def is_running(pod: Object) -> bool:
    """Whether our container has begun and not ended, as far as its kubelet has reported.

    The phase alone does not say so: while an injected container has not begun it is Pending, and once ours has ended it is Running until
    the last one has.
    """
    state = container_of(pod).get("state")
    return not is_over(pod) and ("running" in state if state else status_of(pod).get("phase") == "Running")


def has_begun(pod: Object) -> bool:
    """Whether our container has ever run."""
    return is_running(pod) or terminated(pod) is not None or "running" in (container_of(pod).get("state") or {})


def silent_since(pod: Object) -> datetime | None:
    """Since when the pod's node has not answered, as far as the pod shows it.

    A kubelet derives Ready from ContainersReady. Ready alone is False where the node controller has marked the pods of a node that
    it calls not ready; a kubelet that lives soon takes that back.
    """
    conditions = {condition["type"]: condition for condition in conditions_of(pod)}
    ready, containers = (conditions.get(name, {}) for name in ("Ready", "ContainersReady"))
    # A kubelet names what it waits for: a readiness gate, which others may have put there. The node controller gives no reason.
    marked = (ready.get("status"), containers.get("status")) == ("False", "True") and ready.get("reason") != GATED
    return moment(ready["lastTransitionTime"]) if marked else None


def is_unknown(pod: Object) -> bool:
    """Whether the pod has a node whose kubelet has not taken note of it: that is the first thing that it writes down."""
    status = status_of(pod)
    return scheduled(pod).get("status") == "True" and status.get("phase") == "Pending" and not {"startTime", "containerStatuses"} & status.keys()


def scheduled_at(pod: Object) -> datetime | None:
    """When the pod was bound to its node; None if it was not."""
    condition = scheduled(pod)
    return moment(condition["lastTransitionTime"]) if condition.get("status") == "True" and "lastTransitionTime" in condition else None


def index_of(pod: Object) -> int:
    """The pod's completion index: its node rank."""
    return int(pod["metadata"].get("annotations", {}).get(INDEX_ANNOTATION, 0))


def terminated(pod: Object) -> dict[str, Any] | None:
    """How our container in the pod ended, if it has."""
    ended: dict[str, Any] | None = (container_of(pod).get("state") or {}).get("terminated")
    return ended


def container_of(pod: Object) -> dict[str, Any]:
    """The status of our container in the pod; empty where the kubelet has not reported one. Kubelets sort the statuses by name."""
    return next((status for status in status_of(pod).get("containerStatuses") or () if status.get("name", CONTAINER) == CONTAINER), {})


def container_in(job: Object) -> dict[str, Any]:
    """Our container in the pods that a Job makes; empty where it has none of that name."""
    return next((each for each in job["spec"]["template"]["spec"]["containers"] if each.get("name", CONTAINER) == CONTAINER), {})


def init_containers(pod: Object) -> list[dict[str, Any]]:
    """The statuses of the init containers, all injected, while they keep our container from beginning."""
    waits = (container_of(pod).get("state") or {}).get("waiting") or {}
    return (status_of(pod).get("initContainerStatuses") or []) if waits.get("reason") in STARTING else []


def scheduled(pod: Object) -> dict[str, Any]:
    """The pod's condition PodScheduled; empty if nobody has looked for a node yet.

    A scheduler that looked for a node while another bound the pod may write last: a pod that has a node is scheduled all the same.
    """
    condition = next((condition for condition in conditions_of(pod) if condition["type"] == "PodScheduled"), {})
    return {**condition, "status": "True"} if condition and (pod.get("spec") or {}).get("nodeName") else condition


def status_of(item: Object) -> dict[str, Any]:
    """The status of a pod or a Job."""
    status: dict[str, Any] = item.get("status") or {}
    return status


def conditions_of(item: Object) -> list[dict[str, Any]]:
    """The conditions of a pod or a Job."""
    conditions: list[dict[str, Any]] = status_of(item).get("conditions") or []
    return conditions
