"""Faults for a training process that the zygote forks, told in $FAULT as JSON: what to do at which step, in which rank.

`{"step": 14, "rank": 1, "do": "kill"}`; the deeds are the functions below, done when the step ends, or `"in": "on_prediction_step"`,
in the evaluation after it. `{"errno": 28, "while": PATH}` makes fsync of the store's files fail with that error while PATH exists,
`{"kill_at_fsync": 5, "step": 20}` kills the process at its fifth fsync from that step on, and `{"slow": 0.5}` makes each fsync take
half a second, in all ranks. `"rank": "all"` is every process.
"""

import errno
import json
import os
import signal
import time
from pathlib import Path

from dev.cluster.processes import wait_until

CALLS = {"fsync": 0}


def install():
    """Arrange for the faults that the environment asks for."""
    fault = json.loads(os.environ.get("FAULT", "{}"))
    if seconds := fault.get("slow"):
        slow_fsync(seconds)
    if not fault or fault.get("rank", 0) not in ("all", int(os.environ["RANK"])):
        return
    reached = {"step": 0}
    watch_steps(fault, reached)
    if "errno" in fault or "kill_at_fsync" in fault:
        watch_fsync(fault, reached)


def watch_steps(fault, reached):
    """Do the deed when the step is reached."""
    from tunesmith_trainer.training.stopping import SaveAndStop

    moment = fault.get("in", "on_step_end")
    before = getattr(SaveAndStop, moment)

    def meddle(self, args, state, control, **rest):
        reached["step"] = state.global_step
        if state.global_step == fault.get("step") and "do" in fault:
            DEEDS[fault["do"]](fault, self)
        return before(self, args, state, control, **rest)

    setattr(SaveAndStop, moment, meddle)


def watch_fsync(fault, reached):
    """Fail, or kill this process, in fsync."""
    fsync = os.fsync

    def failing(file):
        if reached["step"] >= fault.get("step", 0):
            CALLS["fsync"] += 1
        if CALLS["fsync"] == fault.get("kill_at_fsync"):
            os.kill(os.getpid(), signal.SIGKILL)
        if "errno" in fault and Path(fault["while"]).exists() and "/pvc/" in os.readlink(f"/proc/self/fd/{file}"):
            raise OSError(fault["errno"], os.strerror(fault["errno"]))
        fsync(file)

    os.fsync = failing


def slow_fsync(seconds):
    """Take so long in each fsync, as a store that is far away does."""
    fsync = os.fsync

    def slow(file):
        time.sleep(seconds)
        fsync(file)

    os.fsync = slow


def kill(_fault, _callback):
    """As the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def crash(_fault, _callback):
    """As a native library does that follows a bad pointer."""
    os.kill(os.getpid(), signal.SIGSEGV)


def abort(fault, _callback):
    """As NCCL's watchdog ends a process: it writes why, and aborts it."""
    os.write(2, fault["text"].encode() + b"\n")
    os.abort()


def stop(_fault, _callback):
    """Stand still, threads and all."""
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep(_fault, _callback):
    """Stand still as in a deadlock: the other threads live."""
    time.sleep(600)


def burn(fault, _callback):
    """Compute for long."""
    deadline = time.monotonic() + fault["seconds"]
    while time.monotonic() < deadline:
        pass


def spin(_fault, _callback):
    """Wait as on a GPU for what never comes: for a message that the other process does not send, busy all the while."""
    import torch
    from torch import distributed

    work = distributed.irecv(torch.zeros(1), src=1 - distributed.get_rank())
    while not work.is_completed():
        pass


def exhaust(_fault, _callback):
    """Ask for more memory than there is."""
    import torch

    torch.empty(1 << 50)


def fill(_fault, _callback):
    """Fill the node's disk, with a checkpoint that there is no room for."""
    fsync = os.fsync

    def full(file):
        if os.readlink(f"/proc/self/fd/{file}").startswith(os.environ["TUNESMITH_SCRATCH"]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    os.fsync = full
    raise RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/42: file write failed")


def drain(_fault, callback):
    """Have the pod stopped, as the kubelet does it: SIGTERM to the launcher. Return when it has come down to this process."""
    os.kill(int(os.environ["LAUNCHER"]), signal.SIGTERM)
    while not callback._stop.is_set:
        time.sleep(0.01)


def wait(fault, _callback):
    """Be cut off: go on when the file is there."""
    wait_until(Path(fault["until"]).exists, "somebody to let it go on", 600, 0.02)


DEEDS = {deed.__name__: deed for deed in (kill, crash, abort, stop, sleep, burn, spin, exhaust, fill, drain, wait)}
