"""Vitals: each training process tells how it is every second, and its node's launcher finds the one that has stopped.

A process is taken for hung when all of this is so for a while: its whole process tree uses no CPU; it completes no step; and it
is either silent (stopped, or stuck in native code that holds the interpreter) or stands still elsewhere than in a call that
waits for other processes. A long step is not a hang: it computes, and a process that waits for its GPU spins. A process that
waits for others is not the one to blame: the launcher of the one that is ends that one, and the connection breaks.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from tunesmith_trainer.errors import StageError
from tunesmith_trainer.failure import stable_hash

BEAT_SECONDS = 1.0
# Found within a minute, beats and polls included.
HUNG_SECONDS = 40.0
# Before, between and after the steps there are waits for the store, which have limits of their own.
PATIENT_SECONDS = 900.0
# Below this share of one CPU a process does nothing; its beats and the libraries' own threads take far less.
IDLE_CPU = 0.02
# Code that waits for other processes, at the stack's inner end: all of a forward pass is called from DDP's. The reductions of a
# backward pass are waited for inside of it.
WAITING_IN = ("/torch/distributed/", "/torch/nn/parallel/distributed.py", "/torch/autograd/graph.py")
INNER_FRAMES = 4


def path_for(reports: Path, local_rank: int) -> Path:
    """Return where the process of a local rank tells how it is."""
    return reports / f"vitals-{local_rank}.json"


def outcome_path(reports: Path, local_rank: int) -> Path:
    """Return where it tells what came of it."""
    return reports / f"outcome-{local_rank:04d}.json"


def step_path(reports: Path, local_rank: int) -> Path:
    """Return where it tells the last step that it completed, from when it trains."""
    return path_for(reports, local_rank).with_suffix(".step")


class Vitals:
    """A training process's side: what it is doing, written by a thread; but the step at once, so that a crash is known by its own."""

    def __init__(self) -> None:
        self._step = self.first_step = 0
        self._mark: int | None = None
        self.phase = "starting"

    @property
    def step(self) -> int:
        """The last step completed."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self._step = step
        if self._mark is not None:
            with suppress(OSError):
                os.pwrite(self._mark, f"{step:20}".encode(), 0)

    def begin(self, step: int) -> None:
        """Training begins, from the checkpoint of this step; 0: from none."""
        self.step = self.first_step = step
        self.phase = "training"

    @property
    def place(self) -> dict[str, int]:
        """Where in training it is, as fields of a failure's result; empty before training has begun."""
        return {} if self.phase == "starting" else {"step": self.step, "resumedFromStep": self.first_step}

    def start(self, path: Path) -> None:
        """Begin to write to `path`, and the step beside it."""
        with suppress(OSError):
            self._mark = os.open(path.with_suffix(".step"), os.O_WRONLY | os.O_CREAT)
        threading.Thread(target=self._run, args=(path,), name="vitals", daemon=True).start()

    def _run(self, path: Path) -> None:
        temporary = path.with_suffix(".new")
        for beat in range(1, sys.maxsize):
            where = stack(sys._current_frames().get(threading.main_thread().ident or 0))
            told = {"pid": os.getpid(), "beat": beat, "step": self.step, "phase": self.phase, "place": self.place, "stack": where}
            # A full memory volume must not end the thread.
            with suppress(OSError):
                temporary.write_text(json.dumps(told))
                temporary.replace(path)
            time.sleep(BEAT_SECONDS)


def stack(frame: FrameType | None) -> list[str]:
    """Return a frame and its callers as `file:line function`, the innermost first."""
    lines = []
    while frame:
        lines.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return lines


def hung_seconds() -> float:
    """Return for how long a process may stand still in training."""
    return float(os.environ.get("TUNESMITH_HUNG_SECONDS", HUNG_SECONDS))


@dataclass
class Patient:
    """What a launcher knows of one process of its node."""

    told: dict[str, Any] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    idle_seconds: float = 0.0
    silent_seconds: float = 0.0
    lost_at: float = 0.0

    @property
    def waits_for_others(self) -> bool:
        """Whether it said so in its last words."""
        return any(part in line for line in self.told["stack"][:INNER_FRAMES] for part in WAITING_IN)

    @property
    def is_hung(self) -> bool:
        """Whether it stands still, and not because of another."""
        at_once = self.told["phase"] == "training" or _is_stopped(self.told["pid"])
        limit = hung_seconds() if at_once else PATIENT_SECONDS
        return self.idle_seconds > limit and (self.silent_seconds > limit or not self.waits_for_others)


