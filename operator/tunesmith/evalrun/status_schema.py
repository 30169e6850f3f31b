"""What the status of an EvalRun may hold."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tunesmith.api.status import (
    MAX_RESULTS,
    MAX_STAGES,
    BigCount,
    Count,
    Location,
    Number,
    PinnedModel,
    Time,
    Word,
)
from tunesmith.stages.schema import JobStatus, Resolved
from tunesmith_contract.base import Block
from tunesmith_contract.results import Outcome, Verdict


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
    outcome: Outcome = Field(description="Inconclusive: so few items do not decide. Missing: the metric was not measured, which fails the gate.")
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


class LineageStage(Block):
    """When a stage of the FineTuneJob ran."""

    name: Word = Field(description="The stage.")
    start_time: Time | None = Field(None, description="When it began.")
    completion_time: Time | None = Field(None, description="When it ended.")


class Lineage(Block):
    """Where the model under test comes from."""

    run_uri: Location = Field(description="Folder of the FineTuneJob's run.")
    stages: Annotated[list[LineageStage], Field(max_length=MAX_STAGES)] = Field(description="Its stages.")


class EvalRunResolved(Resolved):
    """Fixed before the first evaluation."""

    output_uri: Location | None = Field(None, description="`output.uri`, or the FineTuneJob's.")
    baselines: Annotated[list[PinnedModel], Field(max_length=8)] | None = Field(None, description="The models compared with.")
    lineage: Lineage | None = Field(None, description="The FineTuneJob's run, for the report.")


class EvalRunStatus(JobStatus):
    """What was measured and judged."""

    resolved: EvalRunResolved | None = Field(None, description="What the names in the spec turned out to mean.")
    evaluated: PinnedModel | None = Field(None, description="The model under test, pinned: the verdict is about this digest.")
    verdict: Verdict | None = Field(
        None, description="Passed: every criterion of the gate did. Inconclusive: none failed, and not all could be decided. NoCriteria: no gate."
    )
    gate: Annotated[list[GateOutcome], Field(max_length=16)] | None = Field(None, description="Outcome of each criterion, in the spec's order.")
    results: Annotated[list[MetricResult], Field(max_length=MAX_RESULTS)] | None = Field(
        None, description="The gate's metrics first; all are at resultsURI."
    )
    overlap: Annotated[list[Overlap], Field(max_length=16)] | None = Field(None, description="Of each suite; absent: no training data is known.")
    results_uri: Location | None = Field(None, description="All results (JSON).")
    report_uri: Location | None = Field(None, description="The report (HTML).")
