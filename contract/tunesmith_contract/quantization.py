"""Quantized copies of a merged model."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from tunesmith_contract.base import Block, Name, rule, rules
from tunesmith_contract.data import DataSource

GROUP_SIZE = 128
"""Of W4A16, where the spec has none."""


class Calibration(Block):
    """What a variant is calibrated on."""

    max_tokens: int = Field(
        1048576, ge=1, le=16777216, description="At most so many tokens, of all rows there are. They need 2 bytes x tokens x hidden size of memory."
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
        None, description="Refused with fewer tokens than the widest quantized layer has inputs, warned of below 16 times as many."
    )
    group_size: int | None = Field(
        None, ge=8, le=4096, description=f"W4A16 only: must divide the width of every linear layer. Default: {GROUP_SIZE}."
    )

    @model_validator(mode="after")
    def _calibrated_one_way(self) -> Self:
        if self.num_calibration_samples is not None and self.calibration is not None:
            raise ValueError("at most one of numCalibrationSamples, calibration may be given")
        return self


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
