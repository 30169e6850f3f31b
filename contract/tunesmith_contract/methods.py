"""How a model is trained."""

from __future__ import annotations

from pydantic import Field

from tunesmith_contract.base import Block, OneOf, decided


class SFT(Block):
    """Supervised fine-tuning (TRL SFTTrainer)."""

    packing: bool = Field(
        False, description="Pack short rows into sequences of maxLength; refused for architectures in which packed rows see one another."
    )
    assistant_only_loss: bool | None = decided("Take the loss on the assistant's answers only. Default: true if all datasets are Messages.")


class Method(OneOf):
    """How the model is trained: exactly one member."""

    sft: SFT | None = Field(None, description="Supervised fine-tuning.")
