"""What exceptions mean to the operator, and the fingerprints of bugs."""

import errno

import pytest

from tunesmith_trainer import failure
from tunesmith_trainer.errors import StageError


def caught(call, *arguments):
    try:
        call(*arguments)
    except Exception as error:
        return failure.classify(error)
    raise AssertionError("nothing was raised")


def fail_with(error):
    raise error


@pytest.mark.parametrize(
    ("error", "reason", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "StorageFull", 69),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "StorageFull", 69),
        (OSError(errno.EIO, "Input/output error"), "StoreUnavailable", 69),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), "StoreUnavailable", 69),
        (MemoryError(), "OutOfMemory", 70),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "OutOfMemory", 70),
        (RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [10.0.0.7]:29500"), "PeerUnavailable", 69),
        (RuntimeError("[gloo/buffer.cc:72] Timed out waiting 1800000ms for recv operation to complete"), "Hung", 69),
        (KeyError("x"), "InternalError", 70),
        (StageError("NoEffect", "nothing was trained"), "NoEffect", 65),
    ],
)
def test_an_exception_becomes_the_reason_that_tells_what_to_do(error, reason, code):
    found = caught(fail_with, error)
    assert (found.reason, found.exit_code) == (reason, code)
    assert ("fingerprint" in found.details) == (not isinstance(error, StageError))


def test_torch_out_of_memory_is_known_by_its_own_types():
    import torch

    assert caught(fail_with, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")).reason == "OutOfMemory"
    found = caught(torch.empty, 1 << 50)
    assert (found.reason, found.exit_code) == ("OutOfMemory", 70)
    assert "perDeviceTrainBatchSize" in found.message


def test_a_bug_met_twice_has_one_fingerprint_whatever_its_message():
    def lookup(key):
        return {}[key]

    first, second = (caught(lookup, key) for key in ("0x7f01", "0x7f02"))
    assert first.message != second.message
    assert first.details == second.details


def test_another_type_or_another_line_is_another_fingerprint():
    def fail(how):
        if how == "here":
            raise ValueError
        if how == "there":
            raise ValueError
        raise TypeError

    prints = [caught(fail, how).details["fingerprint"] for how in ("here", "there", "elsewhere", "here")]
    assert len(set(prints)) == 3
    assert prints[0] == prints[3]
