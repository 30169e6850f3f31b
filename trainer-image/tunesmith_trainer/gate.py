"""The quality gate: judges measured values against an EvalRun's criteria. Pure: no clock, no file, no network.

All arithmetic is decimal, on the strings as they were measured and as the user wrote them, so that `min: "0.45"` passes a
measured 0.45 on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from tunesmith_trainer.contract_eval import Criterion, Metric

Outcome = Literal["Passed", "Failed", "Missing"]
Verdict = Literal["Passed", "Failed"]
Measurements = Mapping[str, Metric]
"""What was measured on one model, by metric path."""


@dataclass(frozen=True)
class Decision:
    """How one criterion came out."""

    outcome: Outcome
    limit: str
    """The condition in words of figures, such as `≥ 0.45` or `≤ 1.02 times unquantized`."""
    reason: str
    """Why, in one sentence."""
    tested: Metric | None = None
    baseline: Metric | None = None


def judge(criterion: Criterion, tested: Measurements, baselines: Mapping[str, Measurements]) -> Decision:
    """Judge one criterion. A metric that nobody measured is Missing, a value that is not a finite number is Failed."""
    limit = limit_text(criterion)
    value = tested.get(criterion.metric)
    if value is None:
        return Decision("Missing", limit, f"no suite measured {criterion.metric} on the tested model")
    reference = None
    if criterion.baseline is not None:
        reference = baselines.get(criterion.baseline, {}).get(criterion.metric)
        if reference is None:
            return Decision("Missing", limit, f"no suite measured {criterion.metric} on {criterion.baseline}", value)
    for name, metric in (("tested model", value), (criterion.baseline, reference)):
        if metric is not None and not Decimal(metric.value).is_finite():
            return Decision("Failed", limit, f"the value of the {name} is {metric.value}, not a finite number", value, reference)
    passed, reason = _holds(criterion, value, reference)
    return Decision("Passed" if passed else "Failed", limit, reason, value, reference)


def _holds(criterion: Criterion, value: Metric, reference: Metric | None) -> tuple[bool, str]:
    tested = Decimal(value.value)
    if criterion.min is not None:
        return tested >= Decimal(criterion.min), f"{short(tested)} against at least {criterion.min}"
    if criterion.max is not None:
        return tested <= Decimal(criterion.max), f"{short(tested)} against at most {criterion.max}"
    assert reference is not None  # the contract's model demands a baseline with maxDrop and maxRatio
    base = Decimal(reference.value)
    if criterion.max_drop is not None:
        # A drop is a change for the worse: downwards for scores (the default), upwards where lower is better.
        drop = tested - base if value.higher_is_better is False else base - tested
        change = f"worse by {short(drop)}" if drop > 0 else f"better by {short(-drop)}" if drop < 0 else "unchanged"
        return drop <= Decimal(criterion.max_drop), f"{change}, {criterion.max_drop} is allowed"
    assert criterion.max_ratio is not None
    if base <= 0:
        return False, f"the baseline's value is {short(base)}: a ratio to it says nothing"
    # Multiplied, not divided: a product of the written figures is exact, a quotient is rounded.
    return tested <= Decimal(criterion.max_ratio) * base, f"ratio {short(tested / base)} against at most {criterion.max_ratio}"


def limit_text(criterion: Criterion) -> str:
    """Return the condition as a reader of the report sees it."""
    if criterion.min is not None:
        return f"≥ {criterion.min}"
    if criterion.max is not None:
        return f"≤ {criterion.max}"
    if criterion.max_drop is not None:
        return f"worse than {criterion.baseline} by ≤ {criterion.max_drop}"
    return f"≤ {criterion.max_ratio} times {criterion.baseline}"


def verdict(decisions: Sequence[Decision]) -> Verdict:
    """Return Passed when every criterion passed; Missing counts as failed.

    An EvalRun without a gate asks for nothing, so its verdict is Passed; the report says that nothing was asked.
    """
    return "Passed" if all(decision.outcome == "Passed" for decision in decisions) else "Failed"


def short(value: Decimal | str) -> str:
    """Return `value` with six significant digits, trailing zeros dropped: results have to fit into 2 KiB."""
    number = Decimal(value)
    if not number.is_finite():
        return str(number)
    text = f"{number:.6g}"
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text.lower() else text
