"""What is known of a FineTuneJob: `status(observed)` is the whole of its next status."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any

from tunesmith.api.conditions import is_true, merge, timestamp
from tunesmith.core.errors import TunesmithError
from tunesmith.core.objects import LABEL_STAGE, Observed
from tunesmith.finetunejob import defaults
from tunesmith.finetunejob.sizing import misfit, size
from tunesmith.finetunejob.sources import check_volumes, model_uri
from tunesmith.stages import images
from tunesmith.stages.attempt import StageKey, attempt_of
from tunesmith.stages.gpu_seconds import account
from tunesmith.stages.job import result_of
from tunesmith.stages.summary import End, summarize
from tunesmith.stages.tracker import Tracked, track
from tunesmith.workload import podstatus
from tunesmith_contract.results import Trained

PROGRESS_EVERY, PROGRESS_STEP = timedelta(seconds=30), 1
METRICS_KEPT, METRIC_NAME_LIMIT = 32, 64
NAMES_KEPT = 20
"""Files, columns and warnings of each dataset."""
CHECKPOINT_METRIC, STEP_DIGITS = "last_checkpoint_step", 15
"""What the trainer reports once it has made a checkpoint (trainer-image/tunesmith_trainer/progress.py)."""
PREPARED: tuple[str, ...] = ("runDigest", "runURI", "model", "datasets", "validationDataset", "trainRows", "validationRows", "warnings")
PREPARED += ("memoryEstimateBytes", "memoryNeed", "hostMemoryBytes")


def status(observed: Observed) -> dict[str, Any]:
    """Record what has become known and say where the job stands. A job that has finished stays as it is."""
    if is_true(observed.recorded, "Finished"):
        return _kept(observed)
    resolved, obstacle = _resolve(observed)
    suspend = bool(observed.spec.get("suspend"))
    reported, known = _reported_checkpoint(observed), observed.recorded.get("lastCheckpoint")
    newest = max((each["step"] for each in (reported, known) if each), default=0)
    spec, hold = observed.spec, suspend or obstacle is not None
    tracked = track(observed, waves(spec), hold, partial(size, spec), partial(misfit, spec), newest)
    facts = {"stages": list(tracked.entries), "attempts": list(tracked.attempts), "retriesSpent": tracked.retries.spent}
    pinned = images.pinned(observed, resolved, tracked.entries, tracked.attempts)
    resolved = {name: value for name, value in resolved.items() if name != "contractVersion"} | pinned
    facts |= {} if tracked.retries.step is None else {"retriesSpentStep": tracked.retries.step}
    facts |= {"resolved": _prepared(resolved, facts), "artifacts": _artifacts(facts)}
    facts |= _optional("gpuSeconds", account(observed.recorded, tracked.attempts, tracked.answers.get(StageKey("Train"))))
    progress = _progress(observed, tracked)
    # With what is written anyway and not oftener: a report by itself is worth no write.
    after = {**facts, "progress": progress}
    before = {"progress": None, "attempts": [], "retriesSpent": 0, **observed.recorded}
    written = any(after[name] != before[name] for name in ("progress", "attempts", "retriesSpent"))
    facts |= _optional("lastCheckpoint", _told_checkpoint(tracked) or (reported if written else None) or known) | _optional("progress", progress)
    stage, conditions = summarize(observed, tracked, obstacle, _end(tracked, facts))
    return (
        facts
        | tracked.times
        | tracked.activity
        | {
            "observedGeneration": observed.owner["metadata"]["generation"],
            "stage": stage,
            "conditions": merge(observed.recorded.get("conditions", ()), conditions, observed.owner["metadata"]["generation"], observed.now),
        }
    )


def waves(spec: Mapping[str, Any]) -> list[list[StageKey]]:
    """The stages in their order; each needs what the one before it made."""
    variants = [[StageKey("Quantize", variant["name"])] for variant in spec.get("variants", ())]
    return [[StageKey("Prepare")], [StageKey("Train")], [StageKey("Finalize")], *variants]


def _kept(observed: Observed) -> dict[str, Any]:
    generation = observed.owner["metadata"]["generation"]
    conditions = [{**condition, "observedGeneration": generation} for condition in observed.recorded["conditions"]]
    return {**observed.recorded, "observedGeneration": generation, "conditions": conditions}


def _resolve(observed: Observed) -> tuple[dict[str, Any], TunesmithError | None]:
    """What is pinned, and what stands in the way of the next attempt."""
    recorded = observed.recorded.get("resolved", {})
    resolved: dict[str, Any] = {**recorded}
    resolved["worldSize"] = defaults.world_size(observed.spec)
    try:
        model = model_uri(observed)
        check_volumes(observed, model)
        return {"model": {"uri": model}} | resolved, None
    except TunesmithError as error:
        return resolved, error


def _prepared(resolved: dict[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    told = result_of(facts, "Prepare") or {}
    devices = (result_of(facts, "Train") or {}).get("devices")
    return resolved | {name: _bounded(told[name]) for name in PREPARED if name in told} | _optional("devices", devices)


def _bounded(value: Any) -> Any:
    """A part of Prepare's answer with its lists no longer than the schema has them."""
    if isinstance(value, list):
        return [_bounded(member) for member in value[:NAMES_KEPT]]
    return {name: _bounded(member) for name, member in value.items()} if isinstance(value, dict) else value


