"""Outcomes are counted once, when they become known."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import REGISTRY

from tunesmith import metrics
from tunesmith.core.objects import Key
from tunesmith.metrics import count_outcomes, forget

KEY = Key("FineTuneJob", "metrics", "tune")
RUNNING: dict[str, Any] = {"stages": [{"name": "Prepare", "state": "Running", "startTime": "2026-01-01T00:00:00Z"}]}
ENDED: dict[str, Any] = {
    "stages": [{**RUNNING["stages"][0], "state": "Succeeded", "completionTime": "2026-01-01T00:01:40Z"}],
    "attempts": [{"stage": "Prepare", "attempt": 1, "outcome": "Succeeded", "reason": "Succeeded"}],
    "verdict": "Passed",
    "conditions": [{"type": "GatePassed", "status": "True", "reason": "Passed"}],
}


def values() -> list[float | None]:
    labels = {"controller": "FineTuneJob", "stage": "Prepare"}
    return [
        REGISTRY.get_sample_value("tunesmith_stage_seconds_sum", labels | {"state": "Succeeded"}),
        REGISTRY.get_sample_value("tunesmith_attempts_total", labels | {"outcome": "Succeeded", "reason": "Succeeded"}),
        REGISTRY.get_sample_value("tunesmith_verdicts_total", {"namespace": "metrics", "verdict": "Passed"}),
        REGISTRY.get_sample_value("tunesmith_gate_decisions_total", {"namespace": "metrics", "status": "True", "reason": "Passed"}),
    ]


def test_a_revision_is_counted_when_it_is_made_with_what_the_gate_said() -> None:
    def unjudged() -> float:
        return REGISTRY.get_sample_value("tunesmith_revisions_total", {"namespace": "metrics", "verdict": "NoGate"}) or 0.0

    first = {"name": "aaaa", "state": "Candidate", "verdict": "NoGate"}
    key, before = Key("ModelDeployment", "metrics", "serve"), unjudged()
    count_outcomes(key, {}, {"revisions": [first]})
    count_outcomes(key, {"revisions": [first]}, {"revisions": [{**first, "state": "Active"}]})
    assert unjudged() - before == 1
    count_outcomes(key, {"revisions": [first]}, {"revisions": [{**first, "name": "bbbb"}, first]})
    assert unjudged() - before == 2


def test_what_ended_is_counted_once() -> None:
    before = [value or 0.0 for value in values()]
    count_outcomes(KEY, {}, RUNNING)
    count_outcomes(KEY, RUNNING, ENDED)
    count_outcomes(KEY, ENDED, {**ENDED, "stage": "Train"})
    assert [(value or 0.0) - start for value, start in zip(values(), before, strict=True)] == [100.0, 1.0, 1.0, 1.0]


def series(name: str, key: Key = KEY) -> float | None:
    return REGISTRY.get_sample_value(name, {"namespace": key.namespace, "name": key.name})


def reported(step: int, loss: str, second: int) -> dict[str, Any]:
    metrics = [{"name": "loss", "value": loss}, {"name": "current_step", "value": str(step)}, {"name": "grad_norm", "value": "no number"}]
    return {"progress": {"metrics": metrics, "lastUpdatedTime": f"2026-01-01T00:00:{second:02}Z"}}


def test_loss_and_speed_are_shown_while_a_training_goes_on_and_no_longer() -> None:
    first, second = reported(10, "2.5", 0), reported(40, "1.5", 30)
    count_outcomes(KEY, {}, first)
    assert (series("tunesmith_training_loss"), series("tunesmith_training_steps_per_second")) == (2.5, None)
    count_outcomes(KEY, first, second)
    assert (series("tunesmith_training_loss"), series("tunesmith_training_steps_per_second")) == (1.5, 1.0)
    count_outcomes(KEY, second, second | {"conditions": [{"type": "Finished", "status": "True", "reason": "Succeeded"}]})
    assert (series("tunesmith_training_loss"), series("tunesmith_training_steps_per_second")) == (None, None)


def test_a_training_that_goes_on_from_an_earlier_step_has_no_negative_speed() -> None:
    first, second, third = reported(10, "2", 0), reported(40, "1", 30), reported(20, "1", 50)
    count_outcomes(KEY, first, second)
    count_outcomes(KEY, second, third)
    assert series("tunesmith_training_steps_per_second") == 1.0
    forget(KEY)


def test_the_series_of_a_deleted_training_go_and_no_namesakes() -> None:
    count_outcomes(KEY, {}, reported(10, "2.5", 0))
    forget(Key("EvalRun", KEY.namespace, KEY.name))
    assert series("tunesmith_training_loss") == 2.5
    forget(KEY)
    assert series("tunesmith_training_loss") is None


def test_the_wait_for_a_queue_and_gpu_seconds_are_counted_once() -> None:
    def counted() -> list[float]:
        wait = REGISTRY.get_sample_value("tunesmith_queue_seconds_sum", {"controller": "FineTuneJob", "stage": "Train"})
        uses = (
            REGISTRY.get_sample_value("tunesmith_gpu_seconds_total", {"namespace": "metrics", "use": use}) for use in ("useful", "queued", "lost")
        )
        return [value or 0.0 for value in (wait, *uses)]

    def status(state: str, useful: int = 0, **entry: str) -> dict[str, Any]:
        train = {"name": "Train", "state": state, "attempt": 1, "attemptStartTime": "2026-01-01T00:00:00Z", **entry}
        return {"stages": [train], "gpuSeconds": {"useful": useful, "queued": 2 * useful, "lost": 1}}

    before = counted()
    waits, runs = status("Pending"), status("Running", stateTime="2026-01-01T00:05:00Z")
    evicted, again = status("Pending", stateTime="2026-01-01T01:00:00Z"), status("Running", 10, stateTime="2026-01-01T01:01:00Z")
    for old, new in ((waits, runs), (runs, runs), (runs, evicted), (evicted, again), (again, again)):
        count_outcomes(KEY, old, new)
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [360.0, 10.0, 20.0, 0.0]


def faulty(*nodes: str, reason: str = "DeviceFailed") -> dict[str, Any]:
    attempt = {"stage": "Train", "attempt": 1, "outcome": "Failed", "reason": reason, "failedOn": list(nodes)}
    return {"attempts": [attempt]}


def test_faults_are_counted_by_the_node_that_had_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(node: str, reason: str = "DeviceFailed") -> float:
        return REGISTRY.get_sample_value("tunesmith_node_faults_total", {"node": node, "reason": reason}) or 0.0

    count_outcomes(KEY, {}, faulty("gpu-1", "gpu-2"))
    count_outcomes(KEY, {}, faulty("gpu-1"))
    count_outcomes(KEY, {}, faulty("gpu-1", reason="InternalError"))
    assert [counted("gpu-1"), counted("gpu-2"), counted("gpu-1", "InternalError")] == [2.0, 1.0, 0.0]
    monkeypatch.setattr(metrics, "NODES_SHOWN", 2)
    count_outcomes(KEY, {}, faulty("gpu-2", "gpu-3"))
    assert [counted("gpu-2"), counted("gpu-3"), counted("other")] == [2.0, 0.0, 1.0]
