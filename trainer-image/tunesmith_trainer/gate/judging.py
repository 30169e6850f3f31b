"""The quality gate: judges measured figures against an EvalRun's criteria. Pure: no clock, no file, no network.

A criterion is judged by a one-sided bound, not by the figure: it has Passed where the bound lies within the limit, Failed where the
bound on the other side lies beyond it, and is Inconclusive in between. A comparison is paired: item by item, over the same items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from tunesmith_contract.evaluation import CONFIDENCE, OVERLAP, Criterion
from tunesmith_contract.results import Metric, Outcome, Verdict
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.gate.criterion import direction
from tunesmith_trainer.gate.statistics import Bounds, bootstrap, difference_of_shares, needed, share
from tunesmith_trainer.suites.items import Sample, written

BEYOND = 2.0
"""Of a metric without known ends an item that was not seen may be so many times as far from 0 as those that were."""


@dataclass(frozen=True)
class Measurement:
    """One figure of one model."""

    metric: Metric
    sample: Sample | None = None
    """Its items; None: it was measured without."""
    counted: bool = False
    """It is no estimate: it is judged as it is."""


Measurements = Mapping[str, Measurement]
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
    lower: str | None = None
    upper: str | None = None
    """Bounds of what the criterion limits: the value, the drop, the ratio."""
    samples: int | None = None
    needed: int | None = None
    """Inconclusive: about so many items would decide; None: no number would."""


def judge(criterion: Criterion, tested: Measurements, baselines: Mapping[str, Measurements]) -> Decision:
    """Judge one criterion. A metric that was not measured is Missing, a value that is not a finite number is Failed.

    Raises StageError(InvalidSettings) for a criterion against its metric's direction, and for figures that cannot be judged or
    compared: without items, of unlike items, over unlike tokens.
    """
    limit = limit_text(criterion)
    own = tested.get(criterion.metric)
    if own is None:
        if criterion.metric.endswith(f"/{OVERLAP}"):
            return Decision("Missing", limit, "what the tested model was trained on is not known: it comes from no FineTuneJob, or its data is gone")
        return Decision("Missing", limit, f"no suite measured {criterion.metric} on the tested model")
    other = None
    if criterion.baseline is not None:
        other = baselines.get(criterion.baseline, {}).get(criterion.metric)
        if other is None:
            return Decision("Missing", limit, f"no suite measured {criterion.metric} on {criterion.baseline}", own.metric)
    plain = Decision("Failed", limit, "", own.metric, other.metric if other else None)
    higher = _direction(criterion, own.metric)
    for name, measurement in (("tested model", own), (criterion.baseline, other)):
        if measurement is not None and not Decimal(measurement.metric.value).is_finite():
            return replace(plain, reason=f"the value of the {name} is {measurement.metric.value}, not a finite number")
    if other is not None and criterion.kind != "max_drop" and Decimal(other.metric.value) <= 0:
        return replace(plain, reason=f"the baseline's value is {short(other.metric.value)}: a ratio to it says nothing")
    if own.counted:
        held = Decimal(own.metric.value) <= Decimal(criterion.limit)
        return replace(plain, outcome="Passed" if held else "Failed", reason=f"{short(own.metric.value)} against at most {criterion.limit}")
    samples = paired(criterion, own, other)
    return decide(criterion, plain, bounds_of(criterion, samples, higher), len(samples[0].ids))


def _direction(criterion: Criterion, metric: Metric) -> bool:
    try:
        return direction(criterion, metric.higher_is_better)
    except ValueError as error:
        raise StageError("InvalidSettings", f"the gate: {error}") from None


def paired(criterion: Criterion, own: Measurement, other: Measurement | None) -> list[Sample]:
    """Return the items of both models; raises StageError where there are none, or they are not the same ones."""
    found = [(name, each) for name, each in (("tested", own), (criterion.baseline, other)) if each is not None]
    samples = []
    for name, each in found:
        if each.sample is None:
            message = f"the gate: {criterion.metric} of {name} is one figure over all items, none of which has a value of its own"
            raise StageError("InvalidSettings", f"{message}: it is reported, but cannot be judged. Judge another metric of its task")
        samples.append(each.sample)
    if len(samples) == 2:
        _require_same(criterion, samples[0], samples[1])
    return samples


def _require_same(criterion: Criterion, own: Sample, other: Sample) -> None:
    if own.figure.units != other.figure.units:
        message = f"the gate: {criterion.metric} of tested and {criterion.baseline} is over unlike tokens, for their tokenizers differ"
        raise StageError("InvalidSettings", f"{message}: compare {criterion.suite}/bits_per_byte instead")
    if own.ids != other.ids:
        unlike = len(set(own.ids) ^ set(other.ids))
        message = f"the gate: {criterion.metric} of tested is over {len(own.ids)} items, of {criterion.baseline} over {len(other.ids)}"
        cause = "their data changed between the two: evaluate again in a new EvalRun; or within maxLength their tokenizers take unlike rows"
        raise StageError("DigestMismatch", f"{message}, and {unlike} of these only one of them has ({cause}: judge it without a baseline)")


def bounds_of(criterion: Criterion, samples: Sequence[Sample], higher: bool) -> Bounds:
    """Return what the criterion limits with its bounds: the value, the change for the worse, or the ratio."""
    confidence = float(criterion.confidence or CONFIDENCE)
    own, other = samples[0], samples[1] if len(samples) > 1 else None
    if all(sample.is_binary for sample in samples):
        if other is None:
            return share(round(sum(own.column.tops)), len(own.ids), confidence)
        if criterion.kind == "max_drop":
            worse = [(base > value) if higher else (value > base) for value, base in zip(own.column.tops, other.column.tops, strict=True)]
            unlike = sum(value != base for value, base in zip(own.column.tops, other.column.tops, strict=True))
            return difference_of_shares(sum(worse), unlike - sum(worse), len(worse), confidence, float(criterion.limit))
    statistic, falls = _statistic(criterion, own, higher)
    bounds = bootstrap(own.column, other.column if other else None, ends_of(samples), statistic, confidence)
    return replace(bounds, estimate=-bounds.estimate, lower=-bounds.upper, upper=-bounds.lower) if falls else bounds


def _statistic(criterion: Criterion, own: Sample, higher: bool) -> tuple[Any, bool]:
    """Return the figure as a function of the ratios of sums that rises with the tested model's, and whether what is limited falls with it."""
    import numpy as np

    link = np.exp if own.figure.link == "Exp" else np.asarray
    if criterion.kind in ("min", "max"):
        return (lambda tested, _: link(tested)), False
    if criterion.kind == "max_drop":
        return (lambda tested, base: link(tested) - link(base)), higher
    if own.figure.link == "Exp":
        return (lambda tested, base: np.exp(tested - base)), False
    return (lambda tested, base: tested / base), False


