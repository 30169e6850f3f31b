"""What a model is served with."""

from __future__ import annotations

from pydantic import Field

from tunesmith_contract.base import Block, OneOf, Overrides, decided


class VLLM(Block):
    """vLLM's engine arguments under their own names."""

    max_model_len: int | None = Field(None, ge=16, le=10_485_760, description="Tokens of prompt and answer. Default: the model's own.")
    tensor_parallel_size: int | None = decided("Default: the GPUs of the pod, or 1.", ge=1, le=64)
    overrides: Overrides = Field({}, description="Further engine arguments in snake_case; values are JSON. Only those on the launcher's allow-list.")


class Engine(OneOf):
    """The serving engine: exactly one member."""

    vllm: VLLM | None = Field(None, description="vLLM.")
