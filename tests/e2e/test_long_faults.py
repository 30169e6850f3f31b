"""Faults that other levels show already (tests/trainer), done to a training in two pods on two nodes: it ends as if nothing had happened.

make drills
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dev.demo.stack import Stack
from tests.e2e import trial as trials
from tests.e2e.drilling import EVERY
from tests.e2e.trial import Drill, Trial

pytestmark = pytest.mark.long

FOUND_SECONDS = 60

DRILLS = {
    "kill -9 of a process": Drill(trials.kill, ("ProcessLost",), False, EVERY),
    "kill -9 and a damaged checkpoint": Drill(trials.damage, ("ProcessLost",), False, 2 * EVERY),
    "kill -9 in a save": Drill(trials.kill_in_save, ("ProcessLost",), False, 2 * EVERY),
    "a process that hangs": Drill(trials.hang, ("Hung",), True, EVERY),
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


def test_a_process_that_hangs_is_found_in_time(trial: Trial) -> None:
    assert trial.seen["seconds until found"] <= FOUND_SECONDS


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(trial: Trial) -> None:
    end, damaged = trial.ends["kill -9 and a damaged checkpoint"], trial.seen["damaged"]
    # Pods that were told to end have saved at steps of their own.
    assert damaged - EVERY <= end.resumed < damaged


def test_a_half_written_checkpoint_is_passed_over_for_the_one_before(trial: Trial) -> None:
    assert trial.ends["kill -9 in a save"].resumed < trial.seen["half written"]
