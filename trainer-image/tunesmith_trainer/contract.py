"""What a stage is given and what it answers, as in docs/contract.md (version 1).

The models here are shared by all stages or belong to Prepare, Train and Finalize. Names are snake_case in Python and camelCase
in JSON; an unknown key is refused, so that a misspelt setting never trains silently with a default.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

SCHEMA_VERSION = 1

Device = Literal["CPU", "GPU"]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
DecimalString = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$")]
DataFormat = Literal["Messages", "Alpaca", "PromptCompletion", "Text"]
ArtifactName = Literal["Adapter", "Merged"]
Outcome = Literal["Succeeded", "Failed", "Interrupted"]
Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]


def json_name(name: str) -> str:
    """Return the JSON key of a Python field: `run_uri` is `runURI`, `max_steps` is `maxSteps`, `uri` stays."""
    camel = to_camel(name)
    return camel.removesuffix("Uri") + "URI" if camel.endswith("Uri") else camel


class Contract(BaseModel):
    """Base of everything that crosses the boundary: camelCase in JSON, unknown keys refused, values not changed later."""

    model_config = ConfigDict(extra="forbid", alias_generator=json_name, populate_by_name=True, frozen=True)

    def dump(self) -> dict[str, Any]:
        """Return the model as it is written in JSON: camelCase, without the fields that are absent."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class OneOf(Contract):
    """A choice between shapes: exactly one member may be present."""

    @model_validator(mode="after")
    def _exactly_one(self) -> OneOf:
        present = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(present) != 1:
            choices = ", ".join(json_name(name) for name in type(self).model_fields)
            raise ValueError(f"exactly one of {choices} must be given, got {len(present)}")
        return self


# What several stages are given.


class ObjectReference(Contract):
    """The Kubernetes object that a stage works for."""

    kind: str
    namespace: str
    name: str
    uid: str


class ModelReference(Contract):
    """A model's folder; without a digest the stage resolves it."""

    uri: str
    digest: Digest | None = None


class StageInput(Contract):
    """The fields that every stage's input has."""

    schema_version: Literal[1]
    stage: str
    attempt: Positive
    device: Device
    object: ObjectReference
    run_uri: str | None = None

    @property
    def result_name(self) -> str:
        """The result file's name in `results/`, without `.json`."""
        return self.stage.lower()

    @property
    def reuses_result(self) -> bool:
        """Whether a finished result found in the store is the answer (docs/contract.md, Idempotent)."""
        return True


class DataSource(Contract):
    """A file or a folder of JSON Lines files, and the shape of its rows."""

    uri: str
    format: DataFormat


class Dataset(DataSource):
    """A training dataset, with the name that error messages use."""

    name: str


class Validation(OneOf):
    """Where validation rows come from: a fraction of the training rows, or a dataset of its own."""

    fraction: DecimalString | None = None
    dataset: DataSource | None = None


class Preparation(Contract):
    """Which rows to drop before training."""

    min_tokens: Natural = 0
    drop_patterns: list[str] = Field(default_factory=list)


class Sft(Contract):
    """Supervised fine-tuning."""

    packing: bool = False
    assistant_only_loss: bool = False


class Method(OneOf):
    """How the model learns."""

    sft: Sft | None = None


class Lora(Contract):
    """A LoRA adapter, with PEFT's names."""

    r: Positive
    lora_alpha: Positive
    lora_dropout: DecimalString = "0"
    target_modules: list[str] = Field(default_factory=lambda: ["all-linear"], min_length=1)


class Adapter(OneOf):
    """The weights that are trained beside the frozen model; no adapter means full fine-tuning."""

    lora: Lora | None = None


class Training(Contract):
    """Settings of the training loop, with the names of transformers' TrainingArguments."""

    num_train_epochs: Positive = 1
    max_steps: Positive | None = None
    learning_rate: DecimalString = "2e-4"
    per_device_train_batch_size: Positive = 1
    gradient_accumulation_steps: Positive = 1
    max_length: Positive = 1024
    warmup_steps: Natural = 0
    lr_scheduler_type: str = "linear"
    weight_decay: DecimalString = "0"
    max_grad_norm: DecimalString = "1"
    logging_steps: Positive = 10
    precision: Literal["BF16", "FP32"] = "BF16"
    seed: Natural = 42
    gradient_checkpointing: bool = False
    overrides: dict[str, str] = Field(default_factory=dict)


class Ddp(Contract):
    """Every process holds the whole model and gradients are averaged."""


class Parallelism(Contract):
    """How many pods train, how many processes in each, and how they share the work."""

    nodes: Positive = 1
    processes_per_node: Positive = 1
    ddp: Ddp | None = None


