"""A training that goes through one fault after another, and the faults that more than one test does to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dev.cluster.processes import wait_until
from dev.demo import follow
from dev.demo.kube import Kube, Object
from dev.demo.stack import SYSTEM
from tests.e2e.conftest import say
from tests.e2e.drilling import KILL, KILL_IN_SAVE, TERMINATE, Run

TOLERANCE = 1e-3
"""Of a loss, from an undisturbed run's."""
PATIENCE = 300
"""Seconds for what takes some twenty on a machine that has nothing else to do."""


@dataclass
class End:
    """How an attempt that was drilled ended, and where the next one that trained went on."""

    attempt: int
    reached: int
    """The last step that it made."""
    resumed: int
    """The step that it started from."""


class Trial:
    """A run, and what each drill did to it."""

    def __init__(self, run: Run, reference: Run | None = None) -> None:
        """`reference`: the same run without any, where one trains beside it."""
        self.run, self.reference, self.kube = run, reference, run.kube
        self.attempt = 1
        self.ends: dict[str, End] = {}
        self.seen: Object = {}
        """What there was to see during drills."""
        self.status: Object = {}

    def drill(self, name: str, fault: Callable[[Trial], None], hops: int = 1) -> None:
        """Do something to the attempt that trains, once it has saved. Return when the `hops`th after it trains."""
        number, run = self.attempt, self.run
        wait_until(lambda: run.saved(number) > 0, f"a checkpoint of attempt {number}", PATIENCE, 0.2)
        fault(self)
        self.wait_end(name)
        ended, reached = time.time(), run.reached()
        self.attempt += hops

        def later() -> list[int]:
            return [line["step"] for line in run.lines() if line["time"] > ended]

        wait_until(lambda: bool(later()), f"a step of attempt {self.attempt} ({name})", PATIENCE, 0.2)
        self.ends[name] = End(number, reached, min(later()) - 1)
        say(f"{name}: attempt {number} reached step {reached}, attempt {self.attempt} went on from {self.ends[name].resumed}")

    def attempts(self) -> list[Any]:
        """What the status tells of the attempts at Train, once the run is over."""
        return train_attempts(self.status)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Let the attempt fail within the context: at its end its Job has, whether or not an operator sees it."""
        # Afterwards the Job's controller takes away the pods that still ran.
        job = self.run.pods(self.attempt)[0]["metadata"]["labels"]["job-name"]
        yield
        self.kube.run("wait", f"job/{job}", "--for=condition=Failed", f"--timeout={PATIENCE}s")

    def wait_end(self, why: str) -> None:
        """Wait until the status tells how the attempt ended."""
        wait_until(lambda: bool(self.run.entry(self.attempt)), f"the end of attempt {self.attempt} ({why})", PATIENCE, 0.2)


@contextmanager
def without_operator(kube: Kube) -> Iterator[None]:
    """There is no operator while the context lasts."""
    operator = ("deployment/tunesmith", f"--namespace={SYSTEM}")
    kube.run("scale", *operator, "--replicas=0")
    try:
        kube.run("wait", "pods", "--all", f"--namespace={SYSTEM}", "--for=delete", "--timeout=60s")
        yield
    finally:
        kube.run("scale", *operator, "--replicas=1")


def kill(trial: Trial) -> None:
    trial.run.run_in(trial.attempt, 1, KILL)


def kill_in_save(trial: Trial) -> None:
    """Kill the process that writes a checkpoint, amid it."""
    run, number = trial.run, trial.attempt
    checkpoints = run.below(f"checkpoints/attempt-{number}/step-*")
    trial.seen["half written"] = int(run.run_in(number, 0, KILL_IN_SAVE, f"/mnt/pvc/models/{checkpoints}"))
    trial.wait_end("killed in a save")
    assert trial.seen["half written"] not in run.checkpoints(str(number))


def delete(trial: Trial) -> None:
    trial.kube.run("delete", "pod", trial.run.pod_name(trial.attempt, 0), "--wait=false")


def terminate(trial: Trial) -> None:
    trial.run.run_in(trial.attempt, 1, TERMINATE)


def suspend(trial: Trial) -> None:
    trial.run.suspend(True)
    wait_until(lambda: follow.is_true(trial.run.get(), "Suspended"), "it to be Suspended", PATIENCE, 0.2)
    phases = [pod["status"]["phase"] for pod in trial.run.pods(trial.attempt).values()]
    trial.seen["phases when suspended"] = phases
    trial.run.suspend(False)


def train_attempts(status: Object) -> list[Any]:
    """The attempts at Train that a status tells of."""
    return [entry for entry in status["attempts"] if entry["stage"] == "Train"]


def nodes_kept_and_lost(kube: Kube) -> tuple[int, int]:
    """The number of the node that the operator is on, and of the other one."""
    (operator,) = kube.get("pods", f"--namespace={SYSTEM}", "--field-selector=status.phase=Running")["items"]
    return {"n1": (1, 2), "n2": (2, 1)}[operator["spec"]["nodeName"]]
