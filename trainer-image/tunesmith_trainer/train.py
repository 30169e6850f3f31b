"""Train: process 1 of a training pod. It runs torchrun, passes SIGTERM on, and turns its workers' outcomes into a result.

torchrun hides its workers' exit codes, so each worker writes an outcome file of its own (worker.py) and these are read here.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from tunesmith_contract.results import Answer, TrainAnswer
from tunesmith_contract.stages import JobInput, TrainInput
from tunesmith_trainer import device_errors, store
from tunesmith_trainer import runner as stages
from tunesmith_trainer.device_errors import SYMPTOMS, Meaning
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.failure import PLACELESS, explained, stable_hash
from tunesmith_trainer.training import fence, torchrun
from tunesmith_trainer.training.tail import Tail
from tunesmith_trainer.training.watchdog import Ward, outcome_path

INPUT: type[JobInput] = TrainInput
# How long a pod waits for the others once all of them are on a node, and how long until they are: the operator ends an attempt before that.
RENDEZVOUS_SECONDS = 300
ASSEMBLY_SECONDS = 3600
# The launcher's share of the grace period: reading outcomes and writing the result.
LAUNCHER_SECONDS = 5
# How long a node's other processes may go on once one of them has failed by itself: they only wait for it.
FAILED_SECONDS = 10
# How long a pod that only lost its peers waits before it says so. The first pod that ends ends the Job, and what the others would
# have told is lost with them: the one that knows why must be the first. Longer than FAILED_SECONDS, what a checkpoint under way is
# given (uploader.py) and its node's way to its end.
ECHO_SECONDS = 30
POLL_SECONDS = 0.2
# What a library or the interpreter writes that ends its own process; NCCL's watchdog does not.
OWN_ABORT = re.compile(r"free\(\)|malloc\(|double free|corrupted|Assertion `.*' failed|Fatal Python error: (?!Aborted)|stack smashing")


def run(stage: TrainInput) -> Answer:
    """Train on this node; returns TrainAnswer on the first node and a bare Answer on the others.

    Raises StageError: Superseded where another start has taken the run over, Interrupted after SIGTERM on any node,
    PeerUnavailable where another node cannot be reached, Hung, ProcessLost, and whatever the workers report.
    """
    run_folder = store.path_of(stage.run_uri)
    store.open_artifact(stage.model.uri, stage.model.digest)
    fence.refuse_late(stage, run_folder)
    claim = fence.claim(stage, run_folder) if stages.is_leader() else None
    with tempfile.TemporaryDirectory(prefix="train-") as scratch, reports_folder() as reports:
        launcher = Launcher(stage, Path(scratch), Path(reports), claim)
        try:
            launcher.run()
            answer = launcher.answer()
        except StageError as error:
            if error.reason in SYMPTOMS and stage.rendezvous.nodes > 1:
                launcher.let_others_speak()
            # The successor's result must not be overwritten by that of a start that it took over from.
            if claim:
                with suppress(OSError):
                    claim.check()
            raise
        if claim:
            store.persevere(claim.check, "the claim on the run")
        return answer


def reports_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for what the workers tell: in memory, since the node's disk may stand still, or be full of a checkpoint."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return tempfile.TemporaryDirectory(prefix="train-", dir=memory, ignore_cleanup_errors=True)


def cpu_count() -> int:
    """Return how many CPUs this container is meant to use.

    That is OMP_NUM_THREADS where the pod sets it (from its CPU request: several pods of a node that each took all its CPUs
    would keep one another waiting), else the cgroup's quota, else the affinity's count.
    """
    if told := os.environ.get("OMP_NUM_THREADS"):
        return max(1, int(told))
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, int(quota) // int(period)))
    except (OSError, ValueError):
        return allowed


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Return host and port of `host:port`; raises StageError(InvalidSettings)."""
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdigit():
        raise StageError("InvalidSettings", f"rendezvous.endpoint {endpoint!r} is not host:port")
    return host, int(port)


def rendezvous_seconds() -> int:
    """Return how long a pod waits for the others."""
    return int(os.environ.get("TUNESMITH_RENDEZVOUS_SECONDS", RENDEZVOUS_SECONDS))


