"""Kueue's manners: a child Job that names a queue is created suspended, and from then on it is Kueue's to start and to stop.

Kueue admits a Job by writing node selectors and tolerations into its template and setting `suspend` to false; it evicts it by setting
`suspend` again, upon which the Job controller deletes the pods (training saves on SIGTERM). The Job stays, keeps its place by its age, and
runs again as the same attempt: it goes on from the last checkpoint. We never write to it. What Kueue thinks of it stands in a Workload
that the Job controls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tunesmith.core.objects import Object
from tunesmith.workload.observation import Note
from tunesmith.workload.podstatus import is_running

QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
INADMISSIBLE = frozenset(("Inadmissible", "Misconfigured", "Suspended", "NoMatchingFlavor", "ExceedsMaxQuota"))
"""Reasons of QuotaReserved=False that waiting does not mend. Kueue tells all but the first only with UnadmittedWorkloadsObservability."""
MESSAGE_LIMIT = 512


def labels(scheduling: Mapping[str, Any], gpus: bool = True) -> dict[str, str]:
    """Labels that put a Job or a Deployment into its queue; empty if none is named for it."""
    name = scheduling.get("queueName") if gpus else scheduling.get("cpuQueueName") or scheduling.get("queueName")
    if not name:
        return {}
    priority = scheduling.get("workloadPriorityClassName")
    return {QUEUE: name} | ({PRIORITY: priority} if priority else {})


def queued(job: Object, named: Mapping[str, str]) -> Object:
    """`job` as it is created: in the queue of the labels `named` and not begun; as it is if there is none."""
    if not named:
        return job
    metadata = {**job["metadata"], "labels": {**job["metadata"]["labels"], **named}}
    return {**job, "metadata": metadata, "spec": {**job["spec"], "suspend": True}}


def standing(job: Object, children: Iterable[Object]) -> dict[str, Any]:
    """Where a Job stands in its queue: `{name}` and, once there is a Workload, `{workload, quotaReserved, admitted, evicted, reason?,
    message?}`; empty if it names none."""
    name = job["metadata"].get("labels", {}).get(QUEUE)
    if not name:
        return {}
    workload = next((child for child in children if child["kind"] == "Workload" and _is_of(child, job)), None)
    if workload is None:
        return {"name": name}
    conditions = {condition["type"]: condition for condition in workload.get("status", {}).get("conditions", ())}
    holds = {type_: conditions.get(type_, {}).get("status") == "True" for type_ in ("QuotaReserved", "Admitted", "Evicted")}
    telling = "Evicted" if holds["Evicted"] else "Admitted" if holds["QuotaReserved"] else "QuotaReserved"
    told = {part: conditions[telling][part][:MESSAGE_LIMIT] for part in ("reason", "message") if conditions.get(telling, {}).get(part)}
    reserved, admitted, evicted = holds.values()
    return {"name": name, "workload": workload["metadata"]["name"], "quotaReserved": reserved, "admitted": admitted, "evicted": evicted} | told


def recorded(before: Mapping[str, Any], job: Object, children: Iterable[Object], running: bool) -> dict[str, Any]:
    """`{queue}` of a stage's entry: where its Job stands, or stood `before` where the difference is not worth a status write.

    Kueue's message changes with every other Job's coming and going: its reason counts. And between Kueue's word (the Workload) and its deed
    (the Job) is but a moment.
    """
    now = standing(job, children)
    unchanged = {**before, "message": ""} == {**now, "message": ""}
    settled = now.get("admitted", False) == running
    queue = now if settled and not unchanged else before
    return {"queue": dict(queue)} if queue else {}


def note(queue: Mapping[str, Any], pods: Iterable[Object]) -> Note:
    """What a suspended Job is doing that stands so."""
    running = sum(is_running(pod) for pod in pods)
    if running:
        return Note("Ending", f"its Job is suspended: {running} pods are saving their work and ending")
    if not queue:
        return Note("Queued", "its Job is suspended, but names no queue: whoever suspended it has to let it go on")
    why = ": ".join(queue[part] for part in ("reason", "message") if part in queue)
    if queue.get("evicted"):
        return Note("Queued", f"evicted from queue {queue['name']}, waits to be admitted again ({why})")
    waits = f"waits in queue {queue['name']}" + (f" ({why})" if why else "")
    inadmissible = not queue.get("quotaReserved") and queue.get("reason") in INADMISSIBLE
    return Note("QueueInadmissible" if inadmissible else "Queued", waits)


def _is_of(workload: Object, job: Object) -> bool:
    return any(reference["uid"] == job["metadata"]["uid"] for reference in workload["metadata"].get("ownerReferences", ()))
