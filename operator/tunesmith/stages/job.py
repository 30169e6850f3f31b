"""Stages: which attempt of which is due, what became of it, and the objects it needs. Used by FineTuneJob and EvalRun.

`tracker.track` (called from a kind's `status`) turns the recorded entries and the observed children into new entries; `plan`
(called from its `build`) makes the children that the entries ask for. An entry of `status.stages`:

    {name, part?, state, attempt, startTime?, completionTime?, result?, reason?, message?}      and, while an attempt is under way:
    {jobUID?, attemptStartTime, stateTime?, ranSeconds?, gpus?, queue?, disruption?, ending?, ends?, suspectNodes?, stuckTime?}
    after a failure: {notBefore, failures?, taken?, takenStep?, waits?, waitingSince?, nodesLimit?, batchSizeLimit?, avoidNodes?}

Train also has what its newest attempt was given, since it need not be what the spec says: {nodes, perDeviceTrainBatchSize,
gradientAccumulationSteps} (finetunejob/sizing.py). An entry with `ending` {reason, message} is of an attempt that we end: its Job is
deleted, and once no pod of it lives it counts as free. Pods of the next attempt avoid `avoidNodes` (podspec.py); `suspectNodes` join
these when the attempt under way has ended.

States: Waiting (no attempt under way), Pending (one is, but does not run), Running, Succeeded, Failed, Stopped (another stage failed).

A stage whose Job is over but told no result is simply started again: stages are idempotent and answer at once with the finished
result in the store. (This takes the place of a Job of its own that would read it.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tunesmith.api import conditions
from tunesmith.core.objects import LABEL_STAGE, Config, Object, Observed, Plan
from tunesmith.stages import assembly, limits
from tunesmith.stages.attempt import RENDEZVOUS_PORT, Attempt, StageKey, attempt_of, key_of
from tunesmith.workload import isolation, kueue, lingering, node_faults, observation, podspec, podstatus, unmade
from tunesmith_contract.stages import JobInput, stage_json

Entry = dict[str, Any]
TRAINER = ("python", "-m", "tunesmith_trainer")


@dataclass(frozen=True)
class Stage:
    """What one attempt of a stage needs."""

    input: JobInput
    image: str
    contract_version: int
    """Of that image."""
    resources: Mapping[str, Any]
    scheduling: Mapping[str, Any] = field(default_factory=dict)
    nodes: int = 0
    """Above 0: an Indexed Job of so many pods."""
    grace_period_seconds: int = 30
    unreachable_seconds: int = podspec.UNREACHABLE_SECONDS
    """How long its pods stay on a node that does not answer."""
    reports: bool = False
    """Whether its pods report progress."""


def result_of(status: Mapping[str, Any], name: str, part: str = "") -> Mapping[str, Any] | None:
    """What a stage that succeeded told: the fields it adds to the common ones (docs/contract.md). None if it has not succeeded."""
    return next((entry["result"] for entry in status.get("stages", ()) if key_of(entry) == (name, part) and entry["state"] == "Succeeded"), None)


def contract_version(pinned: Mapping[str, Any]) -> int:
    """The contract version recorded beside an image; what was recorded before there was a second is of the first."""
    return int(pinned.get("contractVersion", 1))


def plan(observed: Observed, status: Mapping[str, Any], make: Callable[[Attempt], Stage]) -> Plan:
    """Make what the attempts under way need, and remove what nothing needs any more.

    Jobs that ended stay, for their logs and as long as `ttlSecondsAfterFinished` says; the Services of attempts before the
    last go. Nothing that belongs to a stage that is over is ever made again.
    """
    entries = {key_of(entry): entry for entry in status.get("stages", ())}
    held = bool(observed.spec.get("suspend")) or conditions.is_true(status, limits.TARGET)
    underway = {key: entry for key, entry in entries.items() if entry["state"] in ("Pending", "Running") and "ending" not in entry}
    active = {} if held else underway
    staged = [child for child in observed.children if LABEL_STAGE in child["metadata"].get("labels", {})]
    begun = {attempt_of(child) for child in staged if child["kind"] == "Pod"}
    apply, create = [], []
    for key, entry in active.items():
        attempt = Attempt(observed.owner, key, entry["attempt"])
        job = observed.child("Job", attempt.name)
        if job is None and ("jobUID" in entry or (key, attempt.number) in begun):
            continue  # It was deleted, and its pods are still ending: it must not come back.
        if job is None:
            job = stage_job(attempt, observed.config, make(attempt), entry.get("avoidNodes", ()))
            create.append(job)
        if job["spec"].get("parallelism", 1) > 1:
            apply.append(stage_service(attempt))
    expired = limits.expired(observed, status)
    # First, so that no pod is open for a moment.
    apply = [isolation.stage_policy(observed.owner, observed.config), *apply] if active and observed.config.stage_policies else apply
    unwanted = () if observed.config.stage_policies and not expired else observed.of_kind("NetworkPolicy")
    # A label edited by hand makes nothing superfluous that is about to be put back.
    needed = {(desired["kind"], desired["metadata"]["name"]) for desired in apply}
    others = [child for child in staged if (child["kind"], child["metadata"]["name"]) not in needed]
    superfluous = [child for child in others if _is_superfluous(child, entries, active) or (expired and child["kind"] != "Pod")]
    superfluous += unwanted
    delete = [child for child in superfluous if "deletionTimestamp" not in child["metadata"]]
    lost = [pod for pod in staged if pod["kind"] == "Pod" and (at := _given_up_at(observed, pod)) and at <= observed.now]
    return Plan(tuple(create), tuple(apply), tuple(delete + lost), _wake_after(observed, staged, status))


def stage_job(attempt: Attempt, config: Config, stage: Stage, avoid: Sequence[str] = ()) -> Object:
    """The Job of an attempt; its pods avoid those nodes, if others can take them."""
    workload = podspec.Workload(
        image=stage.image,
        command=TRAINER,
        input=stage_json(stage.input, stage.contract_version),
        resources=stage.resources,
        scheduling=stage.scheduling,
        grace_period_seconds=stage.grace_period_seconds,
        unreachable_seconds=stage.unreachable_seconds,
        progress_path=podspec.progress_path(attempt.owner) if stage.reports else "",
    )
    job = podspec.stage_job(attempt.metadata, workload, config, stage.nodes, avoid)
    return kueue.queued(job, kueue.labels(stage.scheduling, bool(stage.resources.get("gpus"))))


def stage_service(attempt: Attempt) -> Object:
    """The Service by which the pods of an attempt on several nodes meet."""
    return podspec.headless_service(attempt.metadata, {podspec.JOB_LABEL: attempt.name}, RENDEZVOUS_PORT)


def _is_superfluous(child: Object, entries: Mapping[StageKey, Entry], active: Mapping[StageKey, Entry]) -> bool:
    key, attempt = attempt_of(child)
    if child["kind"] == "Job":
        return not observation.is_finished(child) and (key not in active or active[key]["attempt"] != attempt)
    return child["kind"] == "Service" and key in entries and attempt < entries[key]["attempt"]


def _given_up_at(observed: Observed, pod: Object) -> datetime | None:
    """When a pod has to be deleted because its node does not answer, or, where it is being deleted, by force because it does not end."""
    return observation.overdue_at(pod) or observation.lost_at(pod, podspec.patience(observed.spec.get("scheduling") or {}))


def _wake_after(observed: Observed, staged: Iterable[Object], status: Mapping[str, Any]) -> float | None:
    moments = [podstatus.moment(entry["notBefore"]) for entry in status.get("stages", ()) if "notBefore" in entry]
    for pod in (child for child in staged if child["kind"] == "Pod"):
        moments += [at for at in (_given_up_at(observed, pod), observation.unplaced_at(pod)) if at]
        moments += lingering.due([pod])
    for entry in status.get("stages", ()):
        moments += [at] if (at := node_faults.given_up_at(entry)) else []
        found = [child for child in staged if attempt_of(child) == (key_of(entry), entry["attempt"])]
        pods_of = [child for child in found if child["kind"] == "Pod"]
        moments += [at for job in found if job["kind"] == "Job" and (at := assembly.released_at(entry, job, pods_of))]
    if look := unmade.look_at(observed.children, observed.now):
        moments.append(look)
    moments += limits.moments(observed, status)
    return min(((at - observed.now).total_seconds() for at in moments if at > observed.now), default=None)
