"""Vitals: each training process tells how it is every second, and its node's launcher finds the one that has stopped.

A process is taken for hung when all of this is so for a while: its whole process tree uses no CPU and moves no data; it completes no
step; and it is either silent (stopped, or stuck in native code that holds the interpreter) or stands still elsewhere than where it
waits for other processes or the store: it says so where our own code waits (`Vitals.waiting`), and its stack tells where torch does.
A long step is not a hang: it computes. A process that waits for others is not the one to blame: the launcher of the one that is ends
that one, and the connection breaks.

On GPUs a process that waits spins, so that no idle CPU shows that all of them wait for what never comes. That is found by the time
of the steps: none is completed for ten times as long as the last ones took, and no less than `STALLED_SECONDS`.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
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
# Below this share of one CPU, and of bytes a second, a process does nothing; its beats and the libraries' own threads take far less.
IDLE_CPU = 0.02
IDLE_BYTES = 256 << 10
# What the kernel maps around a page that is missed (fault_around_bytes).
FAULT_BYTES = 64 << 10
# A new shape of the data may have torch.compile and Triton compile again in the middle of training, which takes minutes.
STALLED_SECONDS = 600.0
STALLED_TIMES = 10
# The median of the last steps, once there are so many: the first ones compile, and make the communicators and the optimizer's state.
STEPS_KEPT, STEPS_NEEDED = 20, 3
# Phases in which steps or batches follow one another, so that a process that stands still is found within HUNG_SECONDS.
BRISK = ("training", "evaluating")
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

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._step = self.first_step = 0
        self._mark: int | None = None
        self._phase = "starting"
        self._durations: deque[float] = deque(maxlen=STEPS_KEPT)
        self._since = clock()
        self._waits_for: Callable[[], str] = str

    @property
    def phase(self) -> str:
        """What it is about: starting, training, evaluating, saving, ending."""
        return self._phase

    @phase.setter
    def phase(self, phase: str) -> None:
        self._phase = phase
        self._since = self._clock()

    @property
    def waits_for(self) -> str:
        """What this process waits for, in words; empty while it works."""
        return self._waits_for()

    @contextmanager
    def waiting(self, what: Callable[[], str]) -> Iterator[None]:
        """Tell that this process waits for others meanwhile: that is no hang, and no part of a step's time.

        `what` says for whom, and is asked again with each beat: empty where it is not for others that it waits just now.
        """
        before, self._waits_for = self._waits_for, what
        try:
            yield
        finally:
            self._waits_for = before
            self._since = self._clock()

    @property
    def step(self) -> int:
        """The last step completed."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        now = self._clock()
        if self._phase == "training" and step > self._step:
            self._durations.append(now - self._since)
        self._step, self._since = step, now
        if self._mark is not None:
            with suppress(OSError):
                os.pwrite(self._mark, f"{step:20}".encode(), 0)

    @property
    def step_seconds(self) -> float | None:
        """The median time of the last steps; None where there are too few."""
        return median(self._durations) if len(self._durations) >= STEPS_NEEDED else None

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

    def _told(self, beat: int) -> dict[str, Any]:
        where = stack(sys._current_frames().get(threading.main_thread().ident or 0))
        told = {"pid": os.getpid(), "beat": beat, "step": self.step, "phase": self.phase, "place": self.place, "stack": where}
        return told | {"waitsFor": self.waits_for, "stepSeconds": self.step_seconds}

    def _run(self, path: Path) -> None:
        temporary = path.with_suffix(".new")
        for beat in range(1, sys.maxsize):
            # A full memory volume must not end the thread.
            with suppress(OSError):
                temporary.write_text(json.dumps(self._told(beat)))
                temporary.replace(path)
            time.sleep(BEAT_SECONDS)


def stack(frame: FrameType | None) -> list[str]:
    """Return a frame and its callers as `file:line function`, the innermost first."""
    lines = []
    while frame:
        lines.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return lines


def innermost(where: list[str]) -> str:
    """Return where a stack stands, and from where in our own code."""
    ours = next((line for line in where if "/tunesmith_trainer/" in line), "")
    places = dict.fromkeys([*where[:1], *([ours] if ours else [])])
    return ", called by ".join(places) or "an unknown place"


def hung_seconds() -> float:
    """Return for how long a process may stand still in training."""
    return float(os.environ.get("TUNESMITH_HUNG_SECONDS", HUNG_SECONDS))


def patient_seconds() -> float:
    """Return for how long it may stand still in another phase."""
    return float(os.environ.get("TUNESMITH_PATIENT_SECONDS", PATIENT_SECONDS))


def stalled_seconds(step_seconds: float | None) -> float:
    """Return for how long no step may be completed where the last ones took so long each; without end where that is not known."""
    least = float(os.environ.get("TUNESMITH_STALLED_SECONDS", STALLED_SECONDS))
    return math.inf if step_seconds is None else max(least, STALLED_TIMES * step_seconds)


