"""The part of Kueue: the CRD of its Workload, as far as its documentation tells, and what its controller does to a Job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dev.cluster.processes import wait_until
from tests.integration.operators import Namespace
from tests.integration.rights import Right
from tests.integration.schema_server import APPLY, Server
from tunesmith.api.conditions import is_true
from tunesmith.core.objects import Object
from tunesmith.runtime.resources import RESOURCES

WORKLOAD = RESOURCES["Workload"]
RIGHTS = {Right(WORKLOAD.group, WORKLOAD.plural, verb) for verb in ("list", "watch")}
"""Of the operator, where Kueue is installed."""
_ANY: Object = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_CONDITIONS: Object = {
    "type": "array",
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["type"],
    "items": {
        "type": "object",
        "required": ["type", "status", "reason", "message", "lastTransitionTime"],
        "properties": {
            **{name: {"type": "string"} for name in ("type", "status", "reason", "message")},
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "observedGeneration": {"type": "integer", "format": "int64"},
        },
    },
}
CRD: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    # Groups of *.k8s.io are the community's: the annotation is what admits one that was not reviewed.
    "metadata": {"name": "workloads.kueue.x-k8s.io", "annotations": {"api-approved.kubernetes.io": "unapproved, a test"}},
    "spec": {
        "group": WORKLOAD.group,
        "scope": "Namespaced",
        "names": {"kind": "Workload", "listKind": "WorkloadList", "plural": "workloads", "singular": "workload"},
        "versions": [
            {
                "name": WORKLOAD.version,
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {
                                    "queueName": {"type": "string"},
                                    "active": {"type": "boolean"},
                                    "podSets": {"type": "array", "items": _ANY},
                                },
                            },
                            "status": {"type": "object", "properties": {"conditions": _CONDITIONS, "admission": _ANY}},
                        },
                    }
                },
            }
        ],
    },
}


def install(api: Server) -> None:
    """Install the CRD, and wait until it is served."""
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{CRD['metadata']['name']}"
    answer = api.send("PATCH", f"{path}?fieldManager=kueue&force=true", CRD, APPLY)
    assert answer.code in (200, 201), answer.body
    wait_until(lambda: api.send("GET", WORKLOAD.path()).code == 200, "workloads to be served", 30, interval=0.1)


@dataclass
class Queued:
    """A Job in a queue, and Kueue's doings to it."""

    space: Namespace
    job: str

    @property
    def workload(self) -> str:
        """Name of the Job's Workload."""
        return f"job-{self.job}"[:50] + "-1a2b3"

    def enqueue(self, reason: str, message: str) -> None:
        """Kueue has seen the Job: a Workload that has no quota."""
        live = self.space.get("Job", self.job)
        assert live and live["spec"]["suspend"] is True
        uid = live["metadata"]["uid"]
        reference = {"apiVersion": "batch/v1", "kind": "Job", "name": self.job, "uid": uid, "controller": True, "blockOwnerDeletion": True}
        body = {
            "apiVersion": WORKLOAD.api_version,
            "kind": "Workload",
            "metadata": {"name": self.workload, "labels": {"kueue.x-k8s.io/job-uid": uid}, "ownerReferences": [reference]},
            "spec": {"queueName": live["metadata"]["labels"]["kueue.x-k8s.io/queue-name"], "active": True, "podSets": [{"name": "main"}]},
        }
        answer = self.space.api.send("POST", self.space.path("Workload"), body)
        assert answer.code == 201, answer.body
        self.tell(QuotaReserved=("False", reason, message))

    def tell(self, **conditions: tuple[str, str, str]) -> None:
        """Write the Workload's conditions: each its status, reason and message."""
        names = ("status", "reason", "message")
        time = {"lastTransitionTime": "2026-01-01T00:00:00Z"}
        entries = [{"type": type_, **dict(zip(names, told, strict=True)), **time} for type_, told in conditions.items()]
        self.space.patch("Workload", self.workload, {"status": {"conditions": entries}}, "status")

    def admit(self, flavor: str) -> None:
        """Quota is there: the Job goes to the nodes of `flavor`, and runs.

        Waits for the Job's controller: the API server refuses another template while pods are active (Kubernetes' `shouldAllowMutablePodTemplate`).
        """
        wait_until(self.idle, f"Job {self.job} to be suspended without active pods", 30, interval=0.05)
        self.tell(
            QuotaReserved=("True", "QuotaReserved", "Quota reserved in ClusterQueue team"),
            Admitted=("True", "Admitted", "The workload is admitted"),
            Evicted=("False", "QuotaReserved", "Previously: none"),
        )
        toleration = {"key": "flavor", "operator": "Equal", "value": flavor, "effect": "NoSchedule"}
        metadata = {"labels": {"kueue.x-k8s.io/podset": "main"}, "annotations": {"kueue.x-k8s.io/workload": self.workload}}
        template = {"metadata": metadata, "spec": {"nodeSelector": {"flavor": flavor}, "tolerations": [toleration]}}
        self.space.patch("Job", self.job, {"spec": {"suspend": False, "template": template}})

    def evict(self) -> None:
        """Another needs the quota more: the Job is suspended and its template put back."""
        self.tell(
            QuotaReserved=("False", "Pending", "Preempted to accommodate a workload with higher priority"),
            Admitted=("False", "NoReservation", "The workload has no reservation"),
            Evicted=("True", "Preempted", "Preempted to accommodate a workload with higher priority"),
        )
        self.space.patch("Job", self.job, {"spec": {"suspend": True}})
        self.space.patch("Job", self.job, {"status": {"startTime": None}}, "status")

    def idle(self) -> bool:
        """Whether the Job's controller has recorded that the Job is suspended, or never started, and that its pods ended."""
        status = (self.space.get("Job", self.job) or {}).get("status", {})
        return not status.get("active") and (is_true(status, "Suspended") or "startTime" not in status)

    def template(self) -> Any:
        """The Job's pod template as it now is."""
        live = self.space.get("Job", self.job)
        assert live
        return live["spec"]["template"]
