"""What to put on record of an attempt under way: that the operator ends it, and why; nodes that cannot start its pods or do not end them.

An attempt with `ending` in its entry is ended by `job.plan`, which deletes its Job. How its pods took that says nothing about it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tunesmith.api.conditions import timestamp
from tunesmith.core.objects import Object
from tunesmith.stages import assembly, images
from tunesmith.stages.failures import Classification, Outcome
from tunesmith.workload import lingering, node_faults, observation

Entry = dict[str, Any]
TEXT_LIMIT = 512
_OF_ENDING: dict[str, Outcome] = {"Unschedulable": "Free", images.CHANGED: "Free", assembly.REASON: "Wait"}


@dataclass(frozen=True)
class Underway:
    """An attempt under way: its entry in `status.stages`, its Job if it is there, its pods."""

    entry: Entry
    job: Object | None
    pods: Sequence[Object]
    now: datetime
    size: Callable[[Entry], Entry | None]
    """The size of the next attempt within the limits of an entry; empty where the stage has none, None where there is no other."""

    outdated: bool = False
    """Its image cannot be pulled, or that of a stage beside it, and another is configured by now."""
    refused: str = ""
    """Why pods of it are not made."""

    @property
    def ends(self) -> bool:
        """Whether it is being ended already, by whomever, or its queue holds it."""
        return self.job is None or is_held(self.job) or "ending" in self.entry

    @property
    def is_over(self) -> bool:
        """Whether it is over though its Job is not: other containers keep its pods running."""
        return self.job is not None and not is_held(self.job) and lingering.outlived(self.job, self.pods, self.now)

    def notes(self) -> Entry:
        """What changes in its entry."""
        reasons = () if self.ends else (self._other_image, self._fewer_nodes, self._failed, self._stuck, self._released)
        return self._stuck_since() | next((found for reason in reasons if (found := reason())), {}) | self._suspects()

    def _other_image(self) -> Entry:
        changes = self.outdated and self.entry["state"] == "Pending"
        return _ending(images.NOTE.reason, images.NOTE.message) if changes else {}

    def _fewer_nodes(self) -> Entry:
        """Not all of its pods find a node, and it can do with those that did."""
        placed = observation.placed(self.pods, self.now)
        if placed is None:
            return {}
        size = self.size({**self.entry, "nodesLimit": placed})
        if not size or size["nodes"] >= self.entry.get("nodes", len(self.pods)):
            return {}
        blocked = next(note.message for pod in self.pods if (note := observation.obstacle(pod)))
        message = f"only {placed} of its pods found a node within {observation.UNPLACED.total_seconds():.0f} s: {blocked}"
        return _ending("Unschedulable", message) | {"nodesLimit": placed}

    def _failed(self) -> Entry:
        """Our container has failed in a pod that goes on: the Job's controller does not see that."""
        failed = lingering.failed(self.pods, self.now)
        return lingering.ending(failed) if failed else {}

    def _stuck_since(self) -> Entry:
        if self.ends or "stuckTime" in self.entry or not any(node_faults.cannot_start(pod) for pod in self.pods):
            return {}
        return {"stuckTime": timestamp(self.now)}

    def _stuck(self) -> Entry:
        """A node cannot start a pod."""
        fault = next((node_faults.cannot_start(pod) for pod in self._given_up()), None)
        return _ending(fault.reason, fault.message) if fault else {}

    def _released(self) -> Entry:
        """Nodes are held for pods that do not come."""
        at = assembly.released_at(self.entry, self.job, self.pods) if self.job else None
        return _ending(*assembly.release(self.job, self.entry, self.pods, self.refused)) if self.job and at and at <= self.now else {}

    def _given_up(self) -> list[Object]:
        at = node_faults.given_up_at(self.entry)
        return [pod for pod in self.pods if node_faults.cannot_start(pod)] if at and at <= self.now else []

    def _suspects(self) -> Entry:
        late = [pod for pod in self.pods if (at := observation.overdue_at(pod)) and at <= self.now]
        stuck = [] if self.ends else self._given_up()
        nodes = node_faults.avoid(node_faults.nodes_of((*stuck, *late)), self.entry.get("suspectNodes", ()))
        return {"suspectNodes": nodes} if nodes else {}


def is_held(job: Object) -> bool:
    """Whether the Job's controller is ending its pods, or makes none."""
    return "deletionTimestamp" in job["metadata"] or bool(job["spec"].get("suspend"))


def excused(verdict: Classification, entry: Entry, deleted: bool) -> Classification:
    """The verdict on an attempt that we ended, or a person did: how its pods took that does not count, but for a success and bad input."""
    if verdict.outcome in ("Succeeded", "Failed") or "ends" in entry:
        return verdict
    if "ending" in entry:
        # Where nodes are short it goes on at once with fewer; where one cannot start a pod, as after any fault of a node's.
        outcome = _OF_ENDING.get(entry["ending"]["reason"], "Later")
        return Classification(outcome, entry["ending"]["reason"], entry["ending"]["message"], verdict.result)
    return Classification("Free", "JobDeleted", "its Job was deleted") if deleted and verdict.outcome != "Free" else verdict


def _ending(reason: str, message: str) -> Entry:
    return {"ending": {"reason": reason, "message": message[:TEXT_LIMIT]}}
