"""FineTuneJob's spec. docs/DESIGN.md section 1 tells what each block is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from tunesmith.api.blocks import (
    URI,
    Block,
    DataSource,
    Decimal,
    Limited,
    ModelSource,
    Name,
    Overrides,
    Quantity,
    Resources,
    StageScheduling,
    immutable,
    only_while_suspended,
    rule,
    rules,
    union,
    unique_names,
    when_made,
)
from tunesmith.workload.podspec import claims

GPUMemory = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,6}(\.[0-9]{1,3})?(Mi|Gi|Ti|M|G|T)$", min_length=1, max_length=32)]

KIND = "FineTuneJob"


class Dataset(DataSource):
    """One training dataset."""

    name: Name = Field(description="Unique in the list; shown in status and errors.")


class Validation(Block):
    """Held-out rows for the evaluation loss during training."""

    model_config = ConfigDict(json_schema_extra=rules(union("fraction", "dataset")))

    fraction: Decimal | None = Field(
        None,
        description="Share of the training rows held out, above 0 and below 0.5.",
        json_schema_extra=rules(rule("double(self) > 0.0 && double(self) < 0.5", "must be above 0 and below 0.5")),
    )
    dataset: DataSource | None = Field(None, description="A dataset of its own.")


class Preparation(Block):
    """Filters applied to the training rows."""

    min_tokens: int | None = Field(None, ge=1, le=1048576, description="Rows with fewer tokens are dropped.")
    drop_patterns: Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=32)] | None = Field(
        None, description="Rows whose text matches one of these Python regular expressions are dropped."
    )


class SFT(Block):
    """Supervised fine-tuning (TRL SFTTrainer)."""

    packing: bool | None = Field(
        None,
        description="Pack short rows into sequences of maxLength; refused for architectures in which packed rows see one another. Default: false.",
    )
    assistant_only_loss: bool | None = Field(
        None, description="Take the loss on the assistant's answers only. Default: true if all datasets are Messages."
    )


class Method(Block):
    """How the model is trained: exactly one member."""

    model_config = ConfigDict(json_schema_extra=rules(union("sft")))

    sft: SFT | None = Field(None, description="Supervised fine-tuning.")


class LoRA(Block):
    """peft.LoraConfig."""

    r: int | None = Field(None, ge=1, le=512, description="Rank. Default: 16.")
    lora_alpha: int | None = Field(None, ge=1, le=4096, description="Scale is loraAlpha / r. Default: 2 r.")
    lora_dropout: Decimal | None = Field(None, description="Dropout before the adapter. Default: 0.")
    target_modules: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.-]+$")]], Field(max_length=32)] | None
    ) = Field(None, description="Module names; default and special value: all-linear.")


class Adapter(Block):
    """Parameter-efficient training: exactly one member. Absent adapter: full fine-tuning."""

    model_config = ConfigDict(json_schema_extra=rules(union("lora")))

    lora: LoRA | None = Field(None, description="Low-rank adaptation.")


class Training(Block):
    """transformers.TrainingArguments under their own names."""

    num_train_epochs: int | None = Field(None, ge=1, le=1000, description="Default: 3. Ignored when maxSteps is set.")
    max_steps: int | None = Field(None, ge=1, le=100_000_000, description="Optimizer steps; ends earlier than the epochs would.")
    learning_rate: Decimal | None = Field(None, description='Default: "2e-4" with an adapter, "2e-5" without.')
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] | None = Field(None, description="Default: linear.")
    warmup_steps: int | None = Field(None, ge=0, le=1_000_000, description="Default: 0.")
    weight_decay: Decimal | None = Field(None, description="Default: 0.")
    max_grad_norm: Decimal | None = Field(None, description="Default: 1.0.")
    per_device_train_batch_size: int | None = Field(None, ge=1, le=4096, description="Rows of each process's forward pass. Default: 4.")
    gradient_accumulation_steps: int | None = Field(None, ge=1, le=65536, description="Default: 1.")
    gradient_checkpointing: bool | None = Field(None, description="Default: false.")
    max_length: int | None = Field(None, ge=8, le=1048576, description="Tokens of a row or of a packed sequence. Default: 1024.")
    logging_steps: int | None = Field(None, ge=1, le=100000, description="Default: 10.")
    precision: Literal["BF16", "FP32"] | None = Field(None, description="Default: BF16.")
    seed: int | None = Field(None, ge=0, le=2147483647, description="Default: 42.")
    overrides: Overrides | None = Field(
        None, description="Further trl.SFTConfig keys in snake_case; values are JSON. Keys that Tunesmith owns are refused by Prepare."
    )


class DDP(Block):
    """torch DistributedDataParallel."""


class FSDP(Block):
    """torch fully_shard (FSDP2)."""


class DeepSpeed(Block):
    """DeepSpeed ZeRO."""

    zero_stage: Literal[2, 3] = Field(description="2: gradients and optimizer state are sharded. 3: the model's weights too.")


class Parallelism(Block):
    """How the training is spread: exactly one strategy."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            union("ddp", "fsdp", "deepSpeed"),
            rule("!has(self.minNodes) || self.minNodes <= (has(self.nodes) ? self.nodes : 1)", "must be at most `nodes`", ".minNodes"),
        )
    )

    nodes: int | None = Field(None, ge=1, le=256, description="Training pods, one a node. Default: 1. More than one needs ReadWriteMany volumes.")
    min_nodes: int | None = Field(
        None,
        ge=1,
        le=256,
        description="An attempt for which not all nodes were found within 120 s is followed by one on as many as were found, down to this many, "
        "with more gradient accumulation: the global batch stays the same. Later attempts ask for all nodes again. Default: `nodes`.",
    )
    processes_per_node: int | None = Field(
        None, ge=1, le=64, description="Processes of each pod, at most one a GPU. Default: one a GPU, or 1 on CPU."
    )
    ddp: DDP | None = Field(None, description="Data parallel: each process holds the whole model.")
    fsdp: FSDP | None = Field(None, description="Weights, gradients and optimizer state are sharded over all processes.")
    deep_speed: DeepSpeed | None = Field(None, description="DeepSpeed ZeRO, with torch's AdamW.")


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


