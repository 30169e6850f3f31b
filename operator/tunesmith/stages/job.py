"""Stages: which attempt of which is due, what became of it, and the objects it needs. Used by FineTuneJob and EvalRun.

`ledger.fold` (called from a kind's `status`) turns the recorded entries and the observed children into new entries; `plan`
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

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from tunesmith.api import conditions
from tunesmith.contract import JobInput, ObjectRef, stage_json
from tunesmith.core.objects import LABEL_ATTEMPT, LABEL_PART, LABEL_STAGE, Config, Object, Observed, Plan
from tunesmith.stages import assembly, limits
from tunesmith.workload import isolation, kueue, lingering, node_faults, observation, podspec, podstatus, unmade

Entry = dict[str, Any]
RENDEZVOUS_PORT = 29500
TRAINER = ("python", "-m", "tunesmith_trainer")
_BASE_LENGTH = 49
"""Leaves room for `-<attempt>-<uid5>` and an Indexed Job's `-<index>` within the 63 characters of a host name."""


class StageKey(NamedTuple):
    """A stage, or one part of it: `StageKey("Quantize", "w8a8")`."""

    name: str
    part: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.part}".strip()


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


def key_of(entry: Mapping[str, Any]) -> StageKey:
    """The stage that an entry of `status.stages` is about."""
    return StageKey(entry["name"], entry.get("part", ""))


def stage_of(ended: Mapping[str, Any]) -> StageKey:
    """The stage that an entry of `status.attempts` is of."""
    return StageKey(ended["stage"], ended.get("part", ""))


def result_of(status: Mapping[str, Any], name: str, part: str = "") -> Mapping[str, Any] | None:
    """What a stage that succeeded told: the fields it adds to the common ones (docs/contract.md). None if it has not succeeded."""
    return next((entry["result"] for entry in status.get("stages", ()) if key_of(entry) == (name, part) and entry["state"] == "Succeeded"), None)


def job_name(owner: Object, key: StageKey, attempt: int) -> str:
    """Name of an attempt's Job and Service: `<name>-<stage>[-<part>]-<attempt>-<uid5>`, cut and hashed when too long."""
    base = "-".join(word for word in (owner["metadata"]["name"], key.name.lower(), key.part) if word)
    if len(base) > _BASE_LENGTH:
        base = base[: _BASE_LENGTH - 7].rstrip("-") + "-" + hashlib.sha256(base.encode()).hexdigest()[:6]
    return f"{base}-{attempt}-{owner['metadata']['uid'][:5]}"


def rendezvous_endpoint(owner: Object, key: StageKey, attempt: int, nodes: int) -> str:
    """Where the pods of an Indexed Job meet: at pod 0, by the name that the Service gives it. One pod needs no name service."""
    name = job_name(owner, key, attempt)
    return f"{name}-0.{name}:{RENDEZVOUS_PORT}" if nodes > 1 else f"localhost:{RENDEZVOUS_PORT}"


def common_input(owner: Object, attempt: int, resources: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments that every JobInput takes."""
    meta = owner["metadata"]
    reference = ObjectRef(kind=owner["kind"], namespace=meta["namespace"], name=meta["name"], uid=meta["uid"])
    gpus = resources.get("gpus") or None
    return {"attempt": attempt, "device": "GPU" if gpus else "CPU", "gpus": gpus, "object": reference}


def contract_version(pinned: Mapping[str, Any]) -> int:
    """The contract version recorded beside an image; what was recorded before there was a second is of the first."""
    return int(pinned.get("contractVersion", 1))


def attempt_of(child: Object) -> tuple[StageKey, int]:
    """Which attempt of which stage a child with a stage label belongs to; 0, which none is, where somebody has spoilt its label."""
    labels = child["metadata"]["labels"]
    number = labels.get(LABEL_ATTEMPT, "")
    return StageKey(labels[LABEL_STAGE], labels.get(LABEL_PART, "")), int(number) if number.isdecimal() else 0


def plan(observed: Observed, status: Mapping[str, Any], make: Callable[[StageKey, int], Stage]) -> Plan:
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
        attempt = entry["attempt"]
        job = observed.child("Job", job_name(observed.owner, key, attempt))
        if job is None and ("jobUID" in entry or (key, attempt) in begun):
            continue  # It was deleted, and its pods are still ending: it must not come back.
        if job is None:
            job = stage_job(observed.owner, observed.config, key, attempt, make(key, attempt), entry.get("avoidNodes", ()))
            create.append(job)
        if job["spec"].get("parallelism", 1) > 1:
            apply.append(stage_service(observed.owner, key, attempt))
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


def stage_job(owner: Object, config: Config, key: StageKey, attempt: int, stage: Stage, avoid: Sequence[str] = ()) -> Object:
    """The Job of an attempt; its pods avoid those nodes, if others can take them."""
    workload = podspec.Workload(
        image=stage.image,
        command=TRAINER,
        input=stage_json(stage.input, stage.contract_version),
        resources=stage.resources,
        scheduling=stage.scheduling,
        grace_period_seconds=stage.grace_period_seconds,
        unreachable_seconds=stage.unreachable_seconds,
        progress_path=podspec.progress_path(owner) if stage.reports else "",
    )
    job = podspec.stage_job(_metadata(owner, key, attempt), workload, config, stage.nodes, avoid)
    return kueue.queued(job, kueue.labels(stage.scheduling, bool(stage.resources.get("gpus"))))


def stage_service(owner: Object, key: StageKey, attempt: int) -> Object:
    """The Service by which the pods of an attempt on several nodes meet."""
    return podspec.headless_service(_metadata(owner, key, attempt), {podspec.JOB_LABEL: job_name(owner, key, attempt)}, RENDEZVOUS_PORT)


def _metadata(owner: Object, key: StageKey, attempt: int) -> Object:
    labels = {LABEL_STAGE: key.name, LABEL_ATTEMPT: str(attempt)} | ({LABEL_PART: key.part} if key.part else {})
    return podspec.child_metadata(owner, job_name(owner, key, attempt), labels)


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
