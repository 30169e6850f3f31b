"""What must exist for a ModelDeployment.

A NetworkPolicy, of each revision a Service and a Deployment, and one Service that selects the active one.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from tunesmith.core import drift
from tunesmith.core.objects import Object, Observed, Plan
from tunesmith.modeldeployment.policy import network_policy
from tunesmith.modeldeployment.readiness import deployment_of, is_stuck
from tunesmith.modeldeployment.rendering import ANNOTATION, Rendering, recorded
from tunesmith.modeldeployment.revision import LABEL_REVISION, Revision, child_name, in_state, recorded_revisions, selector
from tunesmith.modeldeployment.rollout import drain_left
from tunesmith.modeldeployment.scaling import replicas_of
from tunesmith.workload import kueue, observation
from tunesmith.workload.podspec import Workload, child_metadata, patience, pod_template
from tunesmith_contract.base import filled
from tunesmith_contract.serving import VLLM
from tunesmith_contract.stages import ObjectRef, ServeInput, UnpinnedModel, stage_json, unchecked

COMMAND = ("python", "-m", "tunesmith_serving")
SERVICE_PORT = 80
GRACE_PERIOD_SECONDS = 120
"""From a pod's SIGTERM to its end. It ends as soon as nobody is connected, so only long answers make use of it: they get 90 s, and 30 s are the
engine's to end its processes (docs/contract.md, Serve). The launcher is told, so that the pod and it cannot disagree."""
PAUSE_SECONDS = 10
"""New connections still come while the endpoint's removal travels to every proxy."""
LOST = timedelta(minutes=10)
"""For so long a node may be silent before its pods are replaced, where no taint says so before: a model takes as long to load."""
REVISION_KINDS = ("Service", "Deployment")
CHILD_KINDS = ("NetworkPolicy", *REVISION_KINDS)


def build(observed: Observed, status: Mapping[str, Any]) -> Plan:
    """What to apply and delete now, for the revisions that the status names."""
    revisions = recorded_revisions(status)
    # First, so that no pod is open for a moment.
    apply = [network_policy(observed.owner)] if revisions and observed.config.network_policies else []
    apply += [child for revision in revisions for child in _children(observed, revision)]
    # Last, so that what the Service is switched to is there.
    apply += _main_service(observed, revisions)
    kept = {(child["kind"], child["metadata"]["name"]) for child in apply}
    delete = [child for kind in CHILD_KINDS for child in observed.of_kind(kind) if (kind, child["metadata"]["name"]) not in kept]
    delete += [pod for pod in observed.of_kind("Pod") if (at := _lost_at(observed, pod)) and at <= observed.now]
    return Plan(apply=tuple(apply), delete=tuple(delete), wake_after=_wake_after(observed, revisions))


def _lost_at(observed: Observed, pod: Object) -> datetime | None:
    """When a pod is to be replaced whose node does not answer and that nobody deletes. It may serve all the while: only then its end is asked for."""
    return observation.lost_at(pod, max(LOST, patience(observed.spec.get("scheduling") or {})))


def _wake_after(observed: Observed, revisions: list[Revision]) -> float | None:
    draining = in_state(revisions, "Draining")
    left = drain_left(observed, draining) if draining else None
    lost = [(at - observed.now).total_seconds() for pod in observed.of_kind("Pod") if (at := _lost_at(observed, pod))]
    return min((wait for wait in (left, *lost) if wait is not None and wait > 0), default=left)


def _main_service(observed: Observed, revisions: list[Revision]) -> list[Object]:
    """The endpoint. Before anything is active it selects the first candidate, so that its name resolves from the start."""
    shown = in_state(revisions, "Active") or in_state(revisions, "Candidate")
    if shown is None:
        return []
    metadata = child_metadata(observed.owner, observed.owner["metadata"]["name"], {})
    return [_service(metadata, selector(observed.owner, shown.name))]


def _children(observed: Observed, revision: Revision) -> list[Object]:
    owner = observed.owner
    metadata = child_metadata(owner, child_name(owner, revision.name), {LABEL_REVISION: revision.name})
    return [
        _service(metadata, selector(owner, revision.name)),
        _deployment(observed, revision, metadata, _rendering(observed, revision, metadata)),
    ]


