"""What the status of the two kinds that end holds of their stages and of the attempts at them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from tunesmith.api.status import (
    MAX_ATTEMPTS,
    MAX_INTEGER,
    MAX_STAGES,
    BigCount,
    Count,
    Location,
    Message,
    Nodes,
    Reason,
    Status,
    Text,
    Time,
    Word,
)
from tunesmith_contract.base import Block


class Ending(Block):
    """Why an attempt is being ended by the operator."""

    reason: Reason = Field(description="One CamelCase word.")
    message: Message = Field(description="For people.")


class PodEnd(Block):
    """How our container in a pod ended that the operator had to delete."""

    pod: Annotated[str, Field(max_length=253)] = Field(description="Name of the pod.")
    index: Count = Field(description="Its completion index.")
    node: Annotated[str, Field(max_length=253)] | None = Field(None, description="Its node.")
    exit_code: int | None = Field(None, ge=-MAX_INTEGER, le=MAX_INTEGER, description="As the kubelet reported it.")
    reason: Reason | None = Field(None, description="As the kubelet reported it.")
    message: Annotated[str, Field(max_length=2048)] | None = Field(None, description="The stage's result.")
    finished_at: Time | None = Field(None, description="When it ended.")


class Size(Block):
    """What may differ from one attempt of Train to the next; their product is always the global batch of the spec."""

    nodes: Count | None = Field(None, description="Train: pods.")
    per_device_train_batch_size: Count | None = Field(None, description="Train: rows of each process's forward pass; halved after OutOfMemory.")
    gradient_accumulation_steps: Count | None = Field(None, description="Train: forward passes a step.")


class Queue(Block):
    """Where a Job stands in its Kueue queue, as its Workload tells."""

    name: Word = Field(description="The LocalQueue.")
    workload: Annotated[str, Field(max_length=253)] | None = Field(None, description="Name of the Workload; absent: none has been seen.")
    quota_reserved: bool | None = Field(None, description="Its condition QuotaReserved.")
    admitted: bool | None = Field(None, description="Its condition Admitted.")
    evicted: bool | None = Field(None, description="Its condition Evicted.")
    reason: Reason | None = Field(None, description="Why it does not run, in Kueue's words.")
    message: Message | None = Field(None, description="For people; as it was when the reason came.")


class StageEntry(Size):
    """One stage, or one part of it; `nodes` and the batch are its newest attempt's."""

    name: Word = Field(description="Prepare, Train, Finalize, Quantize, Evaluate or Compare.")
    part: Word | None = Field(None, description="The variant, or the model under test.")
    state: Word = Field(description="Waiting, Pending, Running, Succeeded, Failed, or Stopped: another stage failed.")
    attempt: Count = Field(description="Number of the newest attempt; 0 before the first.")
    start_time: Time | None = Field(None, description="When its first attempt began.")
    completion_time: Time | None = Field(None, description="When it was over.")
    reason: Reason | None = Field(None, description="Why the last attempt failed.")
    message: Message | None = Field(None, description="For people.")
    result: dict[str, Any] | None = Field(
        None,
        description="What the stage told when it succeeded, at most 2 KiB: docs/contract.md has the fields of each stage.",
        # The stage contract is this object's schema and has versions of its own; numbers of a library's log are not the API's to bound.
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )
    job_uid: Word | None = Field(None, alias="jobUID", description="The Job of the attempt under way.")
    attempt_start_time: Time | None = Field(None, description="When the attempt under way began.")
    disruption: Message | None = Field(None, description="What took a pod of the attempt under way away.")
    ending: Ending | None = Field(None, description="The attempt under way is being ended by the operator: why.")
    ends: Annotated[list[PodEnd], Field(max_length=2)] | None = Field(
        None, description="How the stage ended in pods that other containers keep running, and that are deleted for it."
    )
    taken: Count | None = Field(None, description="Attempts that were taken away since the newest checkpoint.")
    taken_step: BigCount | None = Field(None, description="Step of that checkpoint; 0: none.")
    waits: Count | None = Field(None, description="Attempts one after another that did not get all their pods: the pause doubles with each.")
    waiting_since: Time | None = Field(None, description="When the first of these began to wait.")
    not_before: Time | None = Field(None, description="The next attempt waits until then.")
    failures: Count | None = Field(None, description="One after another, none of which took ten minutes: the pause doubles with each.")
    batch_size_limit: Count | None = Field(None, description="Rows at a time that may fit into memory.")
    nodes_limit: Count | None = Field(None, description="Nodes that were found for the last attempt: the next one asks for no more.")
    state_time: Time | None = Field(None, description="Since when the attempt under way is Pending or Running; absent: since it began.")
    ran_seconds: BigCount | None = Field(None, description="How long the attempt under way ran before a queue took its pods away.")
    checkpoint_step: BigCount | None = Field(None, description="Step of the newest checkpoint that an attempt told of when it ended.")
    gpus: Count | None = Field(None, description="GPUs that the attempt under way asks for.")
    avoid_nodes: Nodes | None = Field(
        None, description="Nodes that were at fault last. The next attempt's pods go elsewhere, if any other node can take them."
    )
    suspect_nodes: Nodes | None = Field(
        None, description="Nodes that cannot start, or do not end, a pod of the attempt under way: the one after it avoids them."
    )
    stuck_time: Time | None = Field(None, description="When it was first seen that a node cannot create a container of the attempt under way.")
    queue: Queue | None = Field(None, description="Where the attempt under way stands in its queue.")


