"""The Kubernetes resources that the operator watches or writes, and where the API server has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
        Resource("ConfigMap", "v1", "configmaps", _CHILDREN),
        Resource("Service", "v1", "services", _CHILDREN),
        Resource("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies", _CHILDREN),
        # Those that a spec names are the users' own: no label of ours is on them.
        Resource("PersistentVolumeClaim", "v1", "persistentvolumeclaims"),
        # Kueue's. No label says which are of our Jobs: their controllers do.
        Resource("Workload", "kueue.x-k8s.io/v1beta2", "workloads", optional=True),
    )
}


_NOISE: Mapping[str, frozenset[str]] = {"Job": frozenset(("active", "ready", "terminating", "uncountedTerminatedPods"))}
"""Counters in a status that nobody reads: without them most changes of a Job are none, and wake nobody."""


def tidy(obj: Object, resource: Resource) -> Object:
    """`obj` as the store keeps it: with its type (items of a LIST lack it), without what is never read.

    That is `managedFields` (half of its size), a pod's finalizers (by which the Job controller counts), counters, and the spec of an
    optional resource: the store holds everybody's, and only owner and conditions are read.
    """
    dropped = ("managedFields", "finalizers") if resource.kind == "Pod" else ("managedFields",)
    metadata = {key: value for key, value in obj["metadata"].items() if key not in dropped}
    kept = {key: value for key, value in obj.items() if key != "spec"} if resource.optional else obj
    tidied = {**kept, "apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}
    if noise := _NOISE.get(resource.kind):
        tidied["status"] = {key: value for key, value in (obj.get("status") or {}).items() if key not in noise}
    return tidied
