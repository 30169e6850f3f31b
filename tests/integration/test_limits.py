"""Limits on a real API server: what is ended, what is removed, and that nothing of it comes back."""

from __future__ import annotations

from tests.integration.operators import FINE_TUNE_JOB, Namespace, OperatorProcess, play_all
from tunesmith.conditions import find


def test_a_deadline_ends_the_attempt_then_the_object_and_no_restart_revives_it(operator: OperatorProcess, space: Namespace) -> None:
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB | {"activeDeadlineSeconds": 3})
    (pod,) = space.wait_pods(tune, "Prepare")
    space.run_pod(pod)
    status = space.wait_condition("FineTuneJob", "tune", "Finished")
    told = find(status, "Stalled")
    assert told
    assert (told["status"], told["reason"]) == ("True", "DeadlineExceeded")
    assert [entry["reason"] for entry in status["attempts"]] == ["JobDeleted"]
    assert space.names("Job", "Pod") == set()
    operator.kill()
    operator.start()
    operator.wait_resyncs(2)
    assert space.status("FineTuneJob", "tune") == status
    assert space.names("Job", "Pod") == set()


def test_an_attempt_without_a_node_fails_in_time_with_the_schedulers_words(operator: OperatorProcess, space: Namespace) -> None:
    space.create("FineTuneJob", "tune", FINE_TUNE_JOB | {"pendingDeadlineSeconds": 3})
    told = find(space.wait_condition("FineTuneJob", "tune", "Finished"), "Stalled")
    assert told
    assert told["reason"] == "PendingDeadlineExceeded"
    assert "Prepare" in told["message"]
    assert "no nodes available" in told["message"]


def test_children_go_after_their_time_and_the_object_stays_as_it_was(operator: OperatorProcess, space: Namespace) -> None:
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB | {"ttlSecondsAfterFinished": 2})
    play_all(space, tune)
    status = space.wait_condition("FineTuneJob", "tune", "Succeeded")
    space.wait(lambda: not space.names("Job", "Pod", "ConfigMap"), "the children to be gone", lambda: sorted(space.names("Job", "Pod", "ConfigMap")))
    operator.kill()
    operator.start()
    operator.wait_resyncs(2)
    assert space.names("Job", "Pod", "ConfigMap") == set()
    assert space.status("FineTuneJob", "tune") == status


def test_a_limit_may_be_set_on_what_runs(operator: OperatorProcess, space: Namespace) -> None:
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    (pod,) = space.wait_pods(tune, "Prepare")
    space.run_pod(pod)
    space.patch("FineTuneJob", "tune", {"spec": {"activeDeadlineSeconds": 1}})
    told = find(space.wait_condition("FineTuneJob", "tune", "Finished"), "Stalled")
    assert told
    assert told["reason"] == "DeadlineExceeded"
