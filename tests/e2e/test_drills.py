"""A training in two pods on two nodes goes through one fault after another and ends as if nothing had happened."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from dev.cluster.cluster import Cluster
from dev.cluster.processes import wait_until
from dev.demo import follow, seed
from dev.demo.kube import Kube
from dev.demo.stack import Stack
from tests.e2e import canaries
from tests.e2e.conftest import say
from tests.e2e.drilling import CANARY, EVERY, EXHAUST, KILL, STEPS, STOP, Run, upload_inputs
from tests.e2e.trial import PATIENCE, TOLERANCE, Trial, delete, kill, kill_in_save, nodes_kept_and_lost, suspend, terminate, without_operator

REPLACED_SECONDS = 90
FOUND_SECONDS = 60


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


DRILLS = {
    "kill -9 of a process": Drill(kill, ("ProcessLost",), False, EVERY),
    "pod deleted": Drill(delete, ("Disrupted",), True, 0),
    "kill -9 and a damaged checkpoint": Drill(damage, ("ProcessLost",), False, 2 * EVERY),
    "kill -9 in a save": Drill(kill_in_save, ("ProcessLost",), False, 2 * EVERY),
    "SIGTERM to one pod": Drill(terminate, ("Interrupted",), True, 0),
    "kill -9 without an operator": Drill(fail_unseen, ("ProcessLost",), False, EVERY),
    # What its pods tell is seen, or they are gone before.
    "suspended": Drill(suspend, ("Interrupted", "JobDeleted"), True, 0),
    "a process that hangs": Drill(hang, ("Hung",), True, EVERY),
    "out of memory": Drill(exhaust, ("OutOfMemory",), True, EVERY),
    "node stopped": Drill(stop_node, ("Disrupted",), True, EVERY),
}


@pytest.fixture(scope="module")
def trial(stack: Stack, kube: Kube) -> Iterator[Trial]:
    """All drills, one after another; the undisturbed run trains while the first of them take their time."""
    if not stack.ours:
        pytest.skip("KUBECONFIG names a cluster that is not the development cluster, whose nodes and files a test may touch")
    upload_inputs(kube)
    # Names of their own: a run whose files are there is adopted, not trained again.
    mark = uuid.uuid4().hex[:6]
    run, reference = (Run(kube, f"{name}-{mark}") for name in ("drilled", "undisturbed"))
    made = Trial(run, reference)
    wait_until(lambda: made.run.reached() > 0, "a first step", PATIENCE, 1)
    made.seen["token"] = made.run.token(1)
    for name, drill in DRILLS.items():
        made.drill(name, drill.fault)
    made.status = made.run.finish(PATIENCE)
    yield made
    kube.run("delete", "finetunejob", run.name, reference.name)
    kube.run("wait", f"pod/{seed.LOADER}", "--for=condition=Ready", "--timeout=120s")


def test_it_succeeds_and_each_steps_loss_is_that_of_a_run_without_faults(trial: Trial) -> None:
    assert follow.condition({"status": trial.status}, "Succeeded")["status"] == "True", trial.status
    assert [step for step, _ in trial.run.curve()] == list(range(1, STEPS + 1))
    assert trial.reference
    assert dict(trial.run.curve()) == pytest.approx(dict(trial.reference.curve()), abs=TOLERANCE)


@pytest.mark.parametrize("name", DRILLS)
def test_a_fault_loses_at_most_the_steps_since_a_checkpoint_and_none_where_the_pods_could_save(trial: Trial, name: str) -> None:
    end = trial.ends[name]
    assert 0 <= end.reached - end.resumed <= DRILLS[name].lost, end


@pytest.mark.parametrize("name", DRILLS)
def test_the_status_tells_each_attempt_and_why_it_ended(trial: Trial, name: str) -> None:
    (entry,) = (entry for entry in trial.attempts() if entry["attempt"] == trial.ends[name].attempt)
    assert (entry["outcome"], entry["free"]) == ("Failed", DRILLS[name].free), entry
    assert entry["reason"] in DRILLS[name].reasons, entry


def test_no_attempt_is_missing_or_told_twice_and_only_what_is_not_free_is_spent(trial: Trial) -> None:
    assert [entry["attempt"] for entry in trial.attempts()] == list(range(1, len(DRILLS) + 2))
    assert trial.attempts()[-1]["outcome"] == "Succeeded"
    assert trial.status["retriesSpent"] == sum(not drill.free for drill in DRILLS.values())
    assert trial.seen["told without an operator"] == {}


def test_suspended_means_that_no_pod_lives(trial: Trial) -> None:
    assert not {"Pending", "Running"} & set(trial.seen["phases when suspended"])


def test_a_pod_of_a_stopped_node_is_replaced_in_time(trial: Trial) -> None:
    assert trial.seen["seconds until replaced"] <= REPLACED_SECONDS


def test_a_process_that_hangs_is_found_in_time(trial: Trial) -> None:
    assert trial.seen["seconds until found"] <= FOUND_SECONDS


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(trial: Trial) -> None:
    end, damaged = trial.ends["kill -9 and a damaged checkpoint"], trial.seen["damaged"]
    # Pods that were told to end have saved at steps of their own.
    assert damaged - EVERY <= end.resumed < damaged


def test_a_half_written_checkpoint_is_passed_over_for_the_one_before(trial: Trial) -> None:
    assert trial.ends["kill -9 in a save"].resumed < trial.seen["half written"]


def test_after_out_of_memory_each_process_takes_half_as_many_rows_at_a_time(trial: Trial) -> None:
    healed = trial.ends["out of memory"].attempt
    given = {entry["attempt"]: (entry["perDeviceTrainBatchSize"], entry["gradientAccumulationSteps"]) for entry in trial.attempts()}
    assert given == {number: (2, 4) if number <= healed else (1, 8) for number in given}


def test_no_row_and_no_token_is_told_by_status_events_logs_or_metrics_whatever_had_failed(trial: Trial) -> None:
    texts, token = canaries.told(trial.kube), trial.seen["token"]
    assert len(token) > 100
    assert {"finetunejobs", "jobs", "events.events.k8s.io"} <= set(canaries.sources(texts, trial.run.name))
    assert [source for source in canaries.sources(texts, "controller_runtime_reconcile_total") if source.startswith("metrics of tunesmith-")]
    assert [source for source in canaries.sources(texts, "loss") if source.startswith("log of drilled-")]
    assert (canaries.sources(texts, CANARY), canaries.sources(texts, token)) == ([], [])
