"""What is measured of a model, and the conditions that a gate puts on it."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import ConfigDict, Field, model_validator

from tunesmith_contract.base import URI, Block, Decimal, Name, OneOf, json_name, rule, rules
from tunesmith_contract.data import DataSource

SuiteName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9-]*$", min_length=1, max_length=40)]
TaskName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.-]+$")]
Limit = Literal["min", "max", "max_drop", "max_ratio", "min_ratio"]
LIMITS: tuple[Limit, ...] = get_args(Limit)
COMPARING: tuple[Limit, ...] = ("max_drop", "max_ratio", "min_ratio")
"""Limits on a comparison with a baseline."""
CONFIDENCE = "0.95"
OVERLAP = "overlap"
"""Metric of every suite: the share of its items that the tested model was trained on. Counted, not estimated."""
LIKELIHOOD_METRICS = {"perplexity": False, "bits_per_byte": False}
"""What a perplexity suite measures of any rows, and whether more of it is better."""
PERPLEXITY_METRICS = LIKELIHOOD_METRICS | {"stopped": True}
"""The same of conversations."""


class Harness(Block):
    """EleutherAI lm-evaluation-harness."""

    tasks: Annotated[list[TaskName], Field(min_length=1, max_length=32)] = Field(
        description="Task names, from includePath or lm-eval's own. No stage reaches a hub: data that a task needs must be on a volume."
    )
    num_fewshot: int | None = Field(None, ge=0, le=64, description="Default: the task's own.")
    limit: int | None = Field(
        None, ge=1, le=1_000_000, description="Documents of each task: the first ones, or with `sampleSeed` some of all. Default: all."
    )
    sample_seed: int | None = Field(None, ge=0, le=2147483647, description="Draws the `limit` documents from all of the task's.")
    apply_chat_template: bool | None = Field(
        None, description="True: prompts are conversations in the model's chat template, few-shot examples turns of theirs. Default: false."
    )
    include_path: URI | None = Field(None, description="`pvc://<claim>/<path>`: a folder with further task definitions (YAML).")


class Perplexity(Block):
    """Token-level perplexity over the tokens a training loss would be taken on."""

    dataset: DataSource = Field(description="Held-out rows.")
    max_length: int = Field(1024, ge=8, le=1048576, description="Longer rows are cut.")


class Suite(OneOf):
    """One set of measurements: exactly one member beside the name."""

    beside = ("name",)

    name: SuiteName = Field(description="First part of its metrics' paths.")
    harness: Harness | None = Field(None, description="lm-evaluation-harness tasks.")
    perplexity: Perplexity | None = Field(
        None, description="Perplexity on a dataset; over Messages also stopped, the share of a few answers that end by themselves."
    )


class Criterion(OneOf):
    """One condition of the gate: exactly one of min, max, maxDrop, maxRatio, minRatio.

    It has Passed where a one-sided confidence bound of what it limits lies within the limit, Failed where the bound on the other side
    lies beyond it, and is Inconclusive in between. docs/gate.md says how many items it takes.
    """

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.baseline) == (has(self.maxDrop) || has(self.maxRatio) || has(self.minRatio))",
                "maxDrop, maxRatio and minRatio need `baseline`; min and max must not have it",
            )
        )
    )
    beside = ("metric", "baseline", "higher_is_better", "min_samples", "confidence")

    metric: str = Field(
        min_length=1,
        max_length=256,
        pattern=r"^[A-Za-z0-9_.,/-]+$",
        description="suite/task/metric[,filter], suite/perplexity, suite/bits_per_byte, suite/stopped, "
        "or suite/overlap: the share of its items trained on.",
    )
    baseline: Name | None = Field(None, description="The baseline that maxDrop, maxRatio and minRatio compare with, item by item.")
    min: Decimal | None = Field(None, description="value >= min, for metrics of which more is better.")
    max: Decimal | None = Field(None, description="value <= max, for metrics of which less is better.")
    max_drop: Decimal | None = Field(None, description="Worse than the baseline by at most this much (lower for scores, higher for perplexity).")
    max_ratio: Decimal | None = Field(None, description="value / baseline <= maxRatio, for metrics of which less is better.")
    min_ratio: Decimal | None = Field(None, description="value / baseline >= minRatio, for metrics of which more is better.")
    higher_is_better: bool | None = Field(None, description="Needed where the metric does not say so itself; must not contradict it.")
    min_samples: int | None = Field(None, ge=1, le=100_000_000, description="With fewer items it is Inconclusive.")
    confidence: Annotated[str, Field(pattern=r"^0\.[0-9]{1,6}$", min_length=3, max_length=8)] | None = Field(
        None,
        description=f"Of each bound: a figure that is at its limit passes at a rate of at most 1 - confidence. Default: {CONFIDENCE}.",
        json_schema_extra=rules(rule("double(self) >= 0.5", "must be at least 0.5")),
    )

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if (self.baseline is not None) != (self.kind in COMPARING):
            raise ValueError(f"{json_name(self.kind)} {'must not' if self.baseline else 'must'} have a baseline")
        if float(self.confidence or CONFIDENCE) < 0.5:
            raise ValueError("confidence must be at least 0.5 and below 1")
        return self

    @property
    def kind(self) -> Limit:
        """Which limit it sets."""
        return next(name for name in LIMITS if getattr(self, name) is not None)

    @property
    def limit(self) -> str:
        """The limit's figure, as the user wrote it."""
        return str(getattr(self, self.kind))

    @property
    def suite(self) -> str:
        """The suite that its metric is of."""
        return self.metric.partition("/")[0]
