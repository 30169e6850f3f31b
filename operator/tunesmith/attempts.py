"""Reads one attempt of a stage from its Job and its pods: is it over, how did it end, and if it does not run, why not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from tunesmith.results import Result, parse_result
from tunesmith.values import Object

INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
OVERDUE = timedelta(seconds=30)
"""A pod that outlives its deletion by this much is on a node that no longer answers."""
DISRUPTIVE = frozenset(("Evicted", "NodeLost", "NodeShutdown", "Preempting", "Shutdown", "Terminated"))
"""Values of a pod's `status.reason` that tell of the node, not of the program."""
_STARTING = frozenset(("ContainerCreating", "PodInitializing"))


@dataclass(frozen=True)
class Verdict:
    """How an attempt ended. Retry: the program failed and may be tried again; Free: so, but it was not the program's fault."""

    outcome: Literal["Succeeded", "Failed", "Retry", "Free"]
    reason: str
    message: str = ""
    result: Result | None = None


@dataclass(frozen=True)
class Note:
    """What an attempt is doing; `running` when a pod runs."""

    reason: str
    message: str
    running: bool = False


def is_live(pod: Object) -> bool:
    """Whether a process of the pod may still be running somewhere."""
    return _status(pod).get("phase") not in ("Succeeded", "Failed")


def is_finished(job: Object) -> bool:
    """Whether the Job is over and no controller will make another pod for it."""
    return any(condition["type"] in ("Complete", "Failed") and condition["status"] == "True" for condition in _conditions(job))


def overdue_at(pod: Object) -> datetime | None:
    """When a live pod that is being deleted has to be given up; None if it is not being deleted. (deletionTimestamp includes the grace period.)"""
    deletion = pod["metadata"].get("deletionTimestamp")
    return moment(deletion) + OVERDUE if deletion and is_live(pod) else None


def moment(text: str) -> datetime:
    """A metav1.Time as datetime."""
    return datetime.fromisoformat(text)


def judge(stage: str, pods: Sequence[Object], disruption: str) -> Verdict:
    """How an attempt ended that has no live pod. `disruption`: what was seen of one while its pods lived (they may be gone by now).

    Success is read from the result of pod 0 alone. A result that blames settings or data outweighs a disruption; a disruption
    outweighs other failures, since the pods that stay behind when one is taken away fail in ways of their own.
    """
    results = _results(stage, pods)
    answer = results.get(0) or next((result for result in results.values() if result.outcome != "Succeeded"), None)
    if answer and answer.outcome == "Succeeded":
        return Verdict("Succeeded", "Succeeded", result=answer)
    if answer and answer.final:
        return Verdict("Failed", answer.reason or "Failed", answer.message or "", answer)
    if answer and answer.interrupted:
        return Verdict("Free", answer.reason or "Interrupted", answer.message or "", answer)
    disruption = disruption or disruption_of(pods)
    if disruption:
        return Verdict("Free", "Disrupted", disruption)
    # Ahead of the answer: the processes that stay behind when the kernel kills one only know that it is gone.
    out_of_memory = _out_of_memory(pods)
    if out_of_memory:
        return Verdict("Retry", "OutOfMemory", out_of_memory)
    if answer:
        return Verdict("Retry", answer.reason or "Failed", answer.message or "", answer)
    return _without_result(pods)


def disruption_of(pods: Iterable[Object]) -> str:
    """What took a pod away that was not the program's fault; empty if nothing did."""
    for pod in pods:
        status, name = _status(pod), pod["metadata"]["name"]
        for condition in _conditions(pod):
            if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
                return f"{condition.get('reason', 'DisruptionTarget')}: pod {name}: {condition.get('message', '')}"
        if status.get("reason") in DISRUPTIVE:
            return f"{status['reason']}: pod {name}: {status.get('message', '')}"
    return ""


def describe(job: Object | None, pods: Sequence[Object]) -> Note:
    """What an attempt is doing that is not over."""
    live = [pod for pod in pods if is_live(pod)]
    if job is None:
        return Note("Ending", _ending(live)) if live else Note("Creating", "its Job is being created")
    if job["metadata"].get("deletionTimestamp"):
        return Note("Ending", _ending(live))
    if job["spec"].get("suspend"):
        return Note("Queued", "its Job is held by a queue")
    blocked = next((note for pod in live if (note := obstacle(pod))), None)
    if blocked:
        return blocked
    running = [pod for pod in live if _status(pod).get("phase") == "Running"]
    if running and len(running) == len(live):
        return Note("Running", "running", running=True)
    return Note("Starting", f"{len(running)} of {job['spec'].get('parallelism', 1)} pods run")


def _ending(live: Sequence[Object]) -> str:
    return f"{len(live)} pods are saving their work and ending"


def obstacle(pod: Object) -> Note | None:
    """What keeps a pod from running, if anything does: no node for it, no image."""
    name = pod["metadata"]["name"]
    for condition in _conditions(pod):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return Note(condition.get("reason", "Unschedulable"), f"pod {name}: {condition.get('message', '')}")
    for container in _status(pod).get("containerStatuses", ()):
        waiting = container.get("state", {}).get("waiting")
        if waiting and waiting.get("reason") not in _STARTING:
            return Note(waiting.get("reason", "Waiting"), f"pod {name}: {waiting.get('message', '')}")
    return None


def _results(stage: str, pods: Sequence[Object]) -> dict[int, Result]:
    """Results by pod index. A queue may have held the Job and let it go again: of an index' pods the newest counts."""
    found: dict[int, Result] = {}
    for pod in sorted(pods, key=lambda pod: (_index(pod), pod["metadata"].get("creationTimestamp", ""))):
        result = parse_result(stage, (_terminated(pod) or {}).get("message", ""))
        if result:
            found[_index(pod)] = result
    return found


def _out_of_memory(pods: Sequence[Object]) -> str:
    """Advice if a pod was killed for memory; empty if none was."""
    killed = next((pod for pod in sorted(pods, key=_index) if (_terminated(pod) or {}).get("reason") == "OOMKilled"), None)
    if killed is None:
        return ""
    return f"pod {killed['metadata']['name']} used more memory than its limit: raise `memory`, or lower the batch size or length"


def _without_result(pods: Sequence[Object]) -> Verdict:
    ended = next((ended for pod in sorted(pods, key=_index) if (ended := _terminated(pod)) and ended.get("exitCode")), None)
    if ended:
        return Verdict("Retry", "NoResult", f"its pod ended with exit code {ended['exitCode']} ({ended.get('reason', 'Error')}) and told no result")
    return Verdict("Retry", "NoResult", "its pods are gone and told no result")


def _index(pod: Object) -> int:
    return int(pod["metadata"].get("annotations", {}).get(INDEX_ANNOTATION, 0))


def _terminated(pod: Object) -> dict[str, Any] | None:
    states = [container.get("state", {}).get("terminated") for container in _status(pod).get("containerStatuses", ())]
    return next((state for state in states if state), None)


def _status(item: Object) -> dict[str, Any]:
    status: dict[str, Any] = item.get("status") or {}
    return status


def _conditions(item: Object) -> list[dict[str, Any]]:
    conditions: list[dict[str, Any]] = _status(item).get("conditions") or []
    return conditions
