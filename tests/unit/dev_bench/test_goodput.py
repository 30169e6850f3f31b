"""The goodput simulation against what can be reckoned by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.bench.cluster_model import FAULTS, Cluster, Setting
from tests.bench.goodput import account, measure

QUIET = Setting(between_faults=1e12, spares=1, step=10, every_steps=6, saving=2, scheduling=5, loading=15, watchdog=60, closed=5, repair=300)
"""The first step begins at second 20; a cycle of six steps and a checkpoint takes 62 s; nothing fails by itself."""


def struck(fault: str, at: float = 200, end: float = 1000, setting: Setting = QUIET) -> Cluster:
    """One fault in a short life. At second 200 two cycles are over (at 144) and five steps of the third (at 194)."""
    cluster = Cluster(setting).run_until(at)
    cluster.strike(fault)
    return cluster.run_until(end)


def test_without_faults_all_but_the_beginning_and_the_checkpoints_counts() -> None:
    spent = account(Cluster(QUIET).run_until(20 + 62 * 10))
    assert spent == {"rescheduling": 5, "loading": 15, "useful": 600, "saving": 20}


def test_a_killed_process_costs_the_steps_since_the_checkpoint_and_a_new_start() -> None:
    """Its peers have ended by 205; the pause is 5 s, so the next Job is made at 210 and its first step begins at 230."""
    spent = account(struck("process killed", end=230 + 62))
    assert spent == {
        "rescheduling": 2 * 5,
        "loading": 2 * 15,
        "useful": 12 * 10 + 6 * 10,
        "saving": 2 * 2 + 2,
        "steps redone": 200 - 144,
        "detection": 10,
    }


def test_a_preempted_pod_costs_no_step() -> None:
    """The sixth step of the third cycle ends at 204, its checkpoint at 206; the next Job is made at once."""
    cluster = struck("pod preempted", end=206 + 20 + 62)
    assert account(cluster) == pytest.approx({"rescheduling": 10, "loading": 30, "useful": 18 * 10 + 6 * 10, "saving": 3 * 2 + 2}, abs=1e-3)
    assert cluster.status["attempts"][-1]["reason"] == "Disrupted"
    assert cluster.status["lastCheckpoint"]["step"] == 18


def test_a_stopped_node_is_let_go_15_seconds_after_it_was_marked() -> None:
    """The peers give up after 60 s, when the Job controller deletes the pod too; the node was marked 40 to 60 s after the stop."""
    cluster = struck("node stops")
    spent = account(cluster)
    assert 60 <= spent["detection"] <= 75
    assert spent["rescheduling"] == 10
    assert sum(spent.values()) == pytest.approx(1000)
    assert cluster.status["attempts"][-1]["free"]


def test_without_a_spare_the_training_waits_for_the_node_to_come_back() -> None:
    cluster = struck("node stops", setting=replace(QUIET, spares=0))
    assert cluster.attempts[1].running == 200 + QUIET.repair


def test_without_a_spare_the_training_may_go_on_with_seven_nodes() -> None:
    """Placed 5 s after its Job was made, given up 120 s later, ended in 2 s; then each step takes 8/7 of its time."""
    cluster = struck("node stops", setting=replace(QUIET, spares=0, min_nodes=7, repair=5000))
    _, waited, smaller = cluster.attempts
    assert (waited.running, smaller.nodes, smaller.created) == (None, 7, waited.created + 5 + 120 + 2)
    done = cluster.steps(smaller).done
    spent = account(cluster)
    assert spent["fewer nodes"] == pytest.approx(done * 10 / 7)
    assert sum(spent.values()) == pytest.approx(1000)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_overcome_and_all_time_is_accounted_for(fault: str) -> None:
    cluster = struck(fault)
    assert cluster.faults == [fault]
    assert len(cluster.attempts) == 2
    assert cluster.attempts[1].loaded
    assert sum(account(cluster).values()) == pytest.approx(1000)


def test_the_control_loses_all_that_was_done_before_the_last_fault() -> None:
    setting = replace(QUIET, every_steps=0)
    cluster = struck("process killed", setting=setting, end=230 + 100)
    assert account(cluster)["useful"] == 100
    assert account(cluster)["steps redone"] == 200 - 20


def test_one_seed_always_tells_the_same_and_the_checkpoints_pay() -> None:
    setting = Setting(days=0.5, between_faults=3600)
    once, twice = measure(setting, 1), measure(setting, 1)
    assert once.lines() == twice.lines()
    assert once.goodput > 0.85 > 0.5 > measure(replace(setting, every_steps=0), 1).goodput
