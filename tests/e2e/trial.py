"""A training that goes through one fault after another, and the faults that more than one test does to it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from dev.cluster.cluster import Cluster
from dev.cluster.processes import wait_until
from dev.demo import follow, seed
from dev.demo.kube import Kube, Object
from dev.demo.stack import SYSTEM, Stack
from tests.e2e.conftest import say
from tests.e2e.drilling import EXHAUST, KILL, KILL_IN_SAVE, STEPS, STOP, TERMINATE, Run, upload_inputs

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


def fail_unseen(trial: Trial) -> None:
    """The attempt fails while there is no operator."""
    with without_operator(trial.kube):
        with trial.failing():
            trial.run.run_in(trial.attempt, 0, KILL)
        trial.seen["told without an operator"] = trial.run.entry(trial.attempt)


def damage(trial: Trial) -> None:
    """The newest checkpoint is cut short after the attempt has ended and before the next one reads it."""
    kill(trial)
    trial.wait_end("killed")
    trial.seen["damaged"] = trial.run.damage()


def hang(trial: Trial) -> None:
    trial.run.run_in(trial.attempt, 1, STOP)
    began = time.monotonic()
    trial.wait_end("hangs")
    trial.seen["seconds until found"] = time.monotonic() - began
    say(f"found {trial.seen['seconds until found']:.0f} s after it had stopped")


def exhaust(trial: Trial) -> None:
    trial.run.run_in(trial.attempt, 1, EXHAUST)


def stop_node(trial: Trial) -> None:
    """One node stops; it comes back when the next attempt has the other one and waits for it."""
    reference = trial.reference
    assert reference
    wait_until(lambda: follow.is_true(reference.get(), "Finished"), "the end of the undisturbed run", PATIENCE, 1)
    kept, lost = nodes_kept_and_lost(trial.kube)
    cluster, began = Cluster(), time.monotonic()

    def replaced() -> bool:
        pods = trial.run.pods(trial.attempt + 1).values()
        return {pod["spec"].get("nodeName", ""): pod["status"]["phase"] for pod in pods} == {f"n{kept}": "Running", "": "Pending"}

    def waits() -> str:
        message: str = follow.condition(trial.run.get(), "Reconciling")["message"]
        return message if "nodes are available" in message else ""

    cluster.stop_node(lost, lambda _: None)
    try:
        wait_until(replaced, "an attempt on the other node", PATIENCE, 0.5)
        trial.seen["seconds until replaced"] = time.monotonic() - began
        say(f"replaced {trial.seen['seconds until replaced']:.0f} s after its node stopped")
        wait_until(lambda: bool(waits()), "it to tell what it waits for", 60, 1)
    finally:
        cluster.start_node(lost, lambda _: None)


@dataclass
class Drill:
    """What is done to an attempt, and how that ends."""

    fault: Callable[[Trial], None]
    reasons: tuple[str, ...]
    free: bool
    """Whether no retry is spent."""
    lost: int
    """Steps that may be lost at most: 0 where the pods could save."""


@contextmanager
def drilled(stack: Stack, drills: Mapping[str, Drill]) -> Iterator[Trial]:
    """All drills, one after another; the undisturbed run trains while the first of them take their time."""
    if not stack.ours:
        pytest.skip("KUBECONFIG names a cluster that is not the development cluster, whose nodes and files a test may touch")
    upload_inputs(stack.kube)
    # Names of their own: a run whose files are there is adopted, not trained again.
    mark = uuid.uuid4().hex[:6]
    run, reference = (Run(stack.kube, f"{name}-{mark}") for name in ("drilled", "undisturbed"))
    trial = Trial(run, reference)
    wait_until(lambda: run.reached() > 0, "a first step", PATIENCE, 1)
    trial.seen["token"] = run.token(1)
    for name, drill in drills.items():
        trial.drill(name, drill.fault)
    trial.status = run.finish(PATIENCE)
    reference.finish(PATIENCE)
    yield trial
    stack.kube.run("delete", "finetunejob", run.name, reference.name)
    stack.kube.run("wait", f"pod/{seed.LOADER}", "--for=condition=Ready", "--timeout=120s")


def assert_like_the_undisturbed(trial: Trial) -> None:
    """It succeeded, and each step is there once and has the loss of a run without faults."""
    assert follow.condition({"status": trial.status}, "Succeeded")["status"] == "True", trial.status
    assert [step for step, _ in trial.run.curve()] == list(range(1, STEPS + 1))
    assert trial.reference
    assert dict(trial.run.curve()) == pytest.approx(dict(trial.reference.curve()), abs=TOLERANCE)


def assert_bounded(trial: Trial, name: str, drill: Drill) -> None:
    """The fault lost at most the steps since a checkpoint, and none where the pods could save."""
    end = trial.ends[name]
    assert 0 <= end.reached - end.resumed <= drill.lost, end


def assert_told(trial: Trial, name: str, drill: Drill) -> None:
    """The status says why the attempt ended, and whether it was free."""
    (entry,) = (entry for entry in trial.attempts() if entry["attempt"] == trial.ends[name].attempt)
    assert (entry["outcome"], entry["free"]) == ("Failed", drill.free), entry
    assert entry["reason"] in drill.reasons, entry


def assert_counted(trial: Trial, drills: Mapping[str, Drill]) -> None:
    """No attempt is missing or told twice, and only what is not free is spent."""
    assert [entry["attempt"] for entry in trial.attempts()] == list(range(1, len(drills) + 2))
    assert trial.attempts()[-1]["outcome"] == "Succeeded"
    spent = [entry for entry in trial.attempts() if entry["outcome"] == "Failed" and not entry["free"]]
    assert len(spent) == sum(not drill.free for drill in drills.values())
    assert trial.status["retriesSpent"] == 0, "the checkpoints since have made them whole again"
