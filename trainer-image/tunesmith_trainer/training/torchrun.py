"""torchrun, in a process that the launcher (train.py) starts: it tells what torchrun ended with, which an exit code does not.

That it started no training process says nothing of why. The other pods may not have come; torch may not be importable; a process may
have died before it could write a word of its own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Container
from pathlib import Path
from typing import Any

from tunesmith_trainer.errors import StageError
from tunesmith_trainer.failure import classify, stable_hash

FILE = "agent.json"
SIGNALS = {number.value: number.name for number in signal.Signals}
CRASHES = frozenset(("SIGSEGV", "SIGILL", "SIGFPE"))
"""What a program brings on itself: at the same step again, it is a bug. Not SIGKILL, which comes from outside, nor SIGABRT, by which NCCL's
watchdog ends a process whose peers do not answer, nor SIGBUS, which a mapped file gives whose volume or memory is gone."""


def main(arguments: list[str]) -> int:
    """Run torchrun; returns 0 where all of this node's processes ended well."""
    try:
        from torch.distributed.run import main as torchrun

        torchrun(arguments)
        return 0
    except Exception as error:  # the launcher is owed what it was, whatever happened
        # A ChildFailedError has those that ended first before those that torchrun ended then.
        failures = getattr(error, "failures", None)
        told = [_death(process) for process in failures.values()] if failures else [_told(error)]
        temporary = Path(os.environ["TUNESMITH_REPORTS"]) / f"{FILE}.new"
        temporary.write_text(json.dumps(told))
        temporary.replace(temporary.with_name(FILE))
        return 1


def read(reports: Path, answered: Container[int]) -> StageError | None:
    """Return the first failure that torchrun told but those of processes (by local rank) that have answered themselves."""
    return next((StageError(**entry["failure"]) for entry in _entries(reports) if entry["localRank"] not in answered), None)


def signal_of(reports: Path, local_rank: int) -> str:
    """Return the name of the signal that torchrun told to have ended a process; empty where it told of none."""
    return next((entry.get("signal", "") for entry in _entries(reports) if entry["localRank"] == local_rank), "")


def crash(name: str) -> dict[str, Any]:
    """Return what a failure by that signal adds to a result: the fingerprint of a crash."""
    return {"fingerprint": stable_hash("signal", name)} if name in CRASHES else {}


def _entries(reports: Path) -> list[dict[str, Any]]:
    path = reports / FILE
    return json.loads(path.read_bytes()) if path.exists() else []


def _told(error: Exception) -> dict[str, Any]:
    failure = classify(error)
    return {"localRank": None, "failure": {"reason": failure.reason, "message": failure.message, "details": failure.details}}


def _death(process: Any) -> dict[str, Any]:
    """Return what it means that a training process ended so; of use where that process told nothing itself."""
    who, code, log = f"the training process of local rank {process.local_rank}", process.exitcode, "its last lines are in the pod's log"
    if code < 0:
        name = SIGNALS.get(-code, f"signal {-code}")
        failure = {"reason": "ProcessLost", "message": f"{who} was ended by {name} before it told anything; {log}", "details": crash(name)}
        return {"localRank": process.local_rank, "failure": failure, "signal": name}
    message = f"{who} ended with exit code {code} before it told anything: a module that cannot be imported, or a library that ends it; {log}"
    failure = {"reason": "InternalError", "message": message, "details": {"fingerprint": stable_hash("exit code", str(code))}}
    return {"localRank": process.local_rank, "failure": failure}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
