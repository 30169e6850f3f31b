"""Prometheus metrics: controller-runtime's names for the loop, so that existing boards and alerts work, and our own outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from tunesmith.conditions import find
from tunesmith.values import Key

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
REPORTS = Counter("tunesmith_progress_reports", "Progress reports by answer.", ["code"])
STATUSES_REFUSED = Counter(
    "tunesmith_statuses_refused", "Status writes that the API server refused: a fault of the operator, or of its rights.", ["controller"]
)
VERDICTS = Counter("tunesmith_verdicts", "Verdicts of EvalRuns.", ["namespace", "verdict"])
STAGE_SECONDS = Histogram("tunesmith_stage_seconds", "A stage's first start to its end.", ["controller", "stage", "state"], buckets=STAGE_BUCKETS)
ATTEMPTS = Counter("tunesmith_attempts", "Attempts of stages that ended.", ["controller", "stage", "outcome", "reason"])
GATES = Counter("tunesmith_gate_decisions", "Gate decisions by the condition's status and reason.", ["namespace", "status", "reason"])

REVISIONS = Counter("tunesmith_revisions", "Revisions made, by what the gate said: Passed, or NoGate (served unjudged).", ["namespace", "verdict"])


def count_outcomes(key: Key, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Count what is new in `after`: stages and attempts that ended, a verdict, a gate's decision, revisions."""
    for entry in _new("stages", before, after):
        if "startTime" in entry and "completionTime" in entry:
            seconds = datetime.fromisoformat(entry["completionTime"]) - datetime.fromisoformat(entry["startTime"])
            STAGE_SECONDS.labels(key.kind, entry["name"], entry["state"]).observe(seconds.total_seconds())
    for entry in _new("attempts", before, after):
        ATTEMPTS.labels(key.kind, entry["stage"], entry["outcome"], entry["reason"]).inc()
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


def _new(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Entries of the list `name` that were not there before."""
    known = before.get(name, ())
    return [entry for entry in after.get(name, ()) if entry not in known]
