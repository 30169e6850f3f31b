"""The operator's side of the stage contract (docs/contract.md): stage results, which we parse. `contract.py` has what we build."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, ValidationError, model_validator

from tunesmith.api.blocks import Block, dump
from tunesmith.contract import Checkpoint, Digest, Model

BAD_SETTINGS, BAD_DATA, UNAVAILABLE, INTERRUPTED = 64, 65, 69, 75
"""Exit codes of sysexits.h that the operator tells apart."""

DecimalString = Annotated[str, StringConstraints(max_length=64)]
Figure = Annotated[float, Field(allow_inf_nan=False)]
"""What is no number in JSON the API server takes in no status: such a result is none."""


class Answered(Block):
    """A part of a result. Fields that this operator does not know are left out: a newer image may have written it before a rollback."""

    model_config = ConfigDict(extra="ignore")


class Result(Answered):
    """What every stage answers. A field that only some outcomes have, or only newer images, is None in the others."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Fields without which a success cannot be believed."""

    schema_version: int = Field(ge=1)
    stage: str
    attempt: int
    outcome: Literal["Succeeded", "Failed", "Interrupted"]
    start_time: str
    completion_time: str
    exit_code: int | None = None
    reason: str | None = None
    message: str | None = None
    fingerprint: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")] | None = None
    """Shared by failures of one exception type, raised along one path of the code, and by crashes of one signal."""
    step: int | None = Field(None, ge=0)
    """The last optimizer step that was completed before a failure in training."""
    memory: str | None = None
    """Of `OutOfMemory`: `Host` or `Device`."""

    @model_validator(mode="after")
    def _believable(self) -> Self:
        missing = [name for name in self.needs if getattr(self, name) is None]
        if self.outcome == "Succeeded" and missing:
            raise ValueError(f"succeeded without {', '.join(missing)}")
        return self

    @property
    def final(self) -> bool:
        """Failed in a way that another attempt cannot mend."""
        return self.outcome == "Failed" and self.exit_code in (BAD_SETTINGS, BAD_DATA)

    @property
    def interrupted(self) -> bool:
        """Ended from outside after saving its work."""
        return self.outcome == "Interrupted" or self.exit_code == INTERRUPTED

    def facts(self) -> dict[str, Any]:
        """What this stage adds to the common fields, as JSON."""
        return {name: value for name, value in dump(self).items() if name not in COMMON}


COMMON = frozenset(field.alias or name for name, field in Result.model_fields.items())


class PreparedModel(Model, Answered):
    """The base model as Prepare found it."""

    parameters: int
    context_length: int | None = None
    architecture: str


class DataFile(Answered):
    """A file that was read."""

    name: str
    rows: int


class PreparedDataset(Answered):
    """A dataset as Prepare found it; images of version 1 tell the first four alone."""

    name: str
    digest: Digest
    rows: int
    dropped: int
    sequences: int | None = None
    loss: Literal["Answers", "AllTokens"] | None = None
    cut_rows: int | None = None
    cut_tokens: int | None = None
    endless_rows: int | None = None
    stripped_rows: int | None = None
    template_setting: str | None = None
    template_setting_rows: int | None = None
    file_count: int | None = None
    files: list[DataFile] | None = None
    ignored_columns: list[str] | None = None


class HostMemory(Answered):
    """About how many bytes a pod of each stage needs of its host."""

    train: int
    finalize: int
    quantize: int | None = None


class PrepareResult(Result):
    """Prepare's answer."""

    needs = ("run_digest", "run_uri", "model")
    stage: Literal["Prepare"]
    run_digest: str | None = None
    run_uri: str | None = Field(None, alias="runURI")
    model: PreparedModel | None = None
    datasets: list[PreparedDataset] | None = None
    validation_dataset: PreparedDataset | None = None
    warnings: list[str] | None = None
    train_rows: int | None = None
    validation_rows: int | None = None
    memory_estimate_bytes: int | None = None
    memory_need: str | None = None
    host_memory_bytes: HostMemory | None = None


class MadeCheckpoint(Checkpoint, Answered):
    """A complete checkpoint."""


class Sharding(Answered):
    """What one training process held after its first step, at most."""

    parameter_bytes_per_rank: int
    optimizer_bytes_per_rank: int
    total_parameter_bytes: int
    trainable_parameters: int


