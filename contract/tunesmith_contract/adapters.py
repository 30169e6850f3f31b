"""Weights that are trained beside a frozen model."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tunesmith_contract.base import Block, Decimal, OneOf, decided

BaseQuantization = Literal["NF4"]
ModuleName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.-]+$")]


class LoRA(Block):
    """peft.LoraConfig."""

    r: int = Field(16, ge=1, le=512, description="Rank.")
    lora_alpha: int | None = decided("Scale is loraAlpha / r. Default: 2 r.", ge=1, le=4096)
    lora_dropout: Decimal = Field("0", description="Dropout before the adapter.")
    target_modules: Annotated[list[ModuleName], Field(max_length=32)] = Field(
        ["all-linear"], description="Module names; the special value all-linear means every linear layer but the output's."
    )

    @model_validator(mode="after")
    def _of_some_modules(self) -> Self:
        # No bound of the field: that would refuse objects that the API server has let in.
        if not self.target_modules:
            raise ValueError("targetModules must name a module, or be left out for all-linear")
        return self


class Adapter(OneOf):
    """Parameter-efficient training: exactly one member. Absent adapter: full fine-tuning."""

    lora: LoRA | None = Field(None, description="Low-rank adaptation.")
