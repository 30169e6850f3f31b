"""What each stage answers (docs/contract.md): an answer when it succeeded, a failure otherwise, each beside the common fields.

Required is that without which a success cannot be believed. Other fields are optional, since images of other versions write results too.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from tunesmith_contract.base import Block, Digest, Natural, Positive, in_file, mark, written
from tunesmith_contract.reasons import BAD_DATA, BAD_SETTINGS, INTERRUPTED
from tunesmith_contract.stages import CONTRACT_VERSION, Checkpoint, EvaluatedModel, Model

Figure = Annotated[float, Field(allow_inf_nan=False)]
"""What is no number in JSON the API server takes in no status."""
Measured = Annotated[str, Field(pattern=r"^(-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?|NaN|-?Infinity)$", max_length=64)]
"""A measured figure. Unlike a limit in a spec it may be negative, and it may have gone wrong."""
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]


class Result(Block):
    """The common fields of every result."""

    schema_version: Positive = CONTRACT_VERSION
    stage: str
    attempt: Natural | None = None
    """Serve has none."""
    outcome: Literal["Succeeded", "Failed", "Interrupted"]
    start_time: str
    completion_time: str

    @property
    def final(self) -> bool:
        """Whether it failed in a way that another attempt cannot mend."""
        return False

    @property
    def interrupted(self) -> bool:
        """Whether it was ended from outside after saving its work."""
        return False

    def facts(self) -> dict[str, Any]:
        """What a status records of it: the fields beside the common ones, as JSON."""
        content: dict[str, Any] = written(self, lambda field: not mark(field, "inFile"))
        return {name: value for name, value in content.items() if name not in COMMON}


COMMON = frozenset(field.alias or name for name, field in Result.model_fields.items())


class Failure(Result):
    """The result of a stage that did not succeed."""

    exit_code: int | None = None
    reason: str | None = None
    message: str | None = None
    fingerprint: Fingerprint | None = None
    """Shared by failures of one exception type, raised along one path of the code, and by crashes of one signal."""
    memory: str | None = None
    """Of `OutOfMemory`: `Host` or `Device`; a later image may know another."""
    step: Natural | None = None
    """The last optimizer step that was completed before a failure in training."""

    @property
    def final(self) -> bool:
        """By its exit code."""
        return self.outcome == "Failed" and self.exit_code in (BAD_SETTINGS, BAD_DATA)

    @property
    def interrupted(self) -> bool:
        """By its outcome or its exit code."""
        return self.outcome == "Interrupted" or self.exit_code == INTERRUPTED


class Answer(Block):
    """What a stage that succeeded adds to the common fields; each stage has its own."""


class Trained(Block):
    """How far a training came, also of an attempt that saved and was interrupted."""

    global_step: Natural | None = None
    resumed_from_step: Natural | None = None
    checkpoint: Checkpoint | None = None
    train_runtime_seconds: Figure | None = None


class TrainFailure(Failure, Trained):
    """The result of a training that did not succeed; one that was interrupted names what it saved."""


class ResolvedModel(Model):
    """The base model as Prepare found it."""

    parameters: Natural
    context_length: Natural | None = None
    architecture: str


class DataFile(Block):
    """A file that was read, by its path in the dataset."""

    name: str
    rows: Natural


class ResolvedDataset(Block):
    """A dataset as Prepare found it: its digest, the rows kept and the rows dropped, and what became of those kept.

    `sequences` are what they are trained as, on their answers or on all their tokens. Of the counts, `cut_rows` are longer
    than maxLength, `cut_tokens` of their trained tokens are lost by it, and `endless_rows` lose an answer's end;
    `stripped_rows` have a text that the chat template leaves out; `template_setting_rows` are rendered under another
    setting of the template than its default (`enable_thinking=false`). Images of version 1 have the first four fields alone.
    """

    name: str
    digest: Digest
    rows: Natural
    dropped: Natural
    sequences: Natural | None = None
    loss: Literal["Answers", "AllTokens"] | None = None
    cut_rows: Natural | None = None
    cut_tokens: Natural | None = None
    endless_rows: Natural | None = None
    stripped_rows: Natural | None = None
    template_setting: str | None = None
    template_setting_rows: Natural | None = None
    file_count: Natural | None = None
    files: list[DataFile] | None = None
    """The first of them."""
    ignored_columns: list[str] | None = None
    """Names of what rows have and is not used; the first of them."""


class HostMemory(Block):
    """About how many bytes a pod of each stage needs of its host."""

    train: Natural
    finalize: Natural
    quantize: Natural | None = None


class PrepareAnswer(Answer):
    """What Prepare adds to its result."""

    run_digest: Digest
    run_uri: str
    model: ResolvedModel
    datasets: list[ResolvedDataset] | None = None
    validation_dataset: ResolvedDataset | None = None
    warnings: list[str] | None = None
    """What a user should know of the data, in words."""
    train_rows: Natural | None = None
    validation_rows: Natural | None = None
    memory_estimate_bytes: Natural | None = None
    """Of the tensors of one training process on its device; absent: it cannot be measured, and `memory_need` says why."""
    memory_need: str | None = None
    """The same in words, with its parts."""
    host_memory_bytes: HostMemory | None = None


class Sharding(Block):
    """What one process held at the end of its first step, measured on its tensors; the greatest of all processes."""

    parameter_bytes_per_rank: Natural
    optimizer_bytes_per_rank: Natural
    total_parameter_bytes: Natural
    trainable_parameters: Natural


class TrainAnswer(Answer, Trained):
    """What Train adds to its result, from node rank 0."""

    epoch: Figure | None = None
    train_loss: Figure | None = None
    """Absent where the run was begun by an image that did not record the sums."""
    eval_loss: Figure | None = None
    tokens_per_second: Figure | None = None
    world_size: Positive | None = None
    devices: dict[str, Positive] | None = None
    """GPUs' names and how many of all processes computed on each kind; absent on CPU."""
    sharding: Sharding | None = None
    checkpoint: Checkpoint