@dataclass
class Patient:
    """What a launcher knows of one process of its node."""

    told: dict[str, Any] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    moved_bytes: float = 0.0
    idle_seconds: float = 0.0
    still_seconds: float = 0.0
    """Idle, and elsewhere than where it waits for others: what it waited before is over when it goes on."""
    silent_seconds: float = 0.0
    stepless_seconds: float = 0.0
    """Since its last step, or since it came back to training from something else."""
    lost_at: float = 0.0

    @property
    def waits_for_others(self) -> bool:
        """Whether it said so in its last words."""
        return bool(self.told["waitsFor"]) or any(part in line for line in self.told["stack"][:INNER_FRAMES] for part in WAITING_IN)

    @property
    def is_hung(self) -> bool:
        """Whether it stands still, and not because of another."""
        at_once = self.told["phase"] in BRISK or _is_stopped(self.told["pid"])
        limit = hung_seconds() if at_once else patient_seconds()
        return self.still_seconds > limit or min(self.idle_seconds, self.silent_seconds) > limit

    @property
    def is_stalled(self) -> bool:
        """Whether it makes no step, whoever is to blame."""
        return self.stepless_seconds > stalled_seconds(self.told["stepSeconds"])

    def hear(self, told: dict[str, Any], cpu_seconds: float, moved_bytes: float, passed: float) -> None:
        """Take what the process told, and has used so far, `passed` seconds after the time before."""
        before, self.told = self.told, told
        went_on = any(told[name] != before.get(name) for name in ("step", "phase"))
        self.silent_seconds = 0.0 if told["beat"] != before.get("beat") else self.silent_seconds + passed
        self.stepless_seconds = 0.0 if went_on or told["phase"] != "training" or told["waitsFor"] else self.stepless_seconds + passed
        self.idle_seconds += passed
        self.still_seconds = 0.0 if self.waits_for_others else self.still_seconds + passed
        # What a child had used is gone with it.
        self.cpu_seconds, self.moved_bytes = min(self.cpu_seconds, cpu_seconds), min(self.moved_bytes, moved_bytes)
        # The shares are taken over the whole time of standing still: one beat's worth is too little to measure.
        seconds = max(self.idle_seconds, BEAT_SECONDS * 5)
        busy = cpu_seconds - self.cpu_seconds > IDLE_CPU * seconds or moved_bytes - self.moved_bytes > IDLE_BYTES * seconds
        if busy or went_on:
            self.idle_seconds = self.still_seconds = 0.0
            self.cpu_seconds, self.moved_bytes = cpu_seconds, moved_bytes


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
        heard = [(rank, patient) for rank, patient in enumerate(self.patients) if patient.told and not patient.lost_at]
        hung = [each for each in heard if each[1].is_hung]
        # Of those that make no step, one that does not wait for the others may be why they wait.
        stalled = sorted((each for each in heard if each[1].is_stalled), key=lambda each: each[1].waits_for_others)
        return self._diagnosis(*(hung or stalled)[0]) if hung or stalled else None

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
        used = _used(told["pid"])
        if used is None:
            patient.told = told
            if not patient.lost_at and not outcome_path(self._reports, local_rank).exists():
                patient.lost_at = self._polled
            return
        patient.hear(told, *used, passed)

    def _diagnosis(self, local_rank: int, patient: Patient) -> StageError:
        who = self.name(local_rank)
        where = patient.told["stack"]
        print(f"{who} hangs; its stack when it last spoke:\n" + "\n".join(where), flush=True)
        if not patient.is_hung:
            # Everybody may wait for what never comes: network or device, more likely than this process's code.
            each = f"{patient.told['stepSeconds']:.1f} s each"
            message = (
                f"{who} makes no step: none for {patient.stepless_seconds:.0f} s after step {patient.told['step']}, where the last ones took {each}"
            )
            return StageError(
                "Hung", f"{message}; it is at {where[0] if where else 'an unknown place'}, its stack is in the pod's log", patient.told["place"]
            )
        stopped = _is_stopped(patient.told["pid"])
        how = "is stopped" if stopped else f"stands still at {innermost(where)}" if where else "is silent"
        message = f"{who} {how}: no step, no CPU for {patient.idle_seconds:.0f} s after step {patient.told['step']}; its stack is in the pod's log"
        # Code that waits for what never comes: as a bug does, it does so again. What is stopped, silent, or saving may be so from outside.
        is_code = where and not stopped and patient.silent_seconds < patient.idle_seconds / 2 and patient.told["phase"] in BRISK
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


def _used(pid: int) -> tuple[float, float] | None:
    """Return the CPU seconds that a process and its children have used, and the bytes they have moved; None where the process is no more."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        family = (process, *process.children(recursive=True))
        times = [each.cpu_times() for each in family]
        return float(sum(each.user + each.system for each in times)), float(sum(map(_moved, family)))
    except psutil.NoSuchProcess:
        return None


def _moved(process: psutil.Process) -> int:
    """Return the bytes that a process has read and written, those of mapped files too.

    What a mapped file had to read is counted by the kernel's own file systems alone; any store's shows in the pages that were mapped.
    A process that stands still maps none.
    """
    moved = 0
    with suppress(psutil.AccessDenied):
        counters = process.io_counters()
        moved = counters.read_chars + counters.write_chars + counters.read_bytes
    with suppress(OSError):
        # Behind the name, which may hold spaces: proc(5), minflt and majflt.
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        moved += (int(fields[7]) + int(fields[9])) * FAULT_BYTES
    return int(moved)


def _is_stopped(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    return False