class TrainResult(Result):
    """Train's answer, from node rank 0."""

    needs = ("checkpoint",)
    stage: Literal["Train"]
    global_step: int | None = None
    epoch: Figure | None = None
    train_loss: Figure | None = None
    eval_loss: Figure | None = None
    train_runtime_seconds: Figure | None = None
    tokens_per_second: Figure | None = None
    world_size: int | None = None
    devices: dict[str, int] | None = None
    """GPUs that trained, over all processes: their number by their name."""
    resumed_from_step: int | None = None
    sharding: Sharding | None = None
    checkpoint: MadeCheckpoint | None = None


class Artifact(Answered):
    """A finished artefact."""

    name: str
    uri: str
    digest: Digest
    size_bytes: int
    format: Literal["PEFT", "Safetensors", "CompressedTensors"]
    base_digest: Digest


class Fidelity(Answered):
    """How far the logits of what was written are from those of what it was made from."""

    logits_error: Figure
    same_token: Figure
    tokens: int
    layer_error: Figure | None = None
    smoothing_error: Figure | None = None
    effect_share: Figure | None = None


class FinalizeResult(Result):
    """Finalize's answer."""

    needs = ("artifacts",)
    stage: Literal["Finalize"]
    artifacts: list[Artifact] | None = None
    fidelity: Fidelity | None = None


class Effect(Answered):
    """What quantization did, read back from the files."""

    quantized_modules: int
    bits_per_weight: Figure


class QuantizeResult(Result):
    """Quantize's answer."""

    needs = ("artifacts",)
    stage: Literal["Quantize"]
    artifacts: list[Artifact] | None = None
    effect: Effect | None = None
    fidelity: Fidelity | None = None


class Metric(Answered):
    """One measurement."""

    metric: str
    value: DecimalString
    stderr: DecimalString | None = None
    higher_is_better: bool | None = None


class EvaluatedModel(Model, Answered):
    """A model under test, pinned."""

    name: str


class EvaluateResult(Result):
    """Evaluate's answer; the termination message may lack `metrics` and `versions`."""

    needs = ("model", "result_uri")
    stage: Literal["Evaluate"]
    model: EvaluatedModel | None = None
    result_uri: str | None = Field(None, alias="resultURI")
    versions: dict[str, str] | None = None
    metrics: list[Metric] | None = None


class Judged(Answered):
    """One criterion of the gate, judged."""

    outcome: Literal["Passed", "Failed", "Inconclusive", "Missing"]
    value: DecimalString | None = None
    stderr: DecimalString | None = None
    baseline_value: DecimalString | None = None
    lower: DecimalString | None = None
    upper: DecimalString | None = None
    samples: int | None = None
    needed: int | None = None


class Compared(Answered):
    """One metric of the model under test beside its baselines'."""

    metric: str
    tested: DecimalString
    stderr: DecimalString | None = None
    samples: int | None = None
    baselines: dict[str, DecimalString] = Field(default_factory=dict)


class Overlap(Answered):
    """How many of a suite's items are in the data that the model under test was trained on."""

    suite: str
    items: int
    equal: int
    similar: int


class CompareResult(Result):
    """Compare's answer."""

    needs = ("verdict", "results_uri")
    stage: Literal["Compare"]
    verdict: Literal["Passed", "Failed", "Inconclusive", "NoCriteria"] | None = None
    gate: list[Judged] | None = None
    results: list[Compared] | None = None
    overlap: list[Overlap] | None = None
    results_uri: str | None = Field(None, alias="resultsURI")
    report_uri: str | None = Field(None, alias="reportURI")


class ServeResult(Result):
    """What a serving pod answers when it gives up; Serve has no attempts."""

    stage: Literal["Serve"]
    attempt: int = 0


RESULTS: dict[str, type[Result]] = {
    "Prepare": PrepareResult,
    "Train": TrainResult,
    "Finalize": FinalizeResult,
    "Quantize": QuantizeResult,
    "Evaluate": EvaluateResult,
    "Compare": CompareResult,
    "Serve": ServeResult,
}


def parse_result(stage: str, text: str) -> Result | None:
    """The result in a termination message; None if it is not one, whatever the reason (cut off, another program's words)."""
    try:
        return RESULTS[stage].model_validate(json.loads(text))
    except (ValueError, ValidationError):
        return None