class Output(Contract):
    """Where artefacts go and which are asked for."""

    uri: str
    artifacts: list[ArtifactName]


class Quantization(Contract):
    """How a variant's weights are quantized."""

    scheme: Literal["W8A8", "W4A16"]
    algorithm: Literal["SmoothQuantGPTQ", "GPTQ"]
    num_calibration_samples: Positive = 128
    group_size: Positive | None = None


class Variant(Contract):
    """One quantized copy of the merged model."""

    name: str
    quantization: Quantization


# Prepare, Train, Finalize.


class Images(Contract):
    """The images a run is pinned to."""

    trainer: str


class Run(Contract):
    """All that determines a FineTuneJob's result."""

    images: Images
    model: ModelReference
    datasets: list[Dataset] = Field(min_length=1)
    validation: Validation | None = None
    preparation: Preparation = Field(default_factory=Preparation)
    method: Method
    adapter: Adapter | None = None
    training: Training
    parallelism: Parallelism
    output: Output
    variants: list[Variant] = Field(default_factory=list)


class PrepareInput(StageInput):
    """Prepare's input: the whole run, and no `runURI` yet."""

    output_uri: str
    run: Run

    @property
    def reuses_result(self) -> bool:
        """Prepare has to read its inputs to know which run this is, so it looks for the result itself."""
        return False


class Checkpoints(Contract):
    """How often training saves and how much it keeps."""

    every_steps: Positive = 100
    keep: Positive = 2
    grace_period_seconds: Positive = 120


class Rendezvous(Contract):
    """Where the training pods meet: the first pod's name and port."""

    endpoint: str
    nodes: Positive
    processes_per_node: Positive


class TrainInput(StageInput):
    """Train's input."""

    run_uri: str
    model: ModelReference
    method: Method
    adapter: Adapter | None = None
    training: Training
    checkpoints: Checkpoints
    parallelism: Parallelism
    rendezvous: Rendezvous


class Checkpoint(Contract):
    """A complete checkpoint folder."""

    uri: str
    step: Natural


class FinalizeInput(StageInput):
    """Finalize's input."""

    run_uri: str
    model: ModelReference
    adapter: Adapter | None = None
    checkpoint: Checkpoint
    artifacts: list[ArtifactName] = Field(min_length=1)


# What stages answer.


class Answer(Contract):
    """What a stage adds to the common fields of its result; each stage has its own."""


class Result(Contract):
    """The common fields of every result."""

    schema_version: Literal[1] = 1
    stage: str
    attempt: Positive
    outcome: Outcome
    start_time: str
    completion_time: str


class Failure(Result):
    """The result of a stage that did not succeed; an interrupted Train also says what it saved."""

    exit_code: int
    reason: str
    message: str = Field(max_length=1024)
    fingerprint: Fingerprint | None = None
    step: Natural | None = None
    global_step: Natural | None = None
    checkpoint: Checkpoint | None = None


class ResolvedModel(Contract):
    """The base model as Prepare found it."""

    uri: str
    digest: Digest
    parameters: Natural
    context_length: Natural
    architecture: str


class ResolvedDataset(Contract):
    """A dataset as Prepare found it: its digest, the rows kept and the rows dropped."""

    name: str
    digest: Digest
    rows: Natural
    dropped: Natural


class PrepareAnswer(Answer):
    """What Prepare adds to its result."""

    run_digest: Digest
    run_uri: str
    model: ResolvedModel
    datasets: list[ResolvedDataset]
    train_rows: Natural
    validation_rows: Natural
    memory_estimate_bytes: Natural


class TrainAnswer(Answer):
    """What Train adds to its result."""

    global_step: Natural
    epoch: float
    train_loss: float
    eval_loss: float | None = None
    train_runtime_seconds: float
    tokens_per_second: float
    world_size: Positive
    resumed_from_step: Natural
    checkpoint: Checkpoint


class Artifact(Contract):
    """A finished artefact: where it lies, what it is, and the digest of the model it was made from."""

    name: str
    uri: str
    digest: Digest
    size_bytes: Natural
    format: Literal["PEFT", "Safetensors", "CompressedTensors"]
    base_digest: Digest


class FinalizeAnswer(Answer):
    """What Finalize adds to its result."""

    artifacts: list[Artifact]


class PrepareResult(Result, PrepareAnswer):
    """Prepare's whole result when it succeeded."""


class TrainResult(Result, TrainAnswer):
    """Train's whole result when it succeeded."""


class FinalizeResult(Result, FinalizeAnswer):
    """Finalize's whole result when it succeeded."""