def _artifacts(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [artifact for entry in facts["stages"] for artifact in entry.get("result", {}).get("artifacts", ())]


def _told_checkpoint(tracked: Tracked) -> Any:
    """The newest that an attempt told of which has just ended; one that was interrupted tells of it too."""
    told = tracked.answers.get(StageKey("Train"))
    found = told.checkpoint if isinstance(told, Trained) else None
    return found.dump() if found else None


def _reported_checkpoint(observed: Observed) -> Any:
    """The newest that the attempt under way has made, by its last report; None if it has told of none.

    For people, and no more: what an attempt goes on from it finds on the volume, and what is finalized is what the last one told.
    """
    report = observed.progress or {}
    step = _metric(report, CHECKPOINT_METRIC)
    if not (step.isdecimal() and step.isascii() and len(step) <= STEP_DIGITS):
        return None
    told = (pod for pod in observed.of_kind("Pod") if pod["metadata"].get("uid") == report.get("podUID"))
    attempt = next((attempt_of(pod)[1] for pod in told if LABEL_STAGE in pod["metadata"].get("labels", {})), 0)
    folder = (result_of(observed.recorded, "Prepare") or {}).get("runURI")
    return {"step": int(step), "uri": f"{folder}/checkpoints/attempt-{attempt}/step-{int(step)}"} if attempt and folder else None


def _progress(observed: Observed, tracked: Tracked) -> Any:
    """The report worth a write: reports come every few seconds, and each status write wakes every watcher of the object."""
    before, report = observed.recorded.get("progress"), observed.progress
    told = tracked.answers.get(StageKey("Train"))
    if told and told.outcome == "Succeeded" and (report or before):
        # The last report comes too soon after the one before it to be written by itself.
        return _shown(report or before or {}, observed) | {"progressPercentage": 100, "estimatedRemainingSeconds": 0}
    if tracked.stage != "Train" or not (report or before):
        return before
    if report is None or not _is_current(report, observed):
        return _left(report or before or {}, before, _told_checkpoint(tracked) or observed.recorded.get("lastCheckpoint"), observed)
    if before:
        moved = abs(report.get("progressPercentage", 0) - before.get("progressPercentage", 0))
        if moved < PROGRESS_STEP or observed.now - podstatus.moment(before["lastUpdatedTime"]) < PROGRESS_EVERY:
            return before
    return _shown(report, observed)


def _is_current(report: Mapping[str, Any], observed: Observed) -> bool:
    """Whether the pod that made the report lives."""
    return any(podstatus.is_live(pod) and pod["metadata"].get("uid") == report.get("podUID") for pod in observed.of_kind("Pod"))


def _left(last: Mapping[str, Any], before: Mapping[str, Any] | None, checkpoint: Mapping[str, Any] | None, observed: Observed) -> Any:
    """What is shown while nobody trains: the last report, which may have come too soon to be written, but no less than the checkpoint holds."""
    total = _metric(last, "total_steps")
    saved = min(100, checkpoint["step"] * 100 // int(total)) if checkpoint and total.isdecimal() and int(total) else 0
    done = last.get("progressPercentage", 0)
    if before and max(done, saved) == before.get("progressPercentage", 0):
        return before
    # How long the rest takes was told from where the report was made.
    ahead = {"progressPercentage": saved, "estimatedRemainingSeconds": None} if saved > done else {}
    return _shown({**last, **ahead}, observed)


def _metric(report: Mapping[str, Any], name: str) -> str:
    """A metric's value; empty if the report has none of that name."""
    return next((metric["value"] for metric in report.get("metrics", ()) if metric["name"] == name), "")


def _shown(report: Mapping[str, Any], observed: Observed) -> dict[str, Any]:
    """A report as status shows it: bounded, with the time of the write."""
    metrics = [metric for metric in report.get("metrics", ()) if len(metric["name"]) <= METRIC_NAME_LIMIT][:METRICS_KEPT]
    kept = {name: report[name] for name in ("progressPercentage", "estimatedRemainingSeconds") if report.get(name) is not None}
    return kept | _optional("metrics", metrics) | {"lastUpdatedTime": timestamp(observed.now)}


def _end(tracked: Tracked, facts: Mapping[str, Any]) -> End | None:
    """What is told of a job that has made all that was asked for."""
    if not tracked.succeeded:
        return None
    made = ", ".join(artifact["name"] for artifact in facts["artifacts"])
    warnings = len(facts["resolved"].get("warnings", ()))
    note = f"; status.resolved.warnings has {warnings} on the data" if warnings else ""
    return End("Succeeded", "Succeeded", f"made {made} at {facts['resolved']['runURI']}{note}")


def _optional(name: str, value: Any) -> dict[str, Any]:
    return {name: value} if value else {}
