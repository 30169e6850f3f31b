"""What is put on record of an attempt that has ended: an entry of `status.attempts`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tunesmith.api.conditions import MESSAGE_LIMIT, timestamp
from tunesmith.stages.failures import Classification
from tunesmith.workload import node_faults
from tunesmith_contract.results import Result, Trained

SIZE = ("nodes", "perDeviceTrainBatchSize", "gradientAccumulationSteps")
"""What may differ from one attempt to the next."""


def record(entry: Mapping[str, Any], verdict: Classification, now: datetime, newest: int) -> dict[str, Any]:
    """The record of the attempt under way of a stage's `entry`, which ended so. `newest`: step of the newest checkpoint known of; 0: none."""
    blamed = verdict.faulty or verdict.outcome in ("Retry", "Later", "OutOfMemory")
    nodes = node_faults.avoid((*(verdict.nodes if blamed else ()), *entry.get("suspectNodes", ())), ())
    facts = {
        "part": entry.get("part"),
        **{name: entry.get(name) for name in SIZE},
        **{name: getattr(verdict.result, name, None) for name in ("fingerprint", "step")},
        "resumedFromStep": resumed_from(verdict.result),
        "checkpointStep": newest or None,
        "failedOn": nodes or None,
    }
    return {
        "stage": entry["name"],
        "attempt": entry["attempt"],
        "outcome": "Succeeded" if verdict.outcome == "Succeeded" else "Failed",
        "free": verdict.outcome in ("Free", "Wait", "Later", "OutOfMemory"),
        "reason": verdict.reason,
        "message": verdict.message[:MESSAGE_LIMIT],
        "startTime": entry["attemptStartTime"],
        "completionTime": timestamp(now),
        **{name: fact for name, fact in facts.items() if fact is not None},
    }


def resumed_from(result: Result | None) -> int | None:
    """The step of the checkpoint that the attempt went on from, if its result says so."""
    return result.resumed_from_step if isinstance(result, Trained) else None


def tells_its_beginning(result: Result | None) -> bool:
    """Whether it is known where the attempt began: where its result says, and of a stage without checkpoints always at the start."""
    return result is not None and (not isinstance(result, Trained) or result.resumed_from_step is not None)


def checkpoint_of(result: Result | None) -> int | None:
    """Step of the newest checkpoint that a result proves: the one that it made, else the one that it began with."""
    made = result.checkpoint if isinstance(result, Trained) else None
    return made.step if made else resumed_from(result)
