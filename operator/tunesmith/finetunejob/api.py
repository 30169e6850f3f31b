"""FineTuneJob's spec. docs/DESIGN.md section 1 tells what each block is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from tunesmith.api.blocks import (
    RETRIES,
    Limited,
    ModelSource,
    Quantity,
    Resources,
    StageScheduling,
    immutable,
    only_while_suspended,
    unique_names,
    when_made,
)
from tunesmith.workload.podspec import claims
from tunesmith_contract.adapters import Adapter, BaseQuantization
from tunesmith_contract.base import Block, rule, rules
from tunesmith_contract.data import Dataset, Preparation, Validation
from tunesmith_contract.methods import Method
from tunesmith_contract.quantization import Variant
from tunesmith_contract.training import Checkpoints, Output, Parallelism, Training

GPUMemory = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,6}(\.[0-9]{1,3})?(Mi|Gi|Ti|M|G|T)$", min_length=1, max_length=32)]

KIND = "FineTuneJob"


class TrainingResources(Resources):
    """Resources of each training pod, and what a GPU of them has."""

    model_config = ConfigDict(
        json_schema_extra=rules(rule("!has(self.gpuMemory) || (has(self.gpus) && self.gpus > 0)", "needs `gpus`", ".gpuMemory")),
    )

    gpu_memory: GPUMemory | None = Field(
        None,
        description="Memory of each GPU, such as 80Gi. Prepare refuses a training whose tensors need more. It is no part of the run. Absent: "
        "nothing is refused for it; `status.resolved.memoryNeed` has the need.",
    )


class StageResources(Block):
    """Resources of the pods of one stage other than Train."""

    stage: Literal["Prepare", "Finalize", "Quantize"] = Field(description="The stage.")
    gpus: int | None = Field(None, ge=0, le=64, description="GPUs. Default: 0 (Quantize: as many as `resources.gpus`).")
    cpu: Quantity | None = Field(None, description="CPU request.")
    memory: Quantity | None = Field(None, description="Memory request and limit.")


IMMUTABLE = (
    "model",
    "datasets",
    "validation",
    "preparation",
    "method",
    "adapter",
    "baseQuantization",
    "training",
    "parallelism",
    "output",
    "variants",
)


RULES = (
    rule(
        "!has(self.spec.model.fineTuneJobRef) || self.spec.model.fineTuneJobRef.name != self.metadata.name",
        "a FineTuneJob cannot be trained from its own model, which it would wait for for ever",
        ".spec.model.fineTuneJobRef.name",
    ),
)
"""Of the object as a whole."""


class Spec(Limited):
    """What to train, from what, and what to make of it.

    Immutable but for suspend, retries, limits, checkpoints, stageResources, resources (without `gpus`) and, while suspended, scheduling.
    """

    model_config = ConfigDict(
        json_schema_extra=rules(
            *immutable(*IMMUTABLE),
            # As many processes train, so it determines the global batch. 0 means what its absence means.
            rule(
                "self.?resources.?gpus.orValue(0) == oldSelf.?resources.?gpus.orValue(0)",
                "`resources.gpus` is immutable: make a new object with another name",
                ".resources.gpus",
                "FieldValueForbidden",
            ),
            only_while_suspended("scheduling"),
            rule(
                "has(self.adapter) || !has(self.output.artifacts) || !self.output.artifacts.exists(a, a == 'Adapter')",
                "artifact Adapter needs `adapter`",
                ".output.artifacts",
            ),
            when_made(
                "self.?resources.?gpus.orValue(0) == 0 || self.?parallelism.?processesPerNode.orValue(1) <= self.resources.gpus",
                "must be at most `resources.gpus`: each process needs a GPU of its own",
                ".parallelism.processesPerNode",
            ),
            when_made(
                # An Adapter is refused in words of its own.
                "!has(self.model.artifact) || self.model.artifact in ['Merged', 'Adapter']",
                "must be Merged: a variant is quantized, and a quantized model cannot be fine-tuned",
                ".model.artifact",
            ),
            rule("!has(self.baseQuantization) || has(self.adapter)", "needs `adapter`", ".baseQuantization"),
            rule(
                "!has(self.baseQuantization) || !has(self.parallelism) || has(self.parallelism.ddp)",
                "needs `parallelism.ddp`: a base in 4 bits cannot be sharded",
                ".baseQuantization",
            ),
            unique_names("datasets", optional=False),
            unique_names("variants"),
        )
    )

    model: ModelSource = Field(description="The base model: safetensors, no remote code.")
    datasets: Annotated[list[Dataset], Field(min_length=1, max_length=16)] = Field(
        description="Training data; rows are used in this order, then shuffled by the seed."
    )
    validation: Validation | None = Field(None, description="Absent: no evaluation loss.")
    preparation: Preparation | None = Field(None, description="Filters.")
    method: Method = Field(description="How the model is trained: exactly one member.")
    adapter: Adapter | None = Field(None, description="Absent: full fine-tuning.")
    base_quantization: BaseQuantization | None = Field(
        None,
        description="QLoRA: the frozen base is held in 4 bits (bitsandbytes) while the adapter is trained. Artefacts are made from the whole base.",
    )
    training: Training | None = Field(None, description="Hyperparameters.")
    parallelism: Parallelism | None = Field(None, description="Default: one pod, DDP.")
    resources: TrainingResources | None = Field(None, description="Of each training pod. `gpus` is immutable: as many processes train.")
    stage_resources: Annotated[list[StageResources], Field(max_length=3)] | None = Field(
        None, description="Of the other stages' pods. Default: as `resources`; GPUs for Quantize alone."
    )
    scheduling: StageScheduling | None = Field(None, description="Where pods may run.")
    checkpoints: Checkpoints | None = Field(None, description="How often, how many.")
    retries: int = Field(
        RETRIES,
        ge=0,
        le=100,
        description="Attempts after the first that failures of the program may spend, over all stages; whole again after each new checkpoint.",
    )
    output: Output = Field(description="Where the artefacts go and which are wanted.")
    variants: Annotated[list[Variant], Field(max_length=8)] | None = Field(None, description="Quantized copies to make.")
    suspend: bool = Field(False, description="True: no pod runs; training saves and goes on later.")


def references(spec: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """(kind, name) of all that a spec names: a FineTuneJob and PersistentVolumeClaims."""
    jobs = [spec["model"]["fineTuneJobRef"]["name"]] if "fineTuneJobRef" in spec["model"] else []
    named = [(KIND, name) for name in jobs] + [("PersistentVolumeClaim", claim) for claim in claims(spec)]
    return frozenset(named)
