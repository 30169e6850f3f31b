"""Prometheus metrics: controller-runtime's names for the loop, so that existing boards and alerts work, and our own outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from tunesmith.api.conditions import find, is_true
from tunesmith.core.objects import Key
from tunesmith.stages.attempt import key_of
from tunesmith.stages.gpu_seconds import since
from tunesmith.workload.node_faults import NODE_REASONS
from tunesmith.workload.podstatus import moment

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
STAGE_BUCKETS = (10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 24 * 3600.0, 72 * 3600.0)

RECONCILES = Counter("controller_runtime_reconcile", "Reconciles by result: success, error, requeue, requeue_after.", ["controller", "result"])
ERRORS = Counter("controller_runtime_reconcile_errors", "Reconciles that ended in an error.", ["controller"])
SECONDS = Histogram("controller_runtime_reconcile_time_seconds", "Duration of a reconcile.", ["controller"], buckets=BUCKETS)
WORKERS = Gauge("controller_runtime_max_concurrent_reconciles", "Workers.", ["controller"])
ACTIVE = Gauge("controller_runtime_active_workers", "Workers at work.", ["controller"])
DEPTH = Gauge("workqueue_depth", "Keys that wait for a worker.", ["name"])
REQUESTS = Counter("rest_client_requests", "Requests to the API server by code and method.", ["code", "method"])
RESYNC_SECONDS = Histogram("tunesmith_resync_seconds", "Duration of a complete relist.", buckets=BUCKETS)
UNSERVED = Gauge("tunesmith_unserved_namespaces", "Namespaces of the operator's list that are gone, or that it has no rights in.")
REPORTS = Counter("tunesmith_progress_reports", "Progress reports by answer.", ["code"])
STATUSES_REFUSED = Counter(
    "tunesmith_statuses_refused", "Status writes that the API server refused: a fault of the operator, or of its rights.", ["controller"]
)
VERDICTS = Counter("tunesmith_verdicts", "Verdicts of EvalRuns.", ["namespace", "verdict"])
STAGE_SECONDS = Histogram("tunesmith_stage_seconds", "A stage's first start to its end.", ["controller", "stage", "state"], buckets=STAGE_BUCKETS)
QUEUE_SECONDS = Histogram(
    "tunesmith_queue_seconds", "From an attempt's beginning, or its eviction, until its pods ran.", ["controller", "stage"], buckets=STAGE_BUCKETS
)
GPU_SECONDS = Counter("tunesmith_gpu_seconds", "GPU-seconds of attempts that ended: useful, queued or lost.", ["namespace", "use"])
LOSS = Gauge("tunesmith_training_loss", "Last loss of a training that goes on.", ["namespace", "name"])
SPEED = Gauge("tunesmith_training_steps_per_second", "Optimizer steps a second of a training that goes on.", ["namespace", "name"])
ATTEMPTS = Counter("tunesmith_attempts", "Attempts of stages that ended.", ["controller", "stage", "outcome", "reason"])
NODE_FAULTS = Counter("tunesmith_node_faults", "Attempts that a fault of a device or a node ended, by the node at fault.", ["node", "reason"])
GATES = Counter("tunesmith_gate_decisions", "Gate decisions by the condition's status and reason.", ["namespace", "status", "reason"])

NODES_SHOWN, OTHER_NODES = 500, "other"
_nodes: set[str] = set()
"""Nodes that have series of their own; an autoscaler may make any number of names."""

REVISIONS = Counter("tunesmith_revisions", "Revisions made, by what the gate said: Passed, or NoGate (served unjudged).", ["namespace", "verdict"])


def count_outcomes(key: Key, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Count what is new in `after`: stages and attempts that ended or began to run, progress, a verdict, a gate's decision, revisions."""
    for entry in _new("stages", before, after):
        if "startTime" in entry and "completionTime" in entry:
            seconds = moment(entry["completionTime"]) - moment(entry["startTime"])
            STAGE_SECONDS.labels(key.kind, entry["name"], entry["state"]).observe(seconds.total_seconds())
    _count_gpus(key, before, after)
    _show_training(key, before, after)
    for entry in _new("attempts", before, after):
        ATTEMPTS.labels(key.kind, entry["stage"], entry["outcome"], entry["reason"]).inc()
        for node in entry.get("failedOn", ()) if entry["reason"] in NODE_REASONS else ():
            NODE_FAULTS.labels(_shown(node), entry["reason"]).inc()
    verdict = after.get("verdict")
    if verdict and verdict != before.get("verdict"):
        VERDICTS.labels(key.namespace, verdict).inc()
    old, new = find(before, "GatePassed"), find(after, "GatePassed")
    if new and (old is None or (old["status"], old["reason"]) != (new["status"], new["reason"])):
        GATES.labels(key.namespace, new["status"], new["reason"]).inc()
    known = {entry["name"] for entry in before.get("revisions", ())}
    for entry in after.get("revisions", ()):
        if entry["name"] not in known:
            REVISIONS.labels(key.namespace, entry["verdict"]).inc()


def _count_gpus(key: Key, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Waits that are over, and GPU-seconds of attempts that ended."""
    waited = {key_of(entry): entry for entry in before.get("stages", ()) if entry["state"] == "Pending"}
    for entry in after.get("stages", ()):
        if entry["state"] == "Running" and key_of(entry) in waited:
            QUEUE_SECONDS.labels(key.kind, entry["name"]).observe((since(entry) - since(waited[key_of(entry)])).total_seconds())
    for use, seconds in after.get("gpuSeconds", {}).items():
        GPU_SECONDS.labels(key.namespace, use).inc(max(0, seconds - before.get("gpuSeconds", {}).get(use, 0)))


def _show_training(key: Key, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Loss and speed, from two reports of progress on end; none once the object is finished, so that there are no more series than trainings."""
    if is_true(after, "Finished"):
        forget(key)
        return
    old, new = (status.get("progress", {}) for status in (before, after))
    if new == old:
        return
    told = {metric["name"]: float(metric["value"]) for metric in new.get("metrics", ()) if _is_number(metric["value"])}
    was = {metric["name"]: float(metric["value"]) for metric in old.get("metrics", ()) if _is_number(metric["value"])}
    if "loss" in told:
        LOSS.labels(key.namespace, key.name).set(told["loss"])
    if "current_step" in told and "current_step" in was:
        seconds = (moment(new["lastUpdatedTime"]) - moment(old["lastUpdatedTime"])).total_seconds()
        steps = told["current_step"] - was["current_step"]
        if seconds > 0 and steps >= 0:
            SPEED.labels(key.namespace, key.name).set(steps / seconds)


def forget(key: Key) -> None:
    """Drop the series that a FineTuneJob has of its own."""
    for gauge in (LOSS, SPEED) if key.kind == "FineTuneJob" else ():
        with suppress(KeyError):
            gauge.remove(key.namespace, key.name)


def _shown(node: str) -> str:
    """The node's name as a label: so many nodes, the first at fault, have their own."""
    if len(_nodes) < NODES_SHOWN:
        _nodes.add(node)
    return node if node in _nodes else OTHER_NODES


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _new(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Entries of the list `name` that were not there before."""
    known = before.get(name, ())
    return [entry for entry in after.get(name, ()) if entry not in known]
