"""Outcomes are counted once, when they become known."""

from __future__ import annotations

from typing import Any

from prometheus_client import REGISTRY

from tunesmith.metrics import count_outcomes
from tunesmith.values import Key

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