class Checkpoints(Block):
    """Checkpoints of the training."""

    every_steps: int | None = Field(None, ge=1, le=10_000_000, description="Default: 200.")
    keep: int | None = Field(None, ge=1, le=100, description="Newest complete ones kept. Default: 2.")
    grace_period_seconds: int | None = Field(None, ge=10, le=3600, description="Time a training pod gets to save on SIGTERM. Default: 120.")


class Output(Block):
    """Where the artefacts go and which are wanted."""

    uri: URI = Field(description="`pvc://<claim>/<path>`: artefacts go to `<namespace>/<name>/<run>` below it.")
    artifacts: Annotated[list[Literal["Adapter", "Merged"]], Field(min_length=1, max_length=2)] | None = Field(
        None, description="Default: Adapter with an adapter, else Merged. Merged is always made when there are variants."
    )


class Calibration(Block):
    """What a variant is calibrated on."""

    max_tokens: int | None = Field(
        None,
        ge=1,
        le=16777216,
        description="At most so many tokens, of all rows there are. They need 2 bytes x tokens x hidden size of memory. Default: 1048576.",
    )
    dataset: DataSource | None = Field(None, description="Rows of its own. Default: the training rows.")


class Quantization(Block):
    """llmcompressor oneshot."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!(has(self.numCalibrationSamples) && has(self.calibration))", "at most one of `numCalibrationSamples`, `calibration`", ".calibration"
            )
        )
    )

    scheme: Literal["W8A8", "W4A16"] = Field(description="compressed-tensors scheme: bits of weights and activations.")
    algorithm: Literal["SmoothQuantGPTQ", "GPTQ"] = Field(description="SmoothQuantGPTQ is for W8A8.")
    num_calibration_samples: int | None = Field(None, ge=1, le=4096, description="Training rows calibrated on, instead of `calibration`.")
    calibration: Calibration | None = Field(
        None,
        description="Refused with fewer tokens than the widest quantized layer has inputs, warned of below 16 times as many.",
    )
    group_size: int | None = Field(None, ge=8, le=4096, description="W4A16 only: must divide the width of every linear layer. Default: 128.")


class Variant(Block):
    """A quantized copy of the merged model."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!(self.quantization.scheme == 'W4A16' && self.quantization.algorithm == 'SmoothQuantGPTQ')",
                "SmoothQuantGPTQ needs scheme W8A8",
                ".quantization.algorithm",
            ),
            rule(
                "!has(self.quantization.groupSize) || self.quantization.scheme == 'W4A16'", "groupSize needs scheme W4A16", ".quantization.groupSize"
            ),
        )
    )

    name: Name = Field(description="Name of the artefact. Lower case, so it cannot be Adapter or Merged.")
    quantization: Quantization = Field(description="How the copy is quantized.")


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
    base_quantization: Literal["NF4"] | None = Field(
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
    retries: int | None = Field(
        None,
        ge=0,
        le=100,
        description="Attempts after the first that failures of the program may spend, over all stages; whole again after each new checkpoint. "
        "Default: 3.",
    )
    output: Output = Field(description="Where the artefacts go and which are wanted.")
    variants: Annotated[list[Variant], Field(max_length=8)] | None = Field(None, description="Quantized copies to make.")
    suspend: bool | None = Field(None, description="True: no pod runs; training saves and goes on later. Default: false.")


def references(spec: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """(kind, name) of all that a spec names: a FineTuneJob and PersistentVolumeClaims."""
    jobs = [spec["model"]["fineTuneJobRef"]["name"]] if "fineTuneJobRef" in spec["model"] else []
    named = [(KIND, name) for name in jobs] + [("PersistentVolumeClaim", claim) for claim in claims(spec)]
    return frozenset(named)
