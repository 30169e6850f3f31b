"""The Kubernetes resources that the operator watches or writes, and where the API server has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tunesmith.podstatus import INDEX_ANNOTATION
from tunesmith.values import API_VERSION, MANAGED_BY, Object


@dataclass(frozen=True)
class Resource:
    """One resource type. `ours`: one of the three kinds. `selector`: only objects with these labels are watched and listed.

    `optional`: another project's, watched where it is installed.
    """

    kind: str
    api_version: str
    plural: str
    selector: str = ""
    ours: bool = False
    optional: bool = False

    @property
    def group(self) -> str:
        """The API group; empty for core."""
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        """The API version."""
        return self.api_version.rpartition("/")[2]

    @property
    def api_path(self) -> str:
        """The REST path of its API version."""
        return f"/apis/{self.api_version}" if self.group else f"/api/{self.api_version}"

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The REST path of the collection, the object or the object's subresource; all namespaces if none is given."""
        parts = [self.api_path, *(("namespaces", namespace) if namespace else ()), self.plural, name, subresource]
        return "/".join(part for part in parts if part)


_CHILDREN = ",".join(f"{key}={value}" for key, value in MANAGED_BY.items())

RESOURCES: Mapping[str, Resource] = {
    resource.kind: resource
    for resource in (
        Resource("FineTuneJob", API_VERSION, "finetunejobs", ours=True),
        Resource("EvalRun", API_VERSION, "evalruns", ours=True),
        Resource("ModelDeployment", API_VERSION, "modeldeployments", ours=True),
        Resource("Job", "batch/v1", "jobs", _CHILDREN),
        Resource("Deployment", "apps/v1", "deployments", _CHILDREN),
        Resource("Pod", "v1", "pods", _CHILDREN),
        Resource("Service", "v1", "services", _CHILDREN),
        Resource("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies", _CHILDREN),
        # Those that a spec names are the users' own: no label of ours is on them.
        Resource("PersistentVolumeClaim", "v1", "persistentvolumeclaims"),
        # Kueue's. No label says which are of our Jobs: their controllers do.
        Resource("Workload", "kueue.x-k8s.io/v1beta2", "workloads", optional=True),
    )
}


_COUNTERS = frozenset(("active", "ready", "terminating", "uncountedTerminatedPods"))


def tidy(obj: Object, resource: Resource) -> Object:
    """`obj` as the store keeps it: with its type (items of a LIST lack it), without what is never read.

    That is `managedFields` (half of its size) and, of what there is most of: a pod's spec and annotations but for its node and
    its index, a Job's template but for its containers' images and what they may take, and its counters,
    without which most of its changes are none and wake nobody.
    Neither is ever written again once it is made. Of an optional resource the store holds everybody's: only owner and conditions are read.
    """
    metadata = {key: value for key, value in obj["metadata"].items() if key != "managedFields"}
    tidied = {**obj, "apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}
    if resource.optional:
        tidied.pop("spec", None)
    elif resource.kind == "Pod":
        _tidy_pod(tidied)
    elif resource.kind == "Job":
        _tidy_job(tidied)
    return tidied


def _tidy_pod(pod: Object) -> None:
    metadata, annotations = pod["metadata"], pod["metadata"].get("annotations") or {}
    # By its finalizers the Job controller counts.
    for name in ("annotations", "finalizers"):
        metadata.pop(name, None)
    if INDEX_ANNOTATION in annotations:
        metadata["annotations"] = {INDEX_ANNOTATION: annotations[INDEX_ANNOTATION]}
    spec = pod.pop("spec", None) or {}
    if spec.get("nodeName"):
        pod["spec"] = {"nodeName": spec["nodeName"]}


def _tidy_job(job: Object) -> None:
    job["status"] = {key: value for key, value in (job.get("status") or {}).items() if key not in _COUNTERS}
    spec = job.get("spec") or {}
    containers = spec.get("template", {}).get("spec", {}).get("containers", ())
    if containers:
        kept = [{"name": each.get("name"), "image": each.get("image"), "resources": each.get("resources", {})} for each in containers]
        job["spec"] = {**spec, "template": {"spec": {"containers": kept}}}
