"""What the status of a FineTuneJob may hold."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tunesmith.api.status import (
    MAX_NAMES,
    BigCount,
    Count,
    Digest,
    Location,
    Name,
    Number,
    PinnedModel,
    Text,
    Time,
    Word,
)
from tunesmith.stages.schema import JobStatus, Resolved
from tunesmith_contract.base import Block


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


class FineTuneJobStatus(JobStatus):
    """What is known of the job; recorded facts outlive the pods that told them."""

    resolved: FineTuneJobResolved | None = Field(None, description="What the names in the spec turned out to mean.")
    progress: Progress | None = Field(None, description="Newest report of the training.")
    last_checkpoint: Checkpoint | None = Field(None, description="Newest complete checkpoint.")
    retries_spent_step: BigCount | None = Field(
        None, description="Step of the newest checkpoint known of when one of `retries` was last spent: a newer one makes them whole again."
    )
    artifacts: Annotated[list[Artifact], Field(max_length=10)] | None = Field(None, description="Finished artefacts.")
