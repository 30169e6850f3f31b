"""The Kubernetes resources that the operator watches or writes, and where the API server has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from tunesmith.core.objects import API_VERSION, GROUP, MANAGED_BY, Object
from tunesmith.kinds import KINDS
from tunesmith.workload.podstatus import INDEX_ANNOTATION

Trim = Callable[[Object], Object]


def _whole(obj: Object) -> Object:
    return obj


@dataclass(frozen=True)
class Resource:
    """One resource type, and how the operator watches it."""

    kind: str
    api_version: str
    plural: str
    selector: str = ""
    """Only objects with these labels are watched and listed."""
    ours: bool = False
    """Whether it is one of the three kinds."""
    watch: Literal["Always", "WhereServed"] = "Always"
    """WhereServed: another project's, watched where the API server had it when the operator started."""
    via: str = ""
    """The kind of ours that controls it, where an object of the three kinds does so only through that one."""
    trim: Trim = _whole
    """What is kept of an object, whose metadata is trimmed already."""

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


_COUNTERS = frozenset(("active", "ready", "terminating", "uncountedTerminatedPods"))
_POD_STATUS = frozenset(("phase", "reason", "message", "startTime", "conditions"))
_CONTAINER_STATUS = frozenset(("name", "state", "lastState", "ready", "restartCount"))


def _only(obj: Object, **fields: tuple[str, ...]) -> Object:
    """Type and metadata of `obj`, and of its other fields those members."""
    parts = {name: {key: value for key, value in (obj.get(name) or {}).items() if key in members} for name, members in fields.items()}
    return {name: obj[name] for name in ("apiVersion", "kind", "metadata")} | parts


def _trim_metadata(metadata: Object, resource: Resource) -> Object:
    # By finalizers the Job controller counts pods.
    dropped = {"managedFields", "annotations", "finalizers", "generateName"} | (set() if resource.selector else {"labels"})
    kept = {key: value for key, value in metadata.items() if key not in dropped}
    annotations = {key: value for key, value in (metadata.get("annotations") or {}).items() if key == INDEX_ANNOTATION or key.startswith(f"{GROUP}/")}
    return kept | ({"annotations": annotations} if annotations else {}) if resource.selector else kept


def _is_controlled(obj: Object) -> bool:
    """Whether an object of ours controls it, as far as it says so."""
    references = obj["metadata"].get("ownerReferences") or ()
    return any(reference.get("controller") and str(reference.get("apiVersion", API_VERSION)).startswith(f"{GROUP}/") for reference in references)


def _trim_pod(pod: Object) -> Object:
    """Its node, its index and the states of its containers."""
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
    return pod


def _trim_child(obj: Object) -> Object:
    """All of it; of one that no object of ours controls, though it has our label, only that it is there."""
    return obj if _is_controlled(obj) else _only(obj)


def _trim_job(job: Object) -> Object:
    """Images of its containers and what they may take: it is never written again once it is made. Its counters change with each pod."""
    if not _is_controlled(job):
        return _only(job)
    job["status"] = {key: value for key, value in (job.get("status") or {}).items() if key not in _COUNTERS}
    spec = job.get("spec") or {}
    containers = spec.get("template", {}).get("spec", {}).get("containers", ())
    if containers:
        kept = [{"name": each.get("name"), "image": each.get("image"), "resources": each.get("resources", {})} for each in containers]
        job["spec"] = {**spec, "template": {"spec": {"containers": kept}}}
    return job


def _trim_claim(claim: Object) -> Object:
    """Its access modes."""
    return _only(claim, spec=("accessModes",))


def _trim_to_conditions(obj: Object) -> Object:
    """Its conditions: the store holds everybody's."""
    return _only(obj, status=("conditions",))


_CHILDREN = ",".join(f"{key}={value}" for key, value in MANAGED_BY.items())

RESOURCES: Mapping[str, Resource] = {
    resource.kind: resource
    for resource in (
        *(Resource(kind.name, API_VERSION, kind.plural, ours=True) for kind in KINDS.values()),
        Resource("Job", "batch/v1", "jobs", _CHILDREN, trim=_trim_job),
        Resource("Deployment", "apps/v1", "deployments", _CHILDREN, trim=_trim_child),
        Resource("Pod", "v1", "pods", _CHILDREN, trim=_trim_pod),
        Resource("Service", "v1", "services", _CHILDREN, trim=_trim_child),
        Resource("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies", _CHILDREN, trim=_trim_child),
        # Those that a spec names are the users' own: no label of ours is on them.
        Resource("PersistentVolumeClaim", "v1", "persistentvolumeclaims", trim=_trim_claim),
        # Kueue's. No label says which are of our Jobs: their controllers do.
        Resource("Workload", "kueue.x-k8s.io/v1beta2", "workloads", watch="WhereServed", via="Job", trim=_trim_to_conditions),
    )
}


def trim(obj: Object, resource: Resource) -> Object:
    """Return `obj` as the store keeps it: with its type (items of a list lack it), and of what is not one of the three kinds only what is read.

    Anybody may make such objects as large as the API server lets them be, and there are many: without this a tenant would fill the memory
    that all share.
    """
    kept = {**obj, "apiVersion": resource.api_version, "kind": resource.kind}
    if resource.ours:
        return kept | {"metadata": {key: value for key, value in obj["metadata"].items() if key != "managedFields"}}
    kept["metadata"] = _trim_metadata(obj["metadata"], resource)
    return resource.trim(kept)
