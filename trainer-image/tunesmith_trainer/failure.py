"""Failures: what an exception means to the operator, and the fingerprint by which it knows one that happens again."""

from __future__ import annotations

import hashlib
import traceback
from pathlib import PurePath

from tunesmith_trainer.errors import FULL_ERRNOS, STORE_ERRNOS, Interruption, StageError

# What gloo and NCCL say when the process at the other end is gone, and when it says nothing for too long.
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Socket Timeout", "remote process exited", "Broken pipe")
# What torch raises for them, of store, sockets and NCCL alike, whatever the text: most of NCCL's name no peer.
DISTRIBUTED = frozenset(("DistError", "DistBackendError", "DistNetworkError", "DistStoreError"))
STUCK_PEER = ("Timed out waiting", "Watchdog caught collective operation timeout")
# torch's errors are looked for by name: this module is used where importing torch would cost seconds.
NO_SPACE = ("No space left on device", "PytorchStreamWriter failed writing")
OUT_OF_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "CUDA out of memory", "'out of memory'")
ROOM = "make room or enlarge it; training goes on from its last checkpoint"
LESS_MEMORY = (
    "lower perDeviceTrainBatchSize and raise gradientAccumulationSteps by as much, set gradientCheckpointing, shorten maxLength, or raise `memory`"
)


def classify(error: BaseException) -> StageError:
    """Return an exception as the failure it means, with its fingerprint where nobody foresaw it."""
    if isinstance(error, Interruption):
        return StageError("Interrupted", str(error))
    if isinstance(error, StageError):
        return error
    traceback.print_exception(error)
    failure = _meaning(error)
    # All processes wait at one place for a network that is stuck, attempt after attempt, as for a bug: that place proves neither.
    if failure.reason != "Hung":
        failure.details["fingerprint"] = fingerprint(error)
    return failure


def _meaning(error: BaseException) -> StageError:
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or any(sign in text for sign in OUT_OF_MEMORY):
        return StageError("OutOfMemory", f"out of memory: {first}; {LESS_MEMORY}")
    if isinstance(error, OSError) and error.errno in STORE_ERRNOS:
        return store_failure(error)
    if any(sign in text for sign in NO_SPACE):
        return StageError("StorageFull", f"the volume or the node's disk is full: {first}; {ROOM}")
    if isinstance(error, RuntimeError) and any(sign in text for sign in STUCK_PEER):
        return StageError("Hung", f"the training processes waited for one another for too long: {first}")
    if type(error).__name__ in DISTRIBUTED or (isinstance(error, RuntimeError) and any(sign in text for sign in LOST_PEER)):
        return StageError("PeerUnavailable", f"another training process is gone; see the other pods' results: {first}")
    # Its text may hold a row of the data, or a secret: the log may tell it, status may not.
    return StageError("InternalError", f"{_kind(error)} {_place(error)}; the whole traceback is in the pod's log")


def store_failure(error: OSError) -> StageError:
    """Return what an error of the store means: StorageFull or StoreUnavailable."""
    if error.errno in FULL_ERRNOS:
        return StageError("StorageFull", f"the volume is full: {error}; {ROOM}")
    return StageError("StoreUnavailable", f"the store cannot be used: {error}; check that the volume is mounted, and its rights")


def fingerprint(error: BaseException) -> str:
    """Return 12 hexadecimal digits that two errors share if they are of one type and were raised along one path.

    The message does not count: it holds addresses, sizes and paths that differ from one attempt to the next.
    """
    frames = [f"{_file(frame)}:{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    return stable_hash(_kind(error), *frames)


def stable_hash(*words: str) -> str:
    """Return words as a fingerprint."""
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]


def _kind(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}"


def _file(frame: traceback.FrameSummary) -> str:
    return "/".join(PurePath(frame.filename).parts[-2:])


def _place(error: BaseException) -> str:
    """Return where an error was raised, and from where in our own code."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "tunesmith_trainer" in PurePath(frame.filename).parts]
    places = [f"{_file(frame)}:{frame.lineno} in {frame.name}" for frame in (*frames[-1:], *ours[-1:])]
    return "at " + ", called by ".join(dict.fromkeys(places))
