"""The blocks of an object's spec that stages are given, with its names and shapes; and what all models are made of.

Defaults are the operator's and come filled in: what may be absent here is what has none.

Names are snake_case in Python and camelCase in JSON; an unknown key is refused, so that a misspelt setting never trains silently
with a default.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

DecimalString = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$")]
DataFormat = Literal["Messages", "Alpaca", "PromptCompletion", "Text"]
ArtifactName = Literal["Adapter", "Merged"]
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

    packing: bool
    assistant_only_loss: bool


class Method(OneOf):
    """How the model learns."""

    sft: Sft | None = None


class Lora(Contract):
    """A LoRA adapter, with PEFT's names."""

    r: Positive
    lora_alpha: Positive
    lora_dropout: DecimalString
    target_modules: list[str] = Field(min_length=1)


BaseQuantization = Literal["NF4"]


class Adapter(OneOf):
    """The weights that are trained beside the frozen model; no adapter means full fine-tuning."""

    lora: Lora | None = None


class Training(Contract):
    """Settings of the training loop, with the names of transformers' TrainingArguments."""

    num_train_epochs: Positive
    max_steps: Positive | None = None
    learning_rate: DecimalString
    per_device_train_batch_size: Positive
    gradient_accumulation_steps: Positive
    max_length: Positive
    warmup_steps: Natural
    lr_scheduler_type: str
    weight_decay: DecimalString
    max_grad_norm: DecimalString
    logging_steps: Positive
    precision: Literal["BF16", "FP32"]
    seed: Natural
    gradient_checkpointing: bool
    overrides: dict[str, str]


class Ddp(Contract):
    """Every process holds the whole model and gradients are averaged."""


class Fsdp(Contract):
    """torch's FSDP2: weights, gradients and optimizer state are sharded by parameter."""


class DeepSpeed(Contract):
    """DeepSpeed ZeRO: stage 2 shards gradients and optimizer state, stage 3 the weights too."""

    zero_stage: Literal[2, 3]


class Parallelism(Contract):
    """How many pods train, how many processes in each, and how they share the work."""

    nodes: Positive
    processes_per_node: Positive
    ddp: Ddp | None = None
    fsdp: Fsdp | None = None
    deep_speed: DeepSpeed | None = None

    @model_validator(mode="after")
    def _one_strategy(self) -> Parallelism:
        if sum(member is not None for member in (self.ddp, self.fsdp, self.deep_speed)) > 1:
            raise ValueError("at most one of ddp, fsdp, deepSpeed may be given")
        return self

    @property
    def processes(self) -> int:
        """The processes of all pods."""
        return self.nodes * self.processes_per_node


class Output(Contract):
    """Where artefacts go and which are asked for."""

    uri: str
    artifacts: list[ArtifactName]


class Calibration(Contract):
    """What a variant is calibrated on: at most so many tokens, of the training rows or of rows of its own."""

    max_tokens: Positive
    dataset: DataSource | None = None


class Quantization(Contract):
    """How a variant's weights are quantized; calibrated on a number of training rows, or as `calibration` says."""

    scheme: Literal["W8A8", "W4A16"]
    algorithm: Literal["SmoothQuantGPTQ", "GPTQ"]
    num_calibration_samples: Positive | None = None
    calibration: Calibration | None = None
    group_size: Positive | None = None

    @model_validator(mode="after")
    def _calibrated_one_way(self) -> Quantization:
        if (self.num_calibration_samples is None) == (self.calibration is None):
            raise ValueError("exactly one of numCalibrationSamples, calibration must be given")
        return self


class Variant(Contract):
    """One quantized copy of the merged model."""

    name: str
    quantization: Quantization


class Checkpoints(Contract):
    """How often training saves and how much it keeps."""

    every_steps: Positive
    keep: Positive
    grace_period_seconds: Positive