class AttemptEntry(Size):
    """One attempt at a stage that has ended."""

    stage: Word = Field(description="The stage.")
    part: Word | None = Field(None, description="The variant, or the model under test.")
    attempt: Count = Field(description="1 is the first.")
    outcome: Word = Field(description="Succeeded or Failed.")
    reason: Reason | None = Field(None, description="Why it ended.")
    message: Message | None = Field(None, description="For people.")
    free: bool | None = Field(None, description="True: not counted against `retries`.")
    fingerprint: Word | None = Field(None, description="Of its error: the exception's type and frames, or a crash's signal.")
    step: BigCount | None = Field(None, description="Last optimizer step completed before its error.")
    resumed_from_step: BigCount | None = Field(None, description="Step of the checkpoint that it began with; 0: none. Absent: it did not tell.")
    checkpoint_step: BigCount | None = Field(None, description="Step of the newest checkpoint known of when it ended; absent: none.")
    failed_on: Nodes | None = Field(None, description="Nodes of the pods whose end was the cause, at most two.")
    start_time: Time | None = Field(None, description="When it began.")
    completion_time: Time | None = Field(None, description="When it ended.")
    gpus: Count | None = Field(None, description="GPUs that it asked for; absent: none.")
    queued_seconds: BigCount | None = Field(None, description="How long it waited for a queue, nodes and images.")
    running_seconds: BigCount | None = Field(None, description="How long its pods ran, from the last one's start to the last one's end.")


class Images(Block):
    """Images, pinned with the first result of a stage; an upgrade of the operator does not change them then."""

    trainer: Text | None = Field(None, description="Image of the training, quantization and evaluation stages.")


class Resolved(Block):
    """What names in the spec turned out to mean, and settings fixed for the run."""

    images: Images | None = Field(None, description="Pinned images.")
    contract_version: Count | None = Field(None, description="Stage contract of the pinned image; absent: 1.")
    run_uri: Location | None = Field(None, description="Folder of this run.")


class GPUSeconds(Block):
    """Seconds times GPUs of the attempts that have ended. What was held is the sum of useful and lost."""

    useful: BigCount = Field(description="Spent on steps that were kept, or in other stages that succeeded.")
    queued: BigCount = Field(description="Waited for: the GPUs asked for, before they were held.")
    lost: BigCount = Field(
        description="Held for nothing: start-up, steps after the last checkpoint, failed attempts. What a later attempt has kept moves to useful."
    )


class JobStatus(Status):
    """Common to the two kinds that end."""

    stages: Annotated[list[StageEntry], Field(max_length=MAX_STAGES)] | None = Field(None, description="The stages, in the order they run.")
    attempts: Annotated[list[AttemptEntry], Field(max_length=MAX_ATTEMPTS)] | None = Field(None, description="The last attempts, oldest first.")
    start_time: Time | None = Field(None, description="When its first attempt began.")
    completion_time: Time | None = Field(None, description="When it succeeded or failed for good.")
    active_seconds: BigCount | None = Field(None, description="How long attempts have run since it was made or resumed, but for the present stretch.")
    active_since: Time | None = Field(None, description="Since when an attempt runs.")
    retries_spent: Count | None = Field(None, description="Attempts that counted against `retries`; 0 again after a new checkpoint.")
    gpu_seconds: GPUSeconds | None = Field(None, description="Absent: no GPU was asked for.")
