"""Faults of nodes and their devices: what a node did to a pod before the pod's program ran, and which nodes the next attempt avoids.

What a program itself finds out about its devices stands in its result; `failures.py` reads that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from tunesmith.core.objects import Object
from tunesmith.workload.observation import UNPLACED
from tunesmith.workload.podstatus import conditions_of, container_of, is_live, moment, status_of, terminated

AVOIDED = 2
"""So many nodes are kept as bad, the last ones met. More would leave a small cluster without a good node."""

NODE_REASONS = frozenset(("DeviceUnavailable", "DeviceFailed", "CommunicationFailed", "PodRejected", "StartError", "ContainerLost"))
"""Reasons of attempts that a device or a node ended, or may have ended."""

# What the scheduler sees by itself the next time: the node is full, or has other labels or taints than the scheduler knew of.
_SEEN = frozenset(("Evicted", "NodeAffinity", "TaintToleration"))
# Of a pod whose node was under pressure when it came; one that was evicted later has another message.
_UNDER_PRESSURE = "The node had condition"
# Kubelets begin so the message of every pod that they do not admit.
_REJECTED = "Pod was rejected"

_DEVICE = re.compile(r"nvidia|nvml|cuda|\bCDI\b|\bXid\b|\bGPU\b|amdgpu|/dev/kfd|device plugin", re.IGNORECASE)
# Of runc and crun: the image has no such program.
_NO_PROGRAM = re.compile(r'exec: "|executable file .*not found')
_NODE = re.compile(
    r"context deadline exceeded|failed to reserve container name|no space left on device|input/output error|read-only file system"
    r"|ttrpc: closed|transport is closing|cgroup",
    re.IGNORECASE,
)
# How a container ended that its runtime could not start, and what one waits for that its runtime cannot create (CRI-O starts no OCI hook
# later than that). The first is over, the second is tried again for ever.
_NOT_STARTED = frozenset(("StartError", "ContainerCannotRun"))
_NOT_CREATED = frozenset(("CreateContainerError", "RunContainerError", "PreStartHookError"))


class Fault(NamedTuple):
    """What a node did to a pod. `faulty`: the node itself is at fault; False: the scheduler knows by itself why it cannot take the pod."""

    reason: str
    message: str
    faulty: bool = True


def node_of(pod: Object) -> str:
    """The node that the pod was bound to; empty if it was not."""
    return str((pod.get("spec") or {}).get("nodeName", ""))


def refusal(pod: Object) -> Fault | None:
    """How the pod's node refused it, if it did."""
    status = status_of(pod)
    why, text = str(status.get("reason", "")), str(status.get("message", ""))
    if not (why.startswith("OutOf") or why in ("UnexpectedAdmissionError", "NodeAffinity") or _rejects(text)):
        return None
    # An extended resource, which is a device, has a domain in its name: its plugin has lost it.
    full = why.startswith("OutOf") and "/" not in why
    return Fault("PodRejected", f"pod {_name(pod)} was refused by its node{_named(pod)}: {why}: {text}", not full and why not in _SEEN)


def _rejects(text: str) -> bool:
    return text.startswith(_REJECTED) or text.startswith(_UNDER_PRESSURE)


def was_evicted(pod: Object) -> bool:
    """Whether the pod's node has put it out to make room for itself: its disk or its memory was short."""
    targeted = [each for each in conditions_of(pod) if each["type"] == "DisruptionTarget" and each["status"] == "True"]
    return status_of(pod).get("reason") == "Evicted" and any(each.get("reason") == "TerminationByKubelet" for each in targeted)


def failed_start(pod: Object) -> Fault | None:
    """Why the pod's container ended without ever having been started, if it did and the image is not the cause."""
    ended = terminated(pod) or {}
    text = str(ended.get("message", ""))
    if ended.get("reason") not in _NOT_STARTED or (_NO_PROGRAM.search(text) and not _DEVICE.search(text)):
        return None
    return _not_started(pod, text)


def cannot_start(pod: Object) -> Fault | None:
    """Why the pod's container waits that its node cannot create, if the node is the cause."""
    waiting = (_waiting(pod) if is_live(pod) else None) or {}
    text = str(waiting.get("message", ""))
    if waiting.get("reason") not in _NOT_CREATED or not (_DEVICE.search(text) or _NODE.search(text)):
        return None
    return _not_started(pod, text)


def given_up_at(entry: Mapping[str, Any]) -> datetime | None:
    """When an attempt has waited long enough for a container that its node cannot create; None if it has not been seen to wait for one.

    From when that was first seen: the image may have been pulled for long before.
    """
    return moment(entry["stuckTime"]) + UNPLACED if "stuckTime" in entry else None


def avoid(bad: Sequence[str], before: Sequence[str]) -> list[str]:
    """The nodes that the next attempt avoids, the worst first: those just found to be `bad`, then those from `before`."""
    return list(dict.fromkeys((*bad, *before)))[:AVOIDED]


def nodes_of(pods: Iterable[Object]) -> list[str]:
    """The nodes of these pods, each once, in their order."""
    return list(dict.fromkeys(node for pod in pods if (node := node_of(pod))))


def listed(nodes: Sequence[str]) -> str:
    """Nodes in words, at most eight of them by name."""
    shown = ", ".join(nodes[:8]) + (f" and {len(nodes) - 8} more" if len(nodes) > 8 else "")
    return f"node {shown}" if len(nodes) == 1 else f"nodes {shown}"


def _not_started(pod: Object, text: str) -> Fault:
    reason = "DeviceUnavailable" if _DEVICE.search(text) else "StartError"
    return Fault(reason, f"pod {_name(pod)} could not be started by its node{_named(pod)}: {text}")


def _waiting(pod: Object) -> dict[str, Any] | None:
    state: dict[str, Any] | None = (container_of(pod).get("state") or {}).get("waiting")
    return state if state and state.get("reason") in _NOT_CREATED else None


def _name(pod: Object) -> str:
    return str(pod["metadata"]["name"])


def _named(pod: Object) -> str:
    return f" {node}" if (node := node_of(pod)) else ""
