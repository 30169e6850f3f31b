"""The Kubernetes resources that the operator watches or writes, and where the API server has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tunesmith.core.objects import API_VERSION, GROUP, MANAGED_BY, Object
from tunesmith.kinds import KINDS
from tunesmith.workload.podstatus import INDEX_ANNOTATION


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
        *(Resource(kind.name, API_VERSION, kind.plural, ours=True) for kind in KINDS.values()),
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
_POD_STATUS = frozenset(("phase", "reason", "message", "startTime", "conditions"))
_CONTAINER_STATUS = frozenset(("name", "state", "lastState", "ready", "restartCount"))


def tidy(obj: Object, resource: Resource) -> Object:
    """`obj` as the store keeps it: with its type (items of a LIST lack it), and of what is not one of the three kinds only what is read.

    Anybody may make such objects as large as the API server lets them be, and there are many: without this a tenant would fill the memory
    that all share. Of a pod its node, its index and its containers' states are read; of a Job, which like a pod is never written again once it
    is made, its containers' images and what they may take, without its counters, whose changes would wake somebody each time; of a claim
    its modes; of an optional resource, of which the store holds everybody's, owner and conditions. Of a child that no object of ours controls,
    though it has our label, only that it is there.
    """
    kept = {**obj, "apiVersion": resource.api_version, "kind": resource.kind}
    if resource.ours:
        return kept | {"metadata": {key: value for key, value in obj["metadata"].items() if key != "managedFields"}}
    kept["metadata"] = _tidy_metadata(obj["metadata"], resource)
    if resource.kind == "Pod":
        _tidy_pod(kept)
    elif resource.kind == "PersistentVolumeClaim":
        kept = _only(kept, spec=("accessModes",))
    elif resource.optional:
        kept = _only(kept, status=("conditions",))
    elif not _is_controlled(kept):
        kept = _only(kept)
    elif resource.kind == "Job":
        _tidy_job(kept)
    return kept


def _only(obj: Object, **fields: tuple[str, ...]) -> Object:
    """Type and metadata of `obj`, and of its other fields those members."""
    parts = {name: {key: value for key, value in (obj.get(name) or {}).items() if key in members} for name, members in fields.items()}
    return {name: obj[name] for name in ("apiVersion", "kind", "metadata")} | parts


def _tidy_metadata(metadata: Object, resource: Resource) -> Object:
    # By finalizers the Job controller counts pods.
    dropped = {"managedFields", "annotations", "finalizers", "generateName"} | (set() if resource.selector else {"labels"})
    kept = {key: value for key, value in metadata.items() if key not in dropped}
    annotations = {key: value for key, value in (metadata.get("annotations") or {}).items() if key == INDEX_ANNOTATION or key.startswith(f"{GROUP}/")}
    return kept | ({"annotations": annotations} if annotations else {}) if resource.selector else kept


def _is_controlled(obj: Object) -> bool:
    """Whether an object of ours controls it, as far as it says so."""
    references = obj["metadata"].get("ownerReferences") or ()
    return any(reference.get("controller") and str(reference.get("apiVersion", API_VERSION)).startswith(f"{GROUP}/") for reference in references)


def _tidy_pod(pod: Object) -> None:
    annotations = pod["metadata"].pop("annotations", {})
    if INDEX_ANNOTATION in annotations:
        pod["metadata"]["annotations"] = {INDEX_ANNOTATION: annotations[INDEX_ANNOTATION]}
    spec, status = pod.pop("spec", None) or {}, pod.pop("status", None) or {}
    if spec.get("nodeName"):
        pod["spec"] = {"nodeName": spec["nodeName"]}
    pod["status"] = {key: value for key, value in status.items() if key in _POD_STATUS}
    for name in ("containerStatuses", "initContainerStatuses"):
        if name in status:
            pod["status"][name] = [{key: value for key, value in each.items() if key in _CONTAINER_STATUS} for each in status[name] or ()]


def _tidy_job(job: Object) -> None:
    job["status"] = {key: value for key, value in (job.get("status") or {}).items() if key not in _COUNTERS}
    spec = job.get("spec") or {}
    containers = spec.get("template", {}).get("spec", {}).get("containers", ())
    if containers:
        kept = [{"name": each.get("name"), "image": each.get("image"), "resources": each.get("resources", {})} for each in containers]
        job["spec"] = {**spec, "template": {"spec": {"containers": kept}}}