def _rendering(observed: Observed, revision: Revision, metadata: Object) -> Rendering:
    """What the revision's pods are made from: what was recorded when it was made.

    Where that is lost, or was never kept (by version 0.1.0), it is rendered again, if that gives what was applied last or the live object
    does not tell what that was. Else an operator with other code or settings has applied it: what is live is kept, so that it serves on.
    """
    live = deployment_of(observed, revision)
    # Of a candidate that cannot start, other settings may be what mends it (an image that cannot be pulled).
    if live is None or (revision.state == "Candidate" and is_stuck(observed, revision)):
        return _render(observed, revision, metadata)
    if kept := recorded(live):
        return kept
    rendering = _render(observed, revision, metadata)
    if drift.applied(live) in (None, drift.digest(_deployment(observed, revision, metadata, rendering))):
        return rendering
    return Rendering(live["spec"]["template"])


def _service(metadata: Object, labels: Mapping[str, str]) -> Object:
    port = {"name": "http", "port": SERVICE_PORT, "protocol": "TCP", "targetPort": "http"}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"selector": dict(labels), "ports": [port]}}


def _serve_input(owner: Object, revision: Revision) -> Object:
    metadata = owner["metadata"]
    gpus = (revision.inputs.get("resources") or {}).get("gpus", 0)
    engine = {"tensorParallelSize": gpus or 1} | filled(VLLM, revision.inputs["engine"]["vllm"])
    return stage_json(
        unchecked(
            ServeInput,
            device="GPU" if gpus else "CPU",
            gpus=gpus or None,
            object=ObjectRef(kind=owner["kind"], namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"]),
            model=UnpinnedModel(uri=revision.uri, digest=revision.digest),
            engine={"vllm": engine},
            served_model_name=metadata["name"],
            grace_period_seconds=GRACE_PERIOD_SECONDS,
            pause_seconds=PAUSE_SECONDS,
        ),
        revision.contract_version,
    )


def _render(observed: Observed, revision: Revision, metadata: Object) -> Rendering:
    """As this version of the operator renders it, with its present settings."""
    workload = Workload(
        image=revision.image,
        command=COMMAND,
        input=_serve_input(observed.owner, revision),
        resources=revision.inputs.get("resources") or {},
        scheduling=revision.inputs.get("scheduling") or {},
        grace_period_seconds=GRACE_PERIOD_SECONDS,
        container=_container(),
    )
    spread = _spread(selector(observed.owner, revision.name))
    return Rendering(pod_template(metadata["labels"], workload, observed.config, spread))


def _deployment(observed: Observed, revision: Revision, metadata: Object, rendering: Rendering) -> Object:
    spec = {
        "replicas": replicas_of(observed.spec),
        "revisionHistoryLimit": 1,
        "selector": {"matchLabels": selector(observed.owner, revision.name)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": rendering.template,
    }
    named = metadata | {
        "labels": metadata["labels"] | kueue.labels(revision.inputs.get("scheduling") or {}),
        "annotations": {ANNOTATION: rendering.annotation},
    }
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": named, "spec": spec}


def _spread(labels: Mapping[str, str]) -> Object:
    """As few pods as possible on one node, so that its loss costs as few as possible."""
    rule = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": dict(labels)},
    }
    return {"topologySpreadConstraints": [rule]}


def _container() -> Object:
    """Ports and probes, which ask the launcher: it knows the engine's key and whether the model is loaded."""
    return {
        "ports": [{"name": "http", "containerPort": 8000, "protocol": "TCP"}, {"name": "probes", "containerPort": 8001, "protocol": "TCP"}],
        # Loading a large model takes minutes: 20 of them are granted before the pod is started again.
        "startupProbe": _probe("/ready", 5, 240),
        "readinessProbe": _probe("/ready", 5, 6),
        "livenessProbe": _probe("/live", 10, 6),
    }


def _probe(path: str, period: int, failures: int) -> Object:
    return {"httpGet": {"path": path, "port": "probes"}, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures}
