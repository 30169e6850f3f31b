"""A training in two pods on two nodes goes through one fault after another and ends as if nothing had happened.

More faults: test_long_faults.py and test_long_drills.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dev.demo.stack import Stack
from tests.e2e import canaries
from tests.e2e import trial as trials
from tests.e2e.drilling import CANARY, EVERY
from tests.e2e.trial import Drill, Trial

REPLACED_SECONDS = 90

DRILLS = {
    "pod deleted": Drill(trials.delete, ("Disrupted",), True, 0),
    "SIGTERM to one pod": Drill(trials.terminate, ("Interrupted",), True, 0),
    "kill -9 without an operator": Drill(trials.fail_unseen, ("ProcessLost",), False, EVERY),
    # What its pods tell is seen, or they are gone before.
    "suspended": Drill(trials.suspend, ("Interrupted", "JobDeleted"), True, 0),
    "out of memory": Drill(trials.exhaust, ("OutOfMemory",), True, EVERY),
    "node stopped": Drill(trials.stop_node, ("Disrupted",), True, EVERY),
}


@pytest.fixture(scope="module")
def trial(stack: Stack) -> Iterator[Trial]:
    """A run that all drills were done to."""
    with trials.drilled(stack, DRILLS) as made:
        yield made


def test_it_succeeds_and_each_steps_loss_is_that_of_a_run_without_faults(trial: Trial) -> None:
    trials.assert_like_the_undisturbed(trial)


@pytest.mark.parametrize("name", DRILLS)
def test_a_fault_loses_at_most_the_steps_since_a_checkpoint_and_none_where_the_pods_could_save(trial: Trial, name: str) -> None:
    trials.assert_bounded(trial, name, DRILLS[name])


@pytest.mark.parametrize("name", DRILLS)
def test_the_status_tells_each_attempt_and_why_it_ended(trial: Trial, name: str) -> None:
    trials.assert_told(trial, name, DRILLS[name])


def test_no_attempt_is_missing_or_told_twice_and_only_what_is_not_free_is_spent(trial: Trial) -> None:
    trials.assert_counted(trial, DRILLS)
    assert trial.seen["told without an operator"] == {}


def test_suspended_means_that_no_pod_lives(trial: Trial) -> None:
    assert not {"Pending", "Running"} & set(trial.seen["phases when suspended"])


def test_a_pod_of_a_stopped_node_is_replaced_in_time(trial: Trial) -> None:
    assert trial.seen["seconds until replaced"] <= REPLACED_SECONDS


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
