"""What a stage is given and what it answers, as in docs/contract.md (version 2; version 1 is read too).

The models here are shared by all stages or belong to Prepare, Train and Finalize; spec.py has the blocks that they share with an object's spec.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tunesmith_trainer.spec import (
    Adapter,
    ArtifactName,
    BaseQuantization,
    Checkpoints,
    Contract,
    Dataset,
    Method,
    Natural,
    Output,
    Parallelism,
    Positive,
    Preparation,
    Training,
    Validation,
    Variant,
)

Device = Literal["CPU", "GPU"]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
Outcome = Literal["Succeeded", "Failed", "Interrupted"]


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

    schema_version: Literal[1, 2]
    stage: str
    attempt: Positive
    device: Device
    gpus: Positive | None = None
    """GPUs of each pod; absent in version 1."""
    object: ObjectReference
    run_uri: str | None = None

    @property
    def result_name(self) -> str:
        """The result file's name in `results/`, without `.json`."""
        return self.stage.lower()

    @property
    def processes_per_pod(self) -> int:
        """The processes of this pod that take a GPU each."""
        return 1

    @property
    def needs_bf16(self) -> bool:
        """Whether the stage was asked to compute in bf16."""
        return False

    @property
    def unused(self) -> set[str]:
        """Modules that PEFT and transformers would import because they are installed, and that this stage does not use."""
        return set()

    @property
    def reuses_result(self) -> bool:
        """Whether a finished result found in the store is the answer (docs/contract.md, Idempotent)."""
        return True


# Prepare, Train, Finalize.


UNUSED = {"bitsandbytes", "sklearn"}


def unused_in_training(training: Training, base_quantization: BaseQuantization | None) -> set[str]:
    """Return the modules that a training does not use: an optimizer that the user names may be one of bitsandbytes'."""
    return UNUSED - ({"bitsandbytes"} if base_quantization or "optim" in training.overrides else set())


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
    base_quantization: BaseQuantization | None = None
    training: Training
    parallelism: Parallelism
    output: Output
    variants: list[Variant] = Field(default_factory=list)


class Room(Contract):
    """What a pod of a stage may use, in bytes: of its host (the pod's limit), and of each of its GPUs where the spec says how much these have."""

    device: Device
    memory: Positive | None = None
    gpu_memory: Positive | None = None


class Pods(Contract):
    """The pods of the stages that follow Prepare."""

    train: Room
    finalize: Room
    quantize: Room


class PrepareInput(StageInput):
    """Prepare's input: the whole run, and no `runURI` yet."""

    output_uri: str
    run: Run
    pods: Pods | None = None
    """What the later stages' pods have; no part of the run. Absent in version 1: nothing is refused for want of memory."""

    @property
    def unused(self) -> set[str]:
        """As in the training that is tried here."""
        return unused_in_training(self.run.training, self.run.base_quantization)

    @property
    def reuses_result(self) -> bool:
        """Prepare has to read its inputs to know which run this is, so it looks for the result itself."""
        return False


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
    base_quantization: BaseQuantization | None = None
    training: Training
    checkpoints: Checkpoints
    parallelism: Parallelism
    rendezvous: Rendezvous

    @property
    def unused(self) -> set[str]:
        """By the optimizer and the base's quantization."""
        return unused_in_training(self.training, self.base_quantization)

    @property
    def processes_per_pod(self) -> int:
        """As torchrun starts them."""
        return self.rendezvous.processes_per_node

    @property
    def needs_bf16(self) -> bool:
        """By the spec's precision."""
        return self.training.precision == "BF16"


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

    @property
    def unused(self) -> set[str]:
        """The base is loaded unquantized."""
        return UNUSED


# What stages answer.


class Answer(Contract):
    """What a stage adds to the common fields of its result; each stage has its own."""


class Result(Contract):
    """The common fields of every result."""

    schema_version: Literal[1, 2] = 2
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
    memory: Literal["Host", "Device"] | None = None
    step: Natural | None = None
    global_step: Natural | None = None
    checkpoint: Checkpoint | None = None
    resumed_from_step: Natural | None = None
    train_runtime_seconds: float | None = None


