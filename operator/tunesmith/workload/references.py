"""Reads the models that a spec names by FineTuneJob or ModelDeployment: waits for those to come, and tells when they will not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.api.conditions import find, is_true
from tunesmith.core.errors import DependencyFailed, NotReadyYet
from tunesmith.core.objects import Object, Observed
from tunesmith.workload.podspec import mounted


def named_job(observed: Observed, name: str) -> Object:
    """The FineTuneJob of that name."""
    job = observed.reference("FineTuneJob", name)
    if job is None:
        raise NotReadyYet("DependencyNotReady", f"FineTuneJob {name} does not exist")
    return job


def status_of(reference: Object) -> Mapping[str, Any]:
    """The status of an object that is named, as far as it has one."""
    status: Mapping[str, Any] = reference.get("status") or {}
    return status


def artifact_of(job: Object, artifact: str) -> Object:
    """`{uri, digest}` of a finished artefact of a FineTuneJob."""
    name, status = job["metadata"]["name"], status_of(job)
    found = next((entry for entry in status.get("artifacts", ()) if entry["name"] == artifact), None)
    if found:
        return {"uri": found["uri"], "digest": found["digest"]}
    require_hope(job, f"artifact {artifact}")
    if is_true(status, "Succeeded"):
        raise DependencyFailed(f"FineTuneJob {name} is done and has no artifact {artifact}: make one with it in `output.artifacts` or `variants`")
    raise NotReadyYet("DependencyNotReady", f"FineTuneJob {name} has not finished artifact {artifact}")


def require_hope(dependency: Object, awaited: str) -> None:
    """Refuse to wait for what an object that has failed will not make."""
    stalled = find(status_of(dependency), "Stalled")
    if stalled and stalled["status"] == "True":
        failed = f"{dependency['kind']} {dependency['metadata']['name']} failed before {awaited}"
        raise DependencyFailed(f"{failed}: {stalled['reason']}: {stalled['message']}")


def model_of(observed: Observed, source: Mapping[str, Any]) -> Object:
    """`{uri, digest?}` of a ModelSource; a plain URI gets its digest from the stage that reads it."""
    if "uri" in source:
        return {"uri": source["uri"]}
    if "modelDeploymentRef" in source:
        return served_by(observed, source["modelDeploymentRef"]["name"])
    return artifact_of(named_job(observed, source["fineTuneJobRef"]["name"]), source["artifact"])


def served_by(observed: Observed, name: str) -> Object:
    """`{uri, digest?}` of what the ModelDeployment of that name serves now: its active revision's."""
    deployment = observed.reference("ModelDeployment", name)
    if deployment is None:
        raise NotReadyYet("DependencyNotReady", f"ModelDeployment {name} does not exist")
    active = next((entry for entry in status_of(deployment).get("revisions", ()) if entry["state"] == "Active"), None)
    if active:
        return {field: active[field] for field in ("uri", "digest") if field in active}
    require_hope(deployment, "it served a model")
    raise NotReadyYet("DependencyNotReady", f"ModelDeployment {name} does not serve a model yet")


def require_claims(observed: Observed, *values: Any) -> None:
    """Refuse more volumes than a pod may mount, and wait for those that do not exist."""
    missing = [name for name in mounted(*values) if observed.reference("PersistentVolumeClaim", name) is None]
    if missing:
        raise NotReadyYet("VolumeNotFound", "waits for PersistentVolumeClaims that do not exist: " + ", ".join(missing))
