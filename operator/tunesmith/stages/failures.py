"""Says how an attempt ended, from what its pods left: the table of docs/contract.md, Failures.

One process fails, and all others fail of it, each in a way of its own: a peer vanished, a collective hung, the Job controller ended
what was left. So each pod is judged for itself, and the cause that explains the others is the one that counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, auto
from typing import Literal

from tunesmith.core.objects import Object
from tunesmith.workload import node_faults
from tunesmith.workload.observation import disruption_of
from tunesmith.workload.podstatus import index_of, terminated
from tunesmith_contract.reasons import INTERRUPTED, UNAVAILABLE
from tunesmith_contract.results import Failure, Result, parse_result

Outcome = Literal["Succeeded", "Failed", "Retry", "OutOfMemory", "Later", "Wait", "Free"]


@dataclass(frozen=True)
class Classification:
    """How an attempt ended, and so what comes next.

    Failed: no other attempt can mend it. Retry: the program failed; one of `retries` is spent. OutOfMemory: again with less at a time.
    Later: something around it failed; again after a pause. Wait: not all of it was there yet; the same, without end. Free: it was taken
    away; again at once.
    """

    outcome: Outcome
    reason: str
    message: str = ""
    result: Result | None = None
    nodes: tuple[str, ...] = ()
    """The nodes of the pods whose end is the cause, the one that ended first at the front."""
    faulty: bool = False
    """A device or a node is at fault, as far as is known: the next attempt avoids `nodes`."""
    memory: str = ""
    """Of OutOfMemory: `Host`, `Device`, or empty where that is not known."""


class _Cause(IntEnum):
    """What can end a pod; the least one explains the others."""

    INPUT = auto()
    DISRUPTION = auto()
    DEVICE = auto()
    MEMORY = auto()
    PROGRAM = auto()
    SURROUNDINGS = auto()
    INTERRUPTION = auto()
    KILL = auto()
    HANG = auto()
    COMMUNICATION = auto()
    ECHO = auto()
    SILENCE = auto()


_OUTCOMES: dict[_Cause, Outcome] = {
    _Cause.INPUT: "Failed",
    _Cause.DISRUPTION: "Free",
    _Cause.DEVICE: "Later",
    _Cause.MEMORY: "OutOfMemory",
    _Cause.PROGRAM: "Retry",
    _Cause.SURROUNDINGS: "Later",
    _Cause.INTERRUPTION: "Free",
    _Cause.KILL: "Retry",
    _Cause.HANG: "Later",
    _Cause.COMMUNICATION: "Later",
    _Cause.ECHO: "Later",
    _Cause.SILENCE: "Retry",
}

# Reasons of results that say more of the cause than their exit code. PeerUnavailable: another one's end stopped it. CommunicationFailed:
# the processes could not talk to one another, and which of them is at fault is not known; a pod that knows of a fault of its own says why.
_TOLD = {
    "OutOfMemory": _Cause.MEMORY,
    "Hung": _Cause.HANG,
    "PeerUnavailable": _Cause.ECHO,
    "DeviceUnavailable": _Cause.DEVICE,
    "DeviceFailed": _Cause.DEVICE,
    "CommunicationFailed": _Cause.COMMUNICATION,
}

LESS_MEMORY = ": raise `memory`, or lower the batch size or length"
"""What to do about a pod that was killed for its memory, where the batch lies in that memory."""

# Exit codes without a result: the message may be lost though the program wrote one. 128 + the signal: it was killed.
_SILENT = {UNAVAILABLE: _Cause.ECHO, INTERRUPTED: _Cause.INTERRUPTION, 137: _Cause.KILL, 143: _Cause.KILL}
# What a kubelet says of a container that its runtime has forgotten, and containerd of those that ran when its node went down.
_UNKNOWN = ("ContainerStatusUnknown", "Unknown")


@dataclass(frozen=True)
class _Ending:
    """How one pod ended."""

    cause: _Cause
    reason: str
    message: str
    result: Result | None = None
    faulty: bool = False
    memory: str = ""
    node: str = ""
    time: str = ""
    """When its container ended; empty if it had none."""


def classify(stage: str, pods: Sequence[Object], disruption: str) -> Classification:
    """How an attempt ended that has no live pod. `disruption`: what was seen of one while its pods lived (they may be gone by now).

    Success is read from the result of pod 0 alone.
    """
    # A queue may have held the Job and let it go again: of an index' pods the newest counts.
    newest = {index_of(pod): pod for pod in sorted(pods, key=_age)}
    results = {index: parse_result(stage, _message(pod)) for index, pod in newest.items()}
    first = results.get(0)
    if first and first.outcome == "Succeeded":
        return Classification("Succeeded", "Succeeded", result=first, nodes=tuple(node_faults.nodes_of((newest[0],))))
    endings = [_placed(ending, pod) for index, pod in newest.items() if (ending := _ending(pod, results[index]))]
    if disruption := disruption or disruption_of(pods):
        pressed = [_placed(_Ending(_Cause.DISRUPTION, "Disrupted", disruption, faulty=True), pod) for pod in pods if node_faults.was_evicted(pod)]
        endings += pressed or [_Ending(_Cause.DISRUPTION, "Disrupted", disruption)]
    endings.append(_Ending(_Cause.SILENCE, "NoResult", "its pods are gone and told no result"))
    # Of several alike, one whose traceback is known can be told from another failure the next time.
    cause = min(endings, key=lambda ending: (ending.cause, not (isinstance(ending.result, Failure) and ending.result.fingerprint)))
    saved = next((result for result in results.values() if result and result.interrupted), None)
    alike = sorted((each for each in endings if (each.cause, each.faulty) == (cause.cause, cause.faulty)), key=lambda each: each.time)
    return Classification(
        _OUTCOMES[cause.cause],
        cause.reason,
        cause.message,
        cause.result or saved,
        tuple(dict.fromkeys(each.node for each in alike if each.node)),
        cause.faulty,
        cause.memory,
    )


def _placed(ending: _Ending, pod: Object) -> _Ending:
    return replace(ending, node=node_faults.node_of(pod), time=(terminated(pod) or {}).get("finishedAt") or "")


def _ending(pod: Object, result: Result | None) -> _Ending | None:
    """How a pod ended; None if it succeeded, or nothing is known."""
    status, ended, name = pod.get("status") or {}, terminated(pod) or {}, pod["metadata"]["name"]
    if ended.get("reason") == "OOMKilled":
        return _Ending(_Cause.MEMORY, "OutOfMemory", f"pod {name} used more memory than its limit{LESS_MEMORY}", result, memory="Host")
    if fault := node_faults.refusal(pod):
        return _Ending(_Cause.DEVICE if fault.faulty else _Cause.SURROUNDINGS, fault.reason, fault.message, faulty=fault.faulty)
    if status.get("reason") == "Evicted":
        return _Ending(_Cause.PROGRAM, "Evicted", f"pod {name} took more than its own limits: {status.get('message', '')}")
    if result:
        return replace(_told(result), result=result) if isinstance(result, Failure) else None
    if fault := node_faults.failed_start(pod):
        return _Ending(_Cause.DEVICE, fault.reason, fault.message, faulty=True)
    if ended.get("reason") in _UNKNOWN:
        message = f"pod {name}: its node does not know what became of it (was it restarted?)"
        return _Ending(_Cause.SURROUNDINGS, "ContainerLost", message, faulty=True)
    code = ended.get("exitCode")
    if not code:
        return None
    message = f"pod {name} ended with exit code {code} ({ended.get('reason', 'Error')}) and told no result"
    return _Ending(_SILENT.get(code, _Cause.PROGRAM), "NoResult", message)


def _told(result: Failure) -> _Ending:
    """What a result that is no success says of the cause."""
    reason, message = result.reason or result.outcome, result.message or ""
    if result.final:
        return _Ending(_Cause.INPUT, reason, message)
    if result.interrupted:
        return _Ending(_Cause.INTERRUPTION, reason, message)
    other = _Cause.SURROUNDINGS if result.exit_code == UNAVAILABLE else _Cause.PROGRAM
    cause = _TOLD.get(reason, other)
    return _Ending(cause, reason, message, faulty=reason in node_faults.NODE_REASONS, memory=result.memory or "")


def _age(pod: Object) -> tuple[int, str]:
    return index_of(pod), pod["metadata"].get("creationTimestamp", "")


def _message(pod: Object) -> str:
    message: str = (terminated(pod) or {}).get("message", "")
    return message