def ends_of(samples: Sequence[Sample]) -> tuple[float, float]:
    """Return the least and the greatest that an item can have for each unit: as known, 0 and 1 of scores, else twice what was seen."""
    known = [sample.figure.ends for sample in samples]
    seen = [top / bottom for sample in samples for top, bottom in zip(sample.column.tops, sample.column.bottoms, strict=True) if bottom] or [0.0]
    low, high = min(seen), max(seen)
    if all(known):
        return min(low, *(ends[0] for ends in known if ends)), max(high, *(ends[1] for ends in known if ends))
    if 0 <= low and high <= 1:
        return 0.0, 1.0
    return min(0.0, BEYOND * low), max(0.0, BEYOND * high)


def decide(criterion: Criterion, plain: Decision, bounds: Bounds, items: int) -> Decision:
    """Return the decision that bounds over so many items allow."""
    limit, least = float(criterion.limit), criterion.min_samples or 0
    floor = criterion.kind in ("min", "min_ratio")
    inside = bounds.lower >= limit if floor else bounds.upper <= limit
    outside = bounds.upper < limit if floor else bounds.lower > limit
    told = replace(plain, lower=written(bounds.lower), upper=written(bounds.upper), samples=items)
    confidence = f"{float(criterion.confidence or CONFIDENCE) * 100:g} %"
    between = f"{_NOUNS[criterion.kind]} {short(written(bounds.estimate))}"
    if criterion.kind == "max_drop" and bounds.estimate < 0:
        between = f"better by {short(written(-bounds.estimate))}"
    if items < least:
        return replace(told, outcome="Inconclusive", needed=least, reason=f"{between}; {items} items, and minSamples asks for {least}")
    if inside or outside:
        side, bound = ("at least", told.lower) if floor == inside else ("at most", told.upper)
        reason = f"{between}, with {confidence} confidence {side} {short(str(bound))}"
        return replace(
            told, outcome="Passed" if inside else "Failed", reason=f"{reason}, against {'at least' if floor else 'at most'} {criterion.limit}"
        )
    more = needed(bounds, limit, items, float(criterion.confidence or CONFIDENCE))
    advice = f"about {more} would" if more else "and no number would: the figure is at the limit"
    reason = f"{between}, between {short(str(told.lower))} and {short(str(told.upper))} (each with {confidence} confidence)"
    return replace(told, outcome="Inconclusive", needed=more, reason=f"{reason}: {items} items do not decide, {advice}")


_NOUNS = {"min": "value", "max": "value", "max_drop": "worse by", "max_ratio": "ratio", "min_ratio": "ratio"}


def limit_text(criterion: Criterion) -> str:
    """Return the condition as a reader of the report sees it."""
    words = {
        "min": f"≥ {criterion.min}",
        "max": f"≤ {criterion.max}",
        "max_drop": f"worse than {criterion.baseline} by ≤ {criterion.max_drop}",
        "max_ratio": f"≤ {criterion.max_ratio} times {criterion.baseline}",
        "min_ratio": f"≥ {criterion.min_ratio} times {criterion.baseline}",
    }
    return words[criterion.kind]


def verdict(decisions: Sequence[Decision]) -> Verdict:
    """Return Passed when every criterion passed, Failed when one failed or is missing, NoCriteria where nothing was asked."""
    outcomes = {decision.outcome for decision in decisions}
    if not outcomes:
        return "NoCriteria"
    if outcomes & {"Failed", "Missing"}:
        return "Failed"
    return "Inconclusive" if "Inconclusive" in outcomes else "Passed"


def short(value: Decimal | str) -> str:
    """Return `value` with six significant digits, trailing zeros dropped: results have to fit into a termination message."""
    number = Decimal(value)
    if not number.is_finite():
        return str(number)
    text = f"{number:.6g}"
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text.lower() else text
