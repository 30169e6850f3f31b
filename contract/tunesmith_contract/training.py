"""Hyperparameters, how a training is spread, its checkpoints, and what it makes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from tunesmith_contract.base import URI, Block, Decimal, OneOf, Overrides, decided, rule, rules

Precision = Literal["BF16", "FP32"]
ArtifactName = Literal["Adapter", "Merged"]


class Training(Block):
    """transformers.TrainingArguments under their own names."""

    num_train_epochs: int = Field(3, ge=1, le=1000, description="Ignored when maxSteps is set.")
    max_steps: int | None = Field(None, ge=1, le=100_000_000, description="Optimizer steps; ends earlier than the epochs would.")
    learning_rate: Decimal | None = decided('Default: "2e-4" with an adapter, "2e-5" without.')
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="How the learning rate changes over the steps."
    )
    warmup_steps: int = Field(0, ge=0, le=1_000_000, description="Optimizer steps in which the learning rate rises to its value.")
    weight_decay: Decimal = Field("0", description="AdamW's weight decay.")
    max_grad_norm: Decimal = Field("1.0", description="Norm that gradients are clipped to.")
    per_device_train_batch_size: int = Field(4, ge=1, le=4096, description="Rows of each process's forward pass.")
    gradient_accumulation_steps: int = Field(1, ge=1, le=65536, description="Forward passes of each process before an optimizer step.")
    gradient_checkpointing: bool = Field(False, description="Compute activations again in the backward pass: less memory, more time.")
    max_length: int = Field(1024, ge=8, le=1048576, description="Tokens of a row or of a packed sequence.")
    logging_steps: int = Field(10, ge=1, le=100000, description="Optimizer steps between two lines of the log.")
    precision: Precision = Field("BF16", description="Number format that is computed in.")
    seed: int = Field(42, ge=0, le=2147483647, description="Of the shuffled rows, of dropout and of new weights.")
    overrides: Overrides = Field(
        {}, description="Further trl.SFTConfig keys in snake_case; values are JSON. Keys that Tunesmith owns are refused by Prepare."
    )


class DDP(Block):
    """torch DistributedDataParallel."""


class FSDP(Block):
    """torch fully_shard (FSDP2)."""


class DeepSpeed(Block):
    """DeepSpeed ZeRO."""

    zero_stage: Literal[2, 3] = Field(description="2: gradients and optimizer state are sharded. 3: the model's weights too.")


class Parallelism(OneOf):
    """How the training is spread: exactly one strategy."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("!has(self.minNodes) || self.minNodes <= (has(self.nodes) ? self.nodes : 1)", "must be at most `nodes`", ".minNodes")
        )
    )
    beside = ("nodes", "min_nodes", "processes_per_node")

    nodes: int = Field(1, ge=1, le=256, description="Training pods, one a node. More than one needs ReadWriteMany volumes.")
    min_nodes: int | None = Field(
        None,
        ge=1,
        le=256,
        description="An attempt for which not all nodes were found within 120 s is followed by one on as many as were found, down to this many, "
        "with more gradient accumulation: the global batch stays the same. Later attempts ask for all nodes again. Default: `nodes`.",
    )
    processes_per_node: int | None = decided("Processes of each pod, at most one a GPU. Default: one a GPU, or 1 on CPU.", ge=1, le=64)
    ddp: DDP | None = Field(None, description="Data parallel: each process holds the whole model.")
    fsdp: FSDP | None = Field(None, description="Weights, gradients and optimizer state are sharded over all processes.")
    deep_speed: DeepSpeed | None = Field(None, description="DeepSpeed ZeRO, with torch's AdamW.")

    @property
    def processes(self) -> int:
        """The processes of all pods."""
        return self.nodes * (self.processes_per_node or 1)


class Checkpoints(Block):
    """Checkpoints of the training."""

    every_steps: int = Field(200, ge=1, le=10_000_000, description="Optimizer steps between two checkpoints.")
    keep: int = Field(2, ge=1, le=100, description="Newest complete ones kept.")
    grace_period_seconds: int = Field(120, ge=10, le=3600, description="Time a training pod gets to save on SIGTERM.")


class Output(Block):
    """Where the artefacts go and which are wanted."""

    uri: URI = Field(description="`pvc://<claim>/<path>`: artefacts go to `<namespace>/<name>/<run>` below it.")
    artifacts: Annotated[list[ArtifactName], Field(min_length=1, max_length=2)] | None = decided(
        "Default: Adapter with an adapter, else Merged. Merged is always made when there are variants."
    )
