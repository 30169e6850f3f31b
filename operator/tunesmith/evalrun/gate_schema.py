"""What the status of an EvalRun may hold of its gate and its figures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.api.blocks import Block
from tunesmith.api.status import BigCount, Count, Number, Word

Verdict = Literal["Passed", "Failed", "Inconclusive", "NoCriteria"]


class GateOutcome(Block):
    """One criterion of `spec.gate` and what came of it."""

    metric: Annotated[str, Field(max_length=256)] = Field(description="As in the spec.")
    baseline: Word | None = Field(None, description="As in the spec.")
    min: Number | None = Field(None, description="As in the spec.")
    max: Number | None = Field(None, description="As in the spec.")
    max_drop: Number | None = Field(None, description="As in the spec.")
    max_ratio: Number | None = Field(None, description="As in the spec.")
    min_ratio: Number | None = Field(None, description="As in the spec.")
    higher_is_better: bool | None = Field(None, description="As in the spec.")
    min_samples: Count | None = Field(None, description="As in the spec.")
    confidence: Number | None = Field(None, description="As in the spec.")
    outcome: Literal["Passed", "Failed", "Inconclusive", "Missing"] = Field(
        description="Inconclusive: so few items do not decide. Missing: the metric was not measured, which fails the gate."
    )
    value: Number | None = Field(None, description="Of the model under test.")
    stderr: Number | None = Field(None, description="Standard error of the value.")
    baseline_value: Number | None = Field(None, description="Of the baseline.")
    lower: Number | None = Field(None, description="Lower bound of what is limited: the value, the change for the worse, or the ratio.")
    upper: Number | None = Field(None, description="Upper bound of it; each bound is one-sided, at `confidence`.")
    samples: BigCount | None = Field(None, description="Items that it was judged by.")
    needed: BigCount | None = Field(
        None, description="Inconclusive: about so many items would decide, were the figures as measured; absent: none would."
    )


class MetricResult(Block):
    """One metric of all models."""

    metric: Annotated[str, Field(max_length=256)] = Field(description="suite/task/metric[,filter].")
    tested: Number | None = Field(None, description="Of the model under test.")
    stderr: Number | None = Field(None, description="Standard error of `tested`.")
    samples: BigCount | None = Field(None, description="Items that it was made of; absent: they are not kept, and a gate cannot judge it.")
    baselines: Annotated[dict[Word, Number], Field(max_length=8)] | None = Field(None, description="Of each baseline, by name.")


class Overlap(Block):
    """How many of a suite's items are in the data that the model under test was trained on."""

    suite: Word = Field(description="The suite.")
    items: BigCount = Field(description="Its items.")
    equal: BigCount = Field(description="Found whole.")
    similar: BigCount = Field(description="Found in part: a stretch of thirteen words.")