def names_of(host: str, nodes: int) -> list[str]:
    """Return the names of all pods of the attempt, given the first one's, `<job>-0.<job>`; of another form it is the only one known."""
    found = re.fullmatch(r"(.+)-0\.\1", host)
    return [f"{found[1]}-{index}.{found[1]}" for index in range(nodes)] if found else [host]


def wait_for_names(hosts: Sequence[str], seconds: float) -> None:
    """Wait until all these names resolve: a headless Service knows a pod only once it is on a node."""
    deadline = time.monotonic() + seconds
    for host in hosts:
        while True:
            try:
                socket.getaddrinfo(host, None)
                break
            except OSError as error:
                if time.monotonic() >= deadline:
                    message = f"the training pod {host} did not come within {seconds:.0f} s: its name does not resolve: {error}"
                    raise StageError("PeerUnavailable", message) from None
            time.sleep(min(1.0, seconds))


class Launcher:
    """One node's torchrun: started, told to stop, and waited for."""

    def __init__(self, stage: TrainInput, scratch: Path, reports: Path, claim: fence.Fence | None) -> None:
        """Take the stage, empty folders for the workers' files and for what they tell, and on the first node the claim on the run."""
        self.stage = stage
        self.scratch = scratch
        self.reports = reports
        self.claim = claim
        self.hang: StageError | None = None
        self.terminated = False
        self.deadline = float("inf")
        self.agent: subprocess.Popen[bytes] | None = None
        self.tail = Tail()
        self.node = int(os.environ.get("JOB_COMPLETION_INDEX", "0"))
        processes = stage.rendezvous.processes_per_node
        self.ward = Ward(reports, self.node * processes, processes)

    def run(self) -> None:
        """Run torchrun to its end."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        host, port = split_endpoint(self.stage.rendezvous.endpoint)
        if self.stage.rendezvous.nodes == 1:
            host = "127.0.0.1"
        wait_for_names(names_of(host, self.stage.rendezvous.nodes), ASSEMBLY_SECONDS)
        self.agent = subprocess.Popen(self.command(host, port), env=self.environment(), stderr=subprocess.PIPE)
        self.tail.follow(self.agent.stderr)
        if self.terminated:
            self.agent.terminate()
        self._wait()

    def _on_sigterm(self, _number: int, _frame: FrameType | None) -> None:
        self.terminated = True
        self.deadline = min(self.deadline, time.monotonic() + self.stage.checkpoints.grace_period_seconds - LAUNCHER_SECONDS / 2)
        if self.agent is None:
            raise StageError("Interrupted", "stopped by SIGTERM before training began")
        self.agent.terminate()

    def _wait(self) -> None:
        """Wait for torchrun, but no longer than needed once all workers have answered or the grace period is over.

        Left alone it would wait minutes for the other nodes' torchruns, of which one that was told to stop never answers;
        and it does so in native code, where no signal but SIGKILL reaches it.
        """
        assert self.agent is not None
        while self.agent.poll() is None:
            time.sleep(POLL_SECONDS)
            outcomes = self.outcomes()
            if len(outcomes) == self.stage.rendezvous.processes_per_node:
                self.deadline = min(self.deadline, time.monotonic() + LAUNCHER_SECONDS / 2)
            elif any(is_cause(outcome) for outcome in outcomes):
                self.deadline = min(self.deadline, time.monotonic() + FAILED_SECONDS)
            self.hang = self.ward.look()
            if self.hang or time.monotonic() > self.deadline:
                self.ward.kill()
                self.agent.kill()
                self.agent.wait()
        self.tail.finish()
        self.ward.examine()

    def command(self, host: str, port: int) -> list[str]:
        """Return torchrun's command line for this node."""
        rendezvous = self.stage.rendezvous
        grace = max(1, self.stage.checkpoints.grace_period_seconds - LAUNCHER_SECONDS)
        return [
            sys.executable,
            "-m",
            "tunesmith_trainer.training.torchrun",
            f"--nnodes={rendezvous.nodes}",
            f"--nproc-per-node={rendezvous.processes_per_node}",
            f"--node-rank={self.node}",
            f"--master-addr={host}",
            f"--master-port={port}",
            f"--rdzv-conf=timeout={rendezvous_seconds()}",
            f"--shutdown-timeout={grace}",
            "--max-restarts=0",
            "--module",
            "tunesmith_trainer.training.worker",
        ]

    def environment(self) -> dict[str, str]:
        """Return the workers' environment: where they read and answer, and how many threads each may use."""
        defaults = {
            "TUNESMITH_STAGE_FILE": str(stages.stage_file().resolve()),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        }
        threads = max(1, cpu_count() // self.stage.rendezvous.processes_per_node)
        launch = {"TUNESMITH_LAUNCH": self.claim.launch} if self.claim else {}
        folders = {"TUNESMITH_SCRATCH": str(self.scratch), "TUNESMITH_REPORTS": str(self.reports)}
        return defaults | dict(os.environ) | launch | folders | {"OMP_NUM_THREADS": str(threads)}

    def outcomes(self) -> list[dict[str, Any]]:
        """Return what this node's workers have answered so far, by local rank."""
        return [json.loads(path.read_bytes()) for path in sorted(self.reports.glob("outcome-*.json"))]

    def let_others_speak(self) -> None:
        """Wait until another pod may have told why this one lost it; no longer than until SIGTERM, which says that one has."""
        deadline = time.monotonic() + float(os.environ.get("TUNESMITH_ECHO_SECONDS", ECHO_SECONDS))
        with suppress(StageError):
            while not self.terminated and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)

    def answer(self) -> Answer:
        """Return the node's answer out of its workers' outcomes; raises StageError where one of them failed."""
        if self.hang:
            raise self.hang
        outcomes = self.outcomes()
        failures = [StageError(**outcome["failure"]) for outcome in outcomes if "failure" in outcome]
        if len(outcomes) < self.stage.rendezvous.processes_per_node:
            failures.append(self._silence())
        if failures:
            # A worker whose peer was lost, or whose communication broke, only echoes the failure of another.
            raise min(failures, key=lambda failure: SYMPTOMS.index(failure.reason) + 1 if failure.reason in SYMPTOMS else 0)
        return Answer() if self.node else TrainAnswer.model_validate(outcomes[0]["answer"])

    def _silence(self) -> StageError:
        if self.terminated:
            return StageError("Interrupted", "stopped by SIGTERM before the training processes could save a checkpoint")
        log = "its last lines are in the pod's log"
        lost = self.ward.first_lost()
        if lost:
            local_rank, step = lost
            name = torchrun.signal_of(self.reports, local_rank)
            place = {} if step is None else {"step": step}
            if failure := last_words(self.stage.device, name, self.tail.lines):
                failure.details.update(place)
                return failure
            how = f"was ended by {name}" if name else "was killed or crashed"
            message = f"the training process of {self.ward.name(local_rank)} {how} without a word (out of memory, a signal, a native library); {log}"
            return StageError("ProcessLost", message, place | torchrun.crash(name))
        told = torchrun.read(self.reports, {rank for rank in range(len(self.ward.patients)) if outcome_path(self.reports, rank).exists()})
        if told and told.reason == "PeerUnavailable":
            # torchrun starts its workers when all nodes have met; the first pod's name is there before its image is.
            message = f"no training process began here: another pod of the attempt did not come within {rendezvous_seconds()} s; {log}"
            return StageError("PeerUnavailable", message)
        assert self.agent is not None
        return told or StageError("InternalError", f"torchrun ended with code {self.agent.returncode} and without a result: {log}")


def is_cause(outcome: dict[str, Any]) -> bool:
    """Whether a process failed by itself: neither stopped, nor because of another one."""
    return outcome.get("failure", {}).get("reason", "Interrupted") not in ("Interrupted", *SYMPTOMS)


def last_words(device: str, signal_name: str, lines: Sequence[str]) -> StageError | None:
    """Return what a process that was aborted, or ended by a library's exit, wrote of its end; None where that says nothing.

    NCCL's watchdog aborts a process whose peers do not answer, and one whose GPU has failed: CUDA's errors reach it before Python.
    """
    if signal_name not in ("", "SIGABRT"):
        return None
    told = device_errors.last_words(lines)
    if told is None and device == "GPU" and signal_name and not any(OWN_ABORT.search(line) for line in lines):
        told = Meaning("CommunicationFailed", "a training process was ended by SIGABRT, as NCCL's watchdog does it")
    if told is None:
        return None
    failure = explained(told, "Train")
    if failure.reason not in PLACELESS and failure.reason not in SYMPTOMS:
        # There is no traceback of it.
        failure.details["fingerprint"] = stable_hash("aborted", told.sentence)
    return failure
