"""What a revision's Deployment and pods tell: how many serve, why the others do not, and whether they ever will."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tunesmith.core.objects import Object, Observed
from tunesmith.modeldeployment.revision import Revision, child_name, of_revision
from tunesmith.workload.observation import obstacle
from tunesmith.workload.podstatus import container_of, is_running
from tunesmith_contract import results

RESTARTS_TO_FAIL = 2
"""After so many restarts the engine counts as failed; it is told as such until it is ready, not in turns with `Starting`."""


class Failure(NamedTuple):
    """Why a revision does not get ready."""

    reason: str
    message: str


def deployment_of(observed: Observed, revision: Revision) -> Object | None:
    """The revision's Deployment, if it is there."""
    return observed.child("Deployment", child_name(observed.owner, revision.name))


def count(deployment: Object | None, field: str) -> int:
    """A number of a Deployment's status; 0 where it is absent."""
    return int(((deployment or {}).get("status") or {}).get(field, 0))


def ready_pods(observed: Observed, revision: Revision | None) -> int:
    """How many pods of the revision answer requests."""
    return count(deployment_of(observed, revision), "readyReplicas") if revision else 0


def is_complete(observed: Observed, revision: Revision, replicas: int) -> bool:
    """Whether the Deployment controller has seen the revision's present template and all its pods are ready."""
    deployment = deployment_of(observed, revision)
    if deployment is None or deployment["spec"].get("replicas") != replicas:
        return False
    current = count(deployment, "observedGeneration") >= deployment["metadata"].get("generation", 0)
    return current and min(count(deployment, "readyReplicas"), count(deployment, "updatedReplicas")) >= replicas


def pods_of(observed: Observed, revision: Revision) -> list[Object]:
    """The revision's pods that are not on their way out."""
    return [pod for pod in of_revision(observed.of_kind("Pod"), revision.name) if "deletionTimestamp" not in pod["metadata"]]


def failure_of(observed: Observed, revision: Revision) -> Failure | None:
    """Why the revision will not get ready by itself, from its pods' last termination; None while there is hope."""
    return _failure(pods_of(observed, revision))


def is_stuck(observed: Observed, revision: Revision) -> bool:
    """Whether no pod of the revision has begun to work: each has failed or lacks something, or none may be made."""
    pods = pods_of(observed, revision)
    return all(obstacle(pod) or _failure([pod]) for pod in pods) if pods else bool(_replica_failure(observed, revision))


def _failure(pods: Iterable[Object]) -> Failure | None:
    failures = (_container_failure(container) for container in _unready_containers(pods))
    return next((failure for failure in failures if failure), None)


def _unready_containers(pods: Iterable[Object]) -> Iterable[Mapping[str, Any]]:
    for pod in pods:
        container = container_of(pod)
        if container and not container.get("ready"):
            yield container


def _container_failure(container: Mapping[str, Any]) -> Failure | None:
    states = (container.get("state") or {}, container.get("lastState") or {})
    terminated = next((state["terminated"] for state in states if state.get("terminated")), None)
    if terminated is None:
        return None
    text = str(terminated.get("message") or "").strip()
    result = results.parse_result("Serve", text)
    failure = result if isinstance(result, results.Failure) else None
    if failure and failure.final:
        return Failure(failure.reason or "Failed", failure.message or "")
    if container.get("restartCount", 0) < RESTARTS_TO_FAIL:
        return None
    if terminated.get("reason") == "OOMKilled":
        return Failure("OutOfMemory", "it used more memory than its limit: raise `resources.memory`, or lower what the engine keeps in it")
    # An engine that died without its launcher leaves other text or none.
    cause = (failure.message if failure else text[-512:]) or ""
    return Failure("EngineFailed", f"{cause or terminated.get('reason', 'Error')} (exit code {terminated['exitCode']})")


def obstacle_of(observed: Observed, revision: Revision) -> str:
    """In words, what the revision's pods are waiting for."""
    told = (_replica_failure(observed, revision), *(_obstacle(pod) for pod in pods_of(observed, revision)))
    return next((text for text in told if text), "")


def _replica_failure(observed: Observed, revision: Revision) -> str:
    """Why pods cannot be made: a quota, an admission controller."""
    status = (deployment_of(observed, revision) or {}).get("status") or {}
    failures = (each for each in status.get("conditions", ()) if each["type"] == "ReplicaFailure" and each["status"] == "True")
    return next((str(each.get("message", "")) for each in failures), "")


def _obstacle(pod: Object) -> str:
    note = obstacle(pod)
    if note:
        return f"{note.reason}: {note.message}"
    return "the engine is loading the model" if is_running(pod) else ""