class ResolvedModel(Contract):
    """The base model as Prepare found it."""

    uri: str
    digest: Digest
    parameters: Natural
    context_length: Natural
    architecture: str


class DataFile(Contract):
    """A file that was read, by its path in the dataset."""

    name: str
    rows: Natural


class ResolvedDataset(Contract):
    """A dataset as Prepare found it: its digest, the rows kept and the rows dropped, and what became of those kept.

    `sequences` are what they are trained as, on their answers or on all their tokens. Of the counts, `cut_rows` are longer
    than maxLength, `cut_tokens` of their trained tokens are lost by it, and `endless_rows` lose an answer's end;
    `stripped_rows` have a text that the chat template leaves out; `template_setting_rows` are rendered under another
    setting of the template than its default (`enable_thinking=false`).
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


class HostMemory(Contract):
    """About how many bytes a pod of each stage needs of its host."""

    train: Natural
    finalize: Natural
    quantize: Natural | None = None


class PrepareAnswer(Answer):
    """What Prepare adds to its result."""

    run_digest: Digest
    run_uri: str
    model: ResolvedModel
    datasets: list[ResolvedDataset]
    validation_dataset: ResolvedDataset | None = None
    warnings: list[str] | None = None
    """What a user should know of the data, in words."""
    train_rows: Natural
    validation_rows: Natural
    memory_estimate_bytes: Natural | None = None
    """Of the tensors of one training process on its device; absent: it cannot be measured, and `memory_need` says why."""
    memory_need: str | None = None
    """The same in words, with its parts."""
    host_memory_bytes: HostMemory | None = None


class Sharding(Contract):
    """What one process held at the end of its first step, measured on its tensors; the greatest of all processes."""

    parameter_bytes_per_rank: Natural
    optimizer_bytes_per_rank: Natural
    total_parameter_bytes: Natural
    trainable_parameters: Natural


class TrainAnswer(Answer):
    """What Train adds to its result."""

    global_step: Natural
    epoch: float
    train_loss: float | None = None
    """Absent where the run was begun by an image that did not record the sums."""
    eval_loss: float | None = None
    train_runtime_seconds: float
    tokens_per_second: float
    world_size: Positive
    devices: dict[str, Positive] | None = None
    """GPUs' names and how many of all processes computed on each kind; absent on CPU."""
    resumed_from_step: Natural
    sharding: Sharding | None = None
    checkpoint: Checkpoint


class Artifact(Contract):
    """A finished artefact: where it lies, what it is, and the digest of the model it was made from."""

    name: str
    uri: str
    digest: Digest
    size_bytes: Natural
    format: Literal["PEFT", "Safetensors", "CompressedTensors"]
    base_digest: Digest


class Fidelity(Contract):
    """How far an artefact, read again from its files, is from what it was made from, over some tokens of the run's rows."""

    logits_error: float
    """Root mean square of the differences of logits in parts of the logits themselves, each token's mean taken off."""
    same_token: float
    """Share of tokens after which the likeliest token is the same."""
    tokens: Natural
    layer_error: float | None = None
    """Of a variant: of its worst decoder layer, whose outputs are off by so much of what it adds to its input."""
    smoothing_error: float | None = None
    """As logits_error, of the model that was smoothed and not yet quantized."""
    effect_share: float | None = None
    """How much of what training changed in the logits the merged model has: about 1."""


class FinalizeAnswer(Answer):
    """What Finalize adds to its result."""

    artifacts: list[Artifact]
    fidelity: Fidelity | None = None
    """Of Merged."""


class PrepareResult(Result, PrepareAnswer):
    """Prepare's whole result when it succeeded."""


class TrainResult(Result, TrainAnswer):
    """Train's whole result when it succeeded."""


class FinalizeResult(Result, FinalizeAnswer):
    """Finalize's whole result when it succeeded."""
