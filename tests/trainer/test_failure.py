"""What exceptions mean to the operator, and the fingerprints of bugs."""

import errno
import os
import signal

import pytest

from dev.cluster.ports import free_port
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
    # A collective that hangs may be the network's fault, at the same place each time.
    assert ("fingerprint" in found.details) == (not isinstance(error, StageError) and reason != "Hung")


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("DistNetworkError", "Failed to recv, got 0 bytes. Connection was likely closed.", "PeerUnavailable"),
        ("DistStoreError", "Timed out after 301 seconds waiting for clients. 1/2 clients joined.", "PeerUnavailable"),
        ("DistError", "wait timeout after 300000ms, keys: /start", "PeerUnavailable"),
        ("DistBackendError", "NCCL error in: ProcessGroupNCCL.cpp:77, remote process exited or there was a network error", "PeerUnavailable"),
        # It names no peer.
        ("DistBackendError", "NCCL error in: NCCLUtils.cpp:94, unhandled system error, NCCL version 2.27.5", "CommunicationFailed"),
        ("DistBackendError", "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)", "CommunicationFailed"),
        ("DistBackendError", "NCCL error in: NCCLUtils.cpp:94, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'", "OutOfMemory"),
    ],
)
def test_what_torch_raises_for_lost_peers_is_no_bug(kind, text, reason):
    import torch

    assert caught(fail_with, getattr(torch.distributed, kind)(text)).reason == reason


def test_a_process_whose_meeting_place_is_gone_has_lost_a_peer():
    from torch.distributed import TCPStore

    port, (told, tell) = free_port(), os.pipe()
    leader = os.fork()
    if not leader:
        meeting = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        os.write(tell, b"!")
        signal.pause()
        del meeting
    assert os.read(told, 1)
    meeting = TCPStore("127.0.0.1", port, is_master=False)
    os.kill(leader, signal.SIGKILL)
    os.waitpid(leader, 0)
    assert caught(meeting.get, "start").reason == "PeerUnavailable"


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
    assert first.details == second.details


def test_a_bug_is_told_by_its_type_and_its_place_and_not_by_its_text(tmp_path):
    # Ours is where a library was called; what it says may be a row of the data.
    ours = tmp_path / "tunesmith_trainer" / "rows.py"
    ours.parent.mkdir()
    ours.write_text("import json\n\ndef read(text):\n    return json.loads(text)\n")
    place: dict = {}
    exec(compile(ours.read_text(), ours, "exec"), place)
    message = caught(place["read"], "{canary-9b1d").message
    assert "canary" not in message
    assert message.startswith("json.decoder.JSONDecodeError at json/decoder.py:")
    assert "in raw_decode, called by tunesmith_trainer/rows.py:4 in read;" in message


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
