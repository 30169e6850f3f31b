"""What the status of each kind may hold: the source of the CRDs' status schemas.

The API server prunes what is not named here without a word, so a field that `status.py` writes and this file lacks would be written again at
every reconcile. Every list is bounded here and trimmed by whoever writes it. Decimals are strings, as in the specs.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.api.blocks import Block, Resources, Scheduling
from tunesmith.api.status import (
    MAX_ATTEMPTS,
    MAX_INTEGER,
    MAX_NAMES,
    MAX_RESULTS,
    MAX_STAGES,
    BigCount,
    Count,
    Digest,
    Location,
    Name,
    Number,
    Text,
    Time,
    Word,
)
from tunesmith.evalrun.gate_schema import GateOutcome, MetricResult, Overlap, Verdict
from tunesmith.modeldeployment.api import Engine
from tunesmith.stages.schema import Attempt, Stage


class Condition(Block):
    """metav1.Condition."""

    type: str = Field(max_length=316, description="Ready, Reconciling, Stalled and further ones of the kind.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: str = Field(
        min_length=1, max_length=128, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", description="One CamelCase word for programs."
    )
    message: str = Field(max_length=1024, description="For people.")
    observed_generation: BigCount | None = Field(None, description="metadata.generation that this was computed from.")
    last_transition_time: Time = Field(description="When `status` last changed.")


class Images(Block):
    """Images, pinned with the first result of a stage; an upgrade of the operator does not change them then."""

    trainer: Text | None = Field(None, description="Image of the training, quantization and evaluation stages.")


class PinnedModel(Block):
    """A model as it was found: later changes behind its name change nothing here."""

    name: Word | None = Field(None, description="Of a baseline of an EvalRun: its name. Absent elsewhere.")
    uri: Location = Field(description="Where it lies.")
    digest: Digest | None = Field(None, description="sha256 of its manifest.")


class ResolvedModel(PinnedModel):
    """The base model."""

    parameters: BigCount | None = Field(None, description="Number of parameters.")
    context_length: Count | None = Field(None, description="Tokens it was made for.")
    architecture: Word | None = Field(None, description="Class name in its config.")


class DataFile(Block):
    """A file of a dataset."""

    name: Name = Field(description="Its path in the dataset.")
    rows: BigCount = Field(description="Rows read from it.")


class ResolvedDataset(Block):
    """A dataset as it was read."""

    name: Word = Field(description="Its name in the spec.")
    digest: Digest | None = Field(None, description="sha256 of its contents.")
    rows: BigCount | None = Field(None, description="Rows used.")
    dropped: BigCount | None = Field(None, description="Rows dropped by the filters.")
    sequences: BigCount | None = Field(
        None,
        description="Sequences that its rows are trained as: more than rows where the chat template renders earlier turns otherwise than the last.",
    )
    loss: Word | None = Field(None, description="Answers or AllTokens: what of a row the loss is taken on.")
    cut_rows: BigCount | None = Field(None, description="Rows longer than maxLength, which are cut.")
    cut_tokens: BigCount | None = Field(None, description="Trained tokens lost by that.")
    endless_rows: BigCount | None = Field(None, description="Rows that lose the end of an answer by that.")
    stripped_rows: BigCount | None = Field(None, description="Rows with a text that the model's chat template leaves out.")
    template_setting: Name | None = Field(None, description="Setting of the chat template, other than its default, that some rows are rendered with.")
    template_setting_rows: BigCount | None = Field(None, description="Number of these rows.")
    file_count: BigCount | None = Field(None, description="Files that were read.")
    files: Annotated[list[DataFile], Field(max_length=MAX_NAMES)] | None = Field(None, description="The first of them.")
    ignored_columns: Annotated[list[Name], Field(max_length=MAX_NAMES)] | None = Field(
        None, description="The first of the columns, and keys of messages, that rows have and that are not used."
    )


class Resolved(Block):
    """What names in the spec turned out to mean, and settings fixed for the run."""

    images: Images | None = Field(None, description="Pinned images.")
    contract_version: Count | None = Field(None, description="Stage contract of the pinned image; absent: 1.")
    run_uri: Location | None = Field(None, alias="runURI", description="Folder of this run.")


class HostMemory(Block):
    """What the pods of each stage need of their hosts, about, in bytes."""

    train: BigCount | None = Field(None, description="Each training pod.")
    finalize: BigCount | None = Field(None, description="Finalize.")
    quantize: BigCount | None = Field(None, description="Quantize; absent without variants.")


class FineTuneJobResolved(Resolved):
    """Told by Prepare."""

    run_digest: Digest | None = Field(None, description="sha256 of all that determines the result.")
    model: ResolvedModel | None = Field(None, description="The base model.")
    datasets: Annotated[list[ResolvedDataset], Field(max_length=17)] | None = Field(None, description="The datasets.")
    validation_dataset: ResolvedDataset | None = Field(None, description="The dataset of `validation`, where it has one of its own.")
    warnings: Annotated[list[Text], Field(max_length=MAX_NAMES)] | None = Field(None, description="What is lost of the data, in words.")
    train_rows: BigCount | None = Field(None, description="Rows trained on.")
    validation_rows: BigCount | None = Field(None, description="Rows held out.")
    memory_estimate_bytes: BigCount | None = Field(
        None, description="Bytes of tensors of each training process at the peak, on its device. Absent: unknown, and `memoryNeed` says why."
    )
    memory_need: Text | None = Field(None, description="The same in words, with its parts.")
    host_memory_bytes: HostMemory | None = Field(None, description="What pods need of their hosts.")
    world_size: Count | None = Field(None, description="Processes of the training.")
    devices: Annotated[dict[Annotated[str, Field(max_length=128)], Count], Field(max_length=16)] | None = Field(
        None, description="GPUs that trained: their number, over all processes, by their name."
    )


class GPUSeconds(Block):
    """Seconds times GPUs of the attempts that have ended. What was held is the sum of useful and lost."""

    useful: BigCount = Field(description="Spent on steps that were kept, or in other stages that succeeded.")
    queued: BigCount = Field(description="Waited for: the GPUs asked for, before they were held.")
    lost: BigCount = Field(
        description="Held for nothing: start-up, steps after the last checkpoint, failed attempts. What a later attempt has kept moves to useful."
    )


class Metric(Block):
    """A number by name."""

    name: Word = Field(description="As the library logs it.")
    value: Number = Field(description="Decimal.")


class Progress(Block):
    """Newest report of the running training (KEP-2779's names)."""

    progress_percentage: Annotated[int, Field(ge=0, le=100)] | None = Field(
        None, description="Share of the steps done; while an attempt starts, of those it goes on from."
    )
    estimated_remaining_seconds: BigCount | None = Field(None, description="Until the training ends.")
    metrics: Annotated[list[Metric], Field(max_length=32)] | None = Field(None, description="Newest metrics.")
    last_updated_time: Time | None = Field(None, description="When it was recorded here; reports come more often.")


class Checkpoint(Block):
    """A complete checkpoint."""

    uri: Location = Field(description="Its folder.")
    step: BigCount = Field(description="Optimizer steps it holds.")


class Artifact(Block):
    """A finished artefact."""

    name: Word = Field(description="Adapter, Merged or a variant's name.")
    uri: Location = Field(description="Its folder.")
    digest: Digest = Field(description="sha256 of its manifest.")
    size_bytes: BigCount | None = Field(None, description="Sum of its files.")
    format: Word | None = Field(None, description="PEFT, Safetensors or CompressedTensors.")
    base_digest: Digest | None = Field(None, description="Digest of the model it was made from.")


class Status(Block):
    """Common to the three kinds."""

    observed_generation: Annotated[int, Field(ge=-1, le=MAX_INTEGER)] | None = Field(
        None, description="metadata.generation that this status was computed from; -1: never looked at."
    )
    conditions: Annotated[list[Condition], Field(max_length=16)] | None = Field(
        None,
        description="Ready, Reconciling and Stalled as kstatus reads them, and further ones of the kind.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    stage: Word | None = Field(None, description="One word for people; programs read the conditions.")


class JobStatus(Status):
    """Common to the two kinds that end."""

    stages: Annotated[list[Stage], Field(max_length=MAX_STAGES)] | None = Field(None, description="The stages, in the order they run.")
    attempts: Annotated[list[Attempt], Field(max_length=MAX_ATTEMPTS)] | None = Field(None, description="The last attempts, oldest first.")
    start_time: Time | None = Field(None, description="When its first attempt began.")
    completion_time: Time | None = Field(None, description="When it succeeded or failed for good.")
    active_seconds: BigCount | None = Field(None, description="How long attempts have run since it was made or resumed, but for the present stretch.")
    active_since: Time | None = Field(None, description="Since when an attempt runs.")
    retries_spent: Count | None = Field(None, description="Attempts that counted against `retries`; 0 again after a new checkpoint.")
    gpu_seconds: GPUSeconds | None = Field(None, description="Absent: no GPU was asked for.")


class FineTuneJobStatus(JobStatus):
    """What is known of the job; recorded facts outlive the pods that told them."""

    resolved: FineTuneJobResolved | None = Field(None, description="What the names in the spec turned out to mean.")
    progress: Progress | None = Field(None, description="Newest report of the training.")
    last_checkpoint: Checkpoint | None = Field(None, description="Newest complete checkpoint.")
    retries_spent_step: BigCount | None = Field(
        None, description="Step of the newest checkpoint known of when one of `retries` was last spent: a newer one makes them whole again."
    )
    artifacts: Annotated[list[Artifact], Field(max_length=10)] | None = Field(None, description="Finished artefacts.")


class LineageStage(Block):
    """When a stage of the FineTuneJob ran."""

    name: Word = Field(description="The stage.")
    start_time: Time | None = Field(None, description="When it began.")
    completion_time: Time | None = Field(None, description="When it ended.")


class Lineage(Block):
    """Where the model under test comes from."""

    run_uri: Location = Field(alias="runURI", description="Folder of the FineTuneJob's run.")
    stages: Annotated[list[LineageStage], Field(max_length=MAX_STAGES)] = Field(description="Its stages.")


class EvalRunResolved(Resolved):
    """Fixed before the first evaluation."""

    output_uri: Location | None = Field(None, alias="outputURI", description="`output.uri`, or the FineTuneJob's.")
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
    results_uri: Location | None = Field(None, alias="resultsURI", description="All results (JSON).")
    report_uri: Location | None = Field(None, alias="reportURI", description="The report (HTML).")


class ServedModel(PinnedModel):
    """The model that the spec means, pinned once a revision serves it."""

    source: Location | None = Field(None, description="What it was read from, in words.")


class RevisionInputs(Block):
    """The parts of the spec that determine a revision's pods, as they were when it was made."""

    engine: Engine | None = Field(None, description="As in the spec.")
    resources: Resources | None = Field(None, description="As in the spec.")
    scheduling: Scheduling | None = Field(None, description="As in the spec.")


class Revision(Block):
    """One set of inputs that is, was or is about to be served."""

    name: Word = Field(description="Short hash of its inputs.")
    state: Word | None = Field(None, description="Candidate, Active or Draining.")
    uri: Location | None = Field(None, description="Where the model lies.")
    digest: Digest | None = Field(None, description="Digest of the model, pinned.")
    verdict: Word | None = Field(None, description="Passed, or NoGate.")
    eval_runs: Annotated[list[Word], Field(max_length=8)] | None = Field(None, description="EvalRuns that passed it.")
    image: Text | None = Field(None, description="Pinned image.")
    contract_version: Count | None = Field(None, description="Stage contract of that image; absent: 1.")
    inputs: RevisionInputs | None = Field(None, description="What else it was made from.")
    created_time: Time | None = Field(None, description="When it was made.")
    switched_time: Time | None = Field(None, description="While Draining: when the Service was seen to select another revision.")


class ModelDeploymentStatus(Status):
    """What serves."""

    model: ServedModel | None = Field(None, description="The model that the spec means.")
    url: Location | None = Field(None, description="OpenAI-compatible endpoint inside the cluster.")
    replicas: Count | None = Field(None, description="Pods of the active revision, or of the first candidate.")
    ready_replicas: Count | None = Field(None, description="Ready ones among them.")
    selector: Annotated[str, Field(max_length=1024)] | None = Field(None, description="Label selector of the pods, for /scale.")
    revisions: Annotated[list[Revision], Field(max_length=10)] | None = Field(None, description="At most one of each state.")