class Artifact(Block):
    """A finished artefact: where it lies, what it is, and the digest of the model it was made from."""

    name: str
    uri: str
    digest: Digest
    size_bytes: Natural
    format: Literal["PEFT", "Safetensors", "CompressedTensors"]
    base_digest: Digest


class Fidelity(Block):
    """How far an artefact, read again from its files, is from what it was made from, over some tokens of the run's rows."""

    logits_error: Figure
    """Root mean square of the differences of logits in parts of the logits themselves, each token's mean taken off."""
    same_token: Figure
    """Share of tokens after which the likeliest token is the same."""
    tokens: Natural
    layer_error: Figure | None = None
    """Of a variant: of its worst decoder layer, whose outputs are off by so much of what it adds to its input."""
    smoothing_error: Figure | None = None
    """As logits_error, of the model that was smoothed and not yet quantized."""
    effect_share: Figure | None = None
    """How much of what training changed in the logits the merged model has: about 1."""


class FinalizeAnswer(Answer):
    """What Finalize adds to its result."""

    artifacts: list[Artifact]
    fidelity: Fidelity | None = None
    """Of Merged."""


class Effect(Block):
    """What quantization did, read back from the files on disk."""

    quantized_modules: Natural
    bits_per_weight: Figure
    """Over the weights of the quantized modules, scales and zero points included."""


class QuantizeAnswer(Answer):
    """What Quantize adds to its result."""

    artifacts: list[Artifact]
    effect: Effect | None = None
    fidelity: Fidelity | None = None


class Metric(Block):
    """One figure of one model."""

    metric: str
    value: Measured
    stderr: Measured | None = None
    higher_is_better: bool | None = None
    samples: Positive | None = in_file()
    """Items that it was made of; absent: they are not kept, and a gate cannot judge it."""


class ItemsFile(Block):
    """Where the items of a suite's figures lie."""

    suite: str
    uri: str
    digest: Digest


class EvaluateAnswer(Answer):
    """What Evaluate adds to its result; a termination message that would be too long lacks what only the file needs."""

    model: EvaluatedModel
    result_uri: str
    versions: dict[str, str] | None = None
    metrics: list[Metric] | None = None
    items: list[ItemsFile] | None = in_file()
    environment: dict[str, str] | None = in_file()
    """What the figures were computed on."""
    tokenizer: Digest | None = in_file()
    """Of the model's vocabulary."""
    warnings: list[str] | None = in_file()
    """What is wrong with the model's folder beside its figures."""


Outcome = Literal["Passed", "Failed", "Inconclusive", "Missing"]


class GateOutcome(Block):
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


class Comparison(Block):
    """One metric over all models; figures have six significant digits."""

    metric: str
    tested: Measured
    stderr: Measured | None = None
    samples: Positive | None = None
    baselines: dict[str, Measured] = Field(default_factory=dict)


class Overlap(Block):
    """How many items of a suite are in the data that the tested model was trained on."""

    suite: str
    items: Natural
    equal: Natural
    """Found whole."""
    similar: Natural
    """Found in part: a stretch of thirteen words."""


Verdict = Literal["Passed", "Failed", "Inconclusive", "NoCriteria"]


class CompareAnswer(Answer):
    """What Compare adds to its result."""

    verdict: Verdict
    gate: list[GateOutcome] | None = None
    results: list[Comparison] | None = None
    overlap: list[Overlap] | None = None
    """Absent: no training data is known."""
    results_uri: str
    report_uri: str | None = None


class PrepareResult(Result, PrepareAnswer):
    """Prepare's whole result when it succeeded."""


class TrainResult(Result, TrainAnswer):
    """Train's whole result when it succeeded."""


class FinalizeResult(Result, FinalizeAnswer):
    """Finalize's whole result when it succeeded."""


class QuantizeResult(Result, QuantizeAnswer):
    """Quantize's whole result when it succeeded."""


class EvaluateResult(Result, EvaluateAnswer):
    """Evaluate's whole result when it succeeded."""


class CompareResult(Result, CompareAnswer):
    """Compare's whole result when it succeeded."""


SUCCESSES: dict[str, type[Result]] = {
    "Prepare": PrepareResult,
    "Train": TrainResult,
    "Finalize": FinalizeResult,
    "Quantize": QuantizeResult,
    "Evaluate": EvaluateResult,
    "Compare": CompareResult,
}
"""By stage. Serve answers only when it gives up."""


def parse_result(stage: str, text: str) -> Result | None:
    """The result in a termination message; None if it is not one, for any reason (cut off, another program's words).

    Fields that are not known are left out, as are those that no status records: a newer image may have written it before a rollback.
    """
    try:
        content = json.loads(text)
        failed = content.get("outcome") != "Succeeded"
        model: type[Result] = (TrainFailure if stage == "Train" else Failure) if failed else SUCCESSES[stage]
        in_files = {field.alias for field in model.model_fields.values() if mark(field, "inFile")}
        result = model.model_validate({name: value for name, value in content.items() if name not in in_files}, extra="ignore")
    except (AttributeError, KeyError, ValueError, ValidationError):
        return None
    whole = result.stage == stage and "schemaVersion" in content and (stage == "Serve" or result.attempt is not None)
    return result if whole else None
