"""Failures: what an exception means to the operator, and the fingerprint by which it knows one that happens again."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import PurePath

from tunesmith_trainer import device, device_errors
from tunesmith_trainer.device_errors import Meaning
from tunesmith_trainer.errors import FULL_ERRNOS, STORE_ERRNOS, Interruption, StageError

# What gloo says when the process at the other end is gone, and when it says nothing for too long.
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Socket Timeout", "remote process exited", "Broken pipe")
# What torch raises for them, of store and sockets, whatever the text. NCCL's texts are looked at first (device_errors.py).
DISTRIBUTED = frozenset(("DistError", "DistBackendError", "DistNetworkError", "DistStoreError"))
STUCK_PEER = ("Timed out waiting",)
# torch's errors are looked for by name: this module is used where importing torch would cost seconds.
NO_SPACE = ("No space left on device", "PytorchStreamWriter failed writing")
ROOM = "make room or enlarge it; training goes on from its last checkpoint"
LESS_AT_A_TIME = "lower perDeviceTrainBatchSize and raise gradientAccumulationSteps by as much, set gradientCheckpointing or shorten maxLength"
ADVICE = {
    ("Device", "Train"): f"{LESS_AT_A_TIME}; or share the weights (parallelism.fsdp), or take GPUs with more memory",
    ("Device", "Evaluate"): "raise resources.gpus, over which the model is spread, or take GPUs with more memory",
    ("Device", "Quantize"): "shorten training.maxLength, the length of calibration, or take a GPU with more memory",
    ("Host", "Train"): f"raise resources.memory; where it trains on CPUs, {LESS_AT_A_TIME}",
}
"""What to do, by the memory that ran out and the stage. Host memory of any other stage: raise the limit."""
RAISE_MEMORY = "raise the stage's memory (resources.memory, stageResources)"
# Without a fingerprint: the place where all wait, or where a device is looked for, is the same whatever is wrong with network or node.
PLACELESS = frozenset(("Hung", "CommunicationFailed", "DeviceUnavailable"))
# How libraries in Rust (tokenizers, safetensors) write the number of an OSError.
OS_ERROR = re.compile(r"\(os error (\d+)\)")
# Errors that are no RuntimeError, and whose text is a library's own all the same.
OWN_TEXTS = ("Torch not compiled with CUDA enabled", "Your setup doesn't support bf16/gpu")


def classify(error: BaseException, stage: str = "Train") -> StageError:
    """Return an exception of that stage as the failure it means, with its fingerprint where nobody foresaw it."""
    if isinstance(error, Interruption):
        return StageError("Interrupted", str(error))
    if isinstance(error, StageError):
        return error
    traceback.print_exception(error)
    failure = _meaning(error, stage)
    if failure.reason not in PLACELESS:
        failure.details["fingerprint"] = fingerprint(error)
    return failure


def _meaning(error: BaseException, stage: str) -> StageError:
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    told = next(filter(None, map(_told, _causes(error))), None)
    if told and told.reason != "InternalError":
        return explained(told, stage)
    if store := next(filter(None, map(_of_the_store, _causes(error))), None):
        return store
    if (isinstance(error, RuntimeError | OSError) or type(error).__name__ == "SafetensorError") and any(sign in text for sign in NO_SPACE):
        return StageError("StorageFull", f"the volume or the node's disk is full: {first}; {ROOM}")
    if isinstance(error, RuntimeError) and any(sign in text for sign in STUCK_PEER):
        return StageError("Hung", f"the training processes waited for one another for too long: {first}")
    lost = type(error).__name__ in DISTRIBUTED or (isinstance(error, RuntimeError) and any(sign in text for sign in LOST_PEER))
    if lost and told is None:
        return StageError("PeerUnavailable", f"another training process is gone; see the other pods' results: {first}")
    # Its text may hold a row of the data, or a secret: the log may tell it, status may not. CUDA's own sentence holds neither.
    why = f" ({told.sentence})" if told else ""
    return StageError("InternalError", f"{_kind(error)}{why} {_place(error)}; the whole traceback is in the pod's log")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def raise_surroundings(error: BaseException) -> None:
    """Raise the failure that a library's error means, or one that it came of, where that is no word on what the library was to do.

    A library that cannot read a file, or has no memory left, often raises an error of its own, as it does for a file that is wrong. Whoever
    takes all its errors for the user's asks here first. Raises StageError: StoreUnavailable, StorageFull, OutOfMemory, DeviceFailed and
    what else is around the program, and any StageError that the library was ended by.
    """
    for each in _origins(error):
        told = _told(each)
        found = each if isinstance(each, StageError) else explained(told, "") if told and told.reason != "InternalError" else _of_the_store(each)
        if found is not None:
            traceback.print_exception(error)
            raise found from error


def _origins(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and those that it was raised from or while they were handled."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _of_the_store(error: BaseException) -> StageError | None:
    """Return what an error says of the store, by its number; None where it has none, or another."""
    written = OS_ERROR.search(str(error))
    number = error.errno if isinstance(error, OSError) and error.errno else int(written[1]) if written else None
    if number not in STORE_ERRNOS:
        return None
    return store_failure(error if isinstance(error, OSError) and error.errno else OSError(number, os.strerror(number)))


def _told(error: BaseException) -> Meaning | None:
    """Return what an error says of devices, NCCL and memory; the text of one that may quote the data is not read."""
    name, text = type(error).__name__, str(error)
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return Meaning("OutOfMemory", os.strerror(errno.ENOMEM) if isinstance(error, OSError) else name, "Host")
    if isinstance(error, RuntimeError) or name.startswith("NVMLError") or text.startswith(OWN_TEXTS):
        found = device_errors.meaning(text)
        if found is None and name == "OutOfMemoryError":
            return Meaning("OutOfMemory", name, "Device")
        return found
    return None


def explained(told: Meaning, stage: str) -> StageError:
    """Return the failure that a library's text means, with what to do."""
    where = device.node()
    match told.reason:
        case "OutOfMemory":
            advice = ADVICE.get((str(told.memory), stage), RAISE_MEMORY)
            return StageError("OutOfMemory", f"out of {str(told.memory).lower()} memory: {told.sentence}; {advice}", {"memory": told.memory})
        case "DeviceUnavailable":
            message = f"{where} cannot use its GPU: {told.sentence}; look at the node's driver and device plugin"
        case "DeviceFailed":
            message = f"a GPU of {where} failed: {told.sentence}; the next attempt avoids the node. On every node: a bug of the program"
        case "CommunicationFailed":
            message = (
                f"the training processes could not go on talking to one another (seen on {where}): {told.sentence}; look at the network between them"
            )
        case "InternalError":
            message = f"the program asked for what no GPU does: {told.sentence}; the pod's log has more"
        case _:
            message = f"another training process is gone; see the other pods' results: {told.sentence}"
    return StageError(told.reason, message)


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
