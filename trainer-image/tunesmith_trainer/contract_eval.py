"""What Quantize, Evaluate and Compare are given and what they answer, as in docs/contract.md (version 2; version 1 is read too)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tunesmith_trainer.contract import Answer, Artifact, Digest, Fidelity, ModelReference, Result, StageInput
from tunesmith_trainer.gate.criterion import Criterion
from tunesmith_trainer.spec import Contract, DataSource, Natural, Positive, Variant

Precision = Literal["BF16", "FP32"]
Outcome = Literal["Passed", "Failed", "Inconclusive", "Missing"]
Verdict = Literal["Passed", "Failed", "Inconclusive", "NoCriteria"]
Measured = Annotated[str, Field(pattern=r"^(-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?|NaN|-?Infinity)$")]
"""A measured figure. Unlike a limit in a spec it may be negative, and it may have gone wrong."""
TaskName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]


# Quantize.


class Calibration(Contract):
    """The training setting that calibration shares: rows are cut at the length that training cut them at."""

    max_length: Positive


class QuantizeInput(StageInput):
    """Quantize's input: the merged model and one variant of it."""

    run_uri: str
    model: ModelReference
    variant: Variant
    training: Calibration

    @property
    def result_name(self) -> str:
        """Each variant has a result file of its own."""
        return f"quantize-{self.variant.name}"


class Effect(Contract):
    """What quantization did, read back from the files on disk."""

    quantized_modules: Natural
    bits_per_weight: float
    """Over the weights of the quantized modules, scales and zero points included."""


class QuantizeAnswer(Answer):
    """What Quantize adds to its result."""

    artifacts: list[Artifact]
    effect: Effect
    fidelity: Fidelity | None = None


# Evaluate.


class Harness(Contract):
    """Tasks of lm-evaluation-harness: its own, or those in a folder."""

    tasks: list[TaskName] = Field(min_length=1)
    num_fewshot: Natural | None = None
    limit: Positive | None = None
    sample_seed: Natural | None = None
    """Absent: the first `limit` documents; else that many drawn with this seed."""
    include_path: str | None = None
    apply_chat_template: bool | None = None


class Perplexity(Contract):
    """Token-level perplexity over the tokens that a training loss would be taken on."""

    dataset: DataSource
    max_length: Positive


class Suite(Contract):
    """One set of measurements: exactly one kind, and the name that its metrics' paths begin with."""

    name: str
    harness: Harness | None = None
    perplexity: Perplexity | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Suite:
        if (self.harness is None) == (self.perplexity is None):
            raise ValueError("exactly one of harness, perplexity must be given")
        return self


class NamedModel(ModelReference):
    """A model and what it is called in this EvalRun: `tested`, or a baseline's name."""

    name: str


class EvaluateInput(StageInput):
    """Evaluate's input: one model and all suites."""

    run_uri: str
    output_uri: str
    model: NamedModel
    suites: list[Suite] = Field(min_length=1)
    precision: Precision
    gate: list[Criterion] | None = None
    """What Compare will judge: names and directions are checked before anything is measured."""

    @property
    def needs_bf16(self) -> bool:
        """By the spec's precision."""
        return self.precision == "BF16"

    @property
    def result_name(self) -> str:
        """Each model has a result file of its own."""
        return f"evaluate-{self.model.name}"

    @property
    def reuses_result(self) -> bool:
        """Evaluate goes through its cache instead, which knows what changes a figure."""
        return False


class Metric(Contract):
    """One figure of one model."""

    metric: str
    value: Measured
    stderr: Measured | None = None
    higher_is_better: bool | None = None
    samples: Positive | None = None
    """Items that it was made of; absent: they are not kept, and a gate cannot judge it."""


class ItemsFile(Contract):
    """Where the items of a suite's figures lie."""

    suite: str
    uri: str
    digest: Digest


class EvaluatedModel(Contract):
    """The model that was measured, with the digest that was verified."""

    name: str
    uri: str
    digest: Digest


class EvaluateAnswer(Answer):
    """What Evaluate adds to its result."""

    model: EvaluatedModel
    result_uri: str
    versions: dict[str, str]
    metrics: list[Metric]
    items: list[ItemsFile] | None = None
    environment: dict[str, str] | None = None
    """What the figures were computed on."""
    tokenizer: Digest | None = None
    """Of the model's vocabulary."""
    warnings: list[str] | None = None
    """What is wrong with the model's folder beside its figures."""


# Compare.


class StageTime(Contract):
    """When one stage of the FineTuneJob ran."""

    name: str
    start_time: str
    completion_time: str


class Lineage(Contract):
    """The FineTuneJob that the tested model comes from."""

    run_uri: str
    stages: list[StageTime]


class CompareInput(StageInput):
    """Compare's input: where each model's figures lie, and the gate."""

    run_uri: str
    tested: EvaluatedModel
    baselines: list[EvaluatedModel]
    evaluations: dict[str, str]
    suites: list[Suite]
    gate: list[Criterion]
    lineage: Lineage | None = None

    @property
    def reuses_result(self) -> bool:
        """Comparing is cheap, and a baseline may have been measured anew."""
        return False


class GateOutcome(Contract):
    """How one criterion came out; figures have six significant digits."""

    outcome: Outcome
    value: Measured | None = None
    stderr: Measured | None = None
    baseline_value: Measured | None = None
    lower: Measured | None = None
    upper: Measured | None = None
    """One-sided bounds of what the criterion limits: the value, the drop or the ratio."""
    samples: Positive | None = None
    needed: Positive | None = None
    """Inconclusive: about so many items would decide, were the figures as measured."""


class Comparison(Contract):
    """One metric over all models; figures have six significant digits."""

    metric: str
    tested: Measured
    stderr: Measured | None = None
    samples: Positive | None = None
    baselines: dict[str, Measured] = Field(default_factory=dict)


class Overlap(Contract):
    """How many items of a suite are in the data that the tested model was trained on."""

    suite: str
    items: Natural
    equal: Natural
    """Found whole."""
    similar: Natural
    """Found in part: a stretch of thirteen words."""


class CompareAnswer(Answer):
    """What Compare adds to its result."""

    verdict: Verdict
    gate: list[GateOutcome]
    results: list[Comparison]
    overlap: list[Overlap] | None = None
    """Absent: no training data is known."""
    results_uri: str
    report_uri: str


class QuantizeResult(Result, QuantizeAnswer):
    """Quantize's whole result when it succeeded."""


class EvaluateResult(Result, EvaluateAnswer):
    """Evaluate's whole result when it succeeded."""


class CompareResult(Result, CompareAnswer):
    """Compare's whole result when it succeeded."""