class Ward:
    """A launcher's side: the processes of its node, by local rank."""

    def __init__(self, reports: Path, first_rank: int, processes: int) -> None:
        """Take the folder that the processes report to, the global rank of the first one, and their number."""
        self._first_rank = first_rank
        self._reports = reports
        self.patients = [Patient() for _ in range(processes)]
        self._polled = time.monotonic()

    def look(self) -> StageError | None:
        """Look at every process, once a beat; returns Hung, naming the process and the pod, where one stands still."""
        if time.monotonic() - self._polled < BEAT_SECONDS:
            return None
        self.examine()
        hung = [(rank, patient) for rank, patient in enumerate(self.patients) if patient.told and not patient.lost_at and patient.is_hung]
        return self._diagnosis(*hung[0]) if hung else None

    def examine(self) -> None:
        """Read what every process tells and has used."""
        now = time.monotonic()
        # Where this launcher was held up itself, as when a node is frozen and thawed, so were its processes.
        passed = min(now - self._polled, 5 * BEAT_SECONDS)
        self._polled = now
        for local_rank, patient in enumerate(self.patients):
            self._examine(local_rank, patient, passed)

    def _examine(self, local_rank: int, patient: Patient, passed: float) -> None:
        told = _read(path_for(self._reports, local_rank))
        if not told:
            return
        cpu_seconds = _cpu_seconds(told["pid"])
        if cpu_seconds is None:
            patient.told = told
            if not patient.lost_at and not outcome_path(self._reports, local_rank).exists():
                patient.lost_at = self._polled
            return
        before, patient.told = patient.told, told
        spoke = told["beat"] != before.get("beat")
        patient.silent_seconds = 0.0 if spoke else patient.silent_seconds + passed
        patient.idle_seconds += passed
        # The share is taken over the whole time of standing still: one beat's worth of CPU is too little to measure.
        busy = cpu_seconds - patient.cpu_seconds > IDLE_CPU * max(patient.idle_seconds, BEAT_SECONDS * 5)
        if busy or told["step"] != before.get("step") or told["phase"] != before.get("phase"):
            patient.idle_seconds, patient.cpu_seconds = 0.0, cpu_seconds

    def _diagnosis(self, local_rank: int, patient: Patient) -> StageError:
        who = self.name(local_rank)
        where = patient.told["stack"]
        print(f"{who} hangs; its stack when it last spoke:\n" + "\n".join(where), flush=True)
        stopped = _is_stopped(patient.told["pid"])
        how = "is stopped" if stopped else f"stands still at {where[0]}" if where else "is silent"
        message = f"{who} {how}: no step, no CPU for {patient.idle_seconds:.0f} s after step {patient.told['step']}; its stack is in the pod's log"
        # Code that waits for what never comes: as a bug does, it does so again. What is stopped, silent, or saving may be so from outside.
        is_code = where and not stopped and patient.silent_seconds < patient.idle_seconds / 2 and patient.told["phase"] == "training"
        known = {"fingerprint": stable_hash(*where)} if is_code else {}
        return StageError("Hung", message, patient.told["place"] | known)

    def first_lost(self) -> tuple[int, int | None] | None:
        """Return local rank and last step (None before training) of the process that was first seen to have ended without an outcome."""
        lost = [(patient.lost_at, local_rank) for local_rank, patient in enumerate(self.patients) if patient.lost_at]
        if not lost:
            return None
        local_rank = min(lost)[1]
        mark = step_path(self._reports, local_rank)
        told = mark.read_text().strip() if mark.exists() else ""
        return local_rank, int(told) if told else None

    def name(self, local_rank: int) -> str:
        """Return what a process of this node is called in messages."""
        return f"rank {self._first_rank + local_rank} in pod {socket.gethostname()}"

    def kill(self) -> None:
        """Kill every process: one that is stopped heeds no other signal."""
        for patient in self.patients:
            if patient.told:
                with suppress(ProcessLookupError):
                    os.kill(patient.told["pid"], signal.SIGKILL)


def _read(path: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
        return told
    except (OSError, ValueError):
        return {}


def _cpu_seconds(pid: int) -> float | None:
    """Return the CPU time of a process and its children, None where the process is no more."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
        return float(sum(each.user + each.system for each in times))
    except psutil.NoSuchProcess:
        return None


def _is_stopped(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    return False
