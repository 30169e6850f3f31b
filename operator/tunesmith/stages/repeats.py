"""When an attempt's end shows that no further attempt can help: the same has been met before, or too often without progress.

All of it follows from what is on record of a stage's attempts (`status.attempts`), of which the newest `tracker.ATTEMPTS_KEPT` are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.stages.entries import resumed_from
from tunesmith.stages.failures import Classification
from tunesmith.workload.node_faults import NODE_REASONS, listed
from tunesmith_contract.results import Failure

Entry = Mapping[str, Any]
PATIENCE = 50
"""So many failures of what is around the program, one after another and none of them lasting, are enough: about four hours of pauses."""
STANDSTILL = {"Hung": 3, "PeerUnavailable": 10, "CommunicationFailed": 10, "DeviceUnavailable": 12}
"""So many attempts that end so and go on from one checkpoint are enough: what is around the program may be at fault, but the program may
be too. Ten times of PeerUnavailable take most of an hour. DeviceUnavailable is found at the start of a stage, so its twelve times are
mostly pauses, about 35 minutes: what is wrong on every node, such as a driver that is too old, ends the object within the hour."""
TAKEN, AT_ONCE = frozenset(("Disrupted", "Interrupted")), 3
"""Reasons of attempts that something outside took away, and how many of them without a new checkpoint are followed by another at once. (A
person who suspends the object or deletes a Job is no such thing.)"""
SAME_NODE = 3
"""So often the same fault of a device is met at the same step on one node: nothing else fits, or the fault is not the node's."""


def hopeless(verdict: Classification, before: Sequence[Entry], newest: int) -> str:
    """Why no further attempt can help; empty if one may.

    `before`: the stage's ended attempts, oldest first. `newest`: step of the newest checkpoint that is known of.
    """
    if (verdict.outcome == "Retry" or verdict.reason == "Hung") and any(_is_same(verdict, ended) for ended in before):
        return "the same error at the same step as before"
    if verdict.outcome != "Later":
        return ""
    if verdict.faulty and (why := _on_other_nodes(verdict, before)):
        return why
    alike = alike_from_one_checkpoint(verdict, before, newest)
    if len(alike) + 1 < STANDSTILL.get(verdict.reason, PATIENCE):
        return ""
    nodes = dict.fromkeys(node for on in (*(ended.get("failedOn", ()) for ended in alike), verdict.nodes) for node in on)
    where = f", on {listed(list(nodes))}" if verdict.faulty and nodes else ""
    return f"{len(alike) + 1} attempts ended so without a new checkpoint{where}"


def taken_away(verdict: Classification, entry: Entry, newest: int) -> dict[str, int]:
    """`{taken, takenStep}` of an entry whose attempt was taken away: how often one was since the newest checkpoint. Empty if it was not."""
    if verdict.outcome != "Free" or verdict.reason not in TAKEN:
        return {}
    before = entry.get("taken", 0) if newest <= entry.get("takenStep", newest) else 0
    return {"taken": before + 1, "takenStep": newest}


def hunted(taken: int) -> str:
    """Why it is of no use to go on after so many; empty if it may be."""
    if taken <= PATIENCE:
        return ""
    return f"was taken away {taken} times without a new checkpoint; make checkpoints more often, or have it run where it may stay"


def alike_from_one_checkpoint(verdict: Classification, before: Sequence[Entry], newest: int) -> list[Entry]:
    """The attempts that ended for the same reason, newest first, back to the last one before a new checkpoint.

    An attempt that names no checkpoint, since it ended before it trained or was killed, has made none either, as far as is known.
    """
    found: list[Entry] = []
    step = resumed_from(verdict.result)
    for ended in reversed(before):
        step = ended.get("resumedFromStep") if step is None else step
        if ended.get("resumedFromStep", step) != step or ended.get("checkpointStep", 0) < newest:
            break
        found.append(ended)
    return [ended for ended in found if ended["reason"] == verdict.reason]


def _is_same(verdict: Classification, ended: Entry) -> bool:
    """Whether an attempt before met the same error at the same step, and both, or neither, blame a device."""
    result = verdict.result
    if verdict.memory == "Host":
        # Its place says nothing: the limit may have been raised since.
        return False
    if not isinstance(result, Failure) or not result.fingerprint or verdict.faulty != (ended["reason"] in NODE_REASONS):
        return False
    return bool((result.fingerprint, result.step) == (ended.get("fingerprint"), ended.get("step")))


def _on_other_nodes(verdict: Classification, before: Sequence[Entry]) -> str:
    """Why a fault of a device is none of a node's: the same error at the same step was met on another node, or too often on one."""
    if verdict.reason == "CommunicationFailed" and isinstance(verdict.result, Failure) and verdict.result.step is None:
        # All processes wait at one place for a network that does not work: before the first step that place proves nothing.
        return ""
    here = set(verdict.nodes)
    met = [set(ended.get("failedOn", ())) for ended in before if _is_same(verdict, ended)]
    if here and any(there and here.isdisjoint(there) for there in met):
        there = next(there for there in reversed(met) if there and here.isdisjoint(there))
        return f"the same error at the same step on other nodes ({listed(sorted(here))}, before on {listed(sorted(there))})"
    # Where nothing is known of the nodes they count as one.
    same = [there for there in met if not here or not there or here & there]
    if len(same) + 1 >= SAME_NODE:
        return f"the same error at the same step {len(same) + 1} times" + (f" on {listed(sorted(here))}" if here else "")
    return ""
