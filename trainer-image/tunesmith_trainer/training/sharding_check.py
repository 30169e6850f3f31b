"""What each process of a training really holds, measured on its tensors: proof that it is sharded, or quantized, as asked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import distributed
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunesmith_contract.results import Sharding
from tunesmith_contract.stages import TrainInput
from tunesmith_contract.training import Parallelism
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.training.full_state import torch_optimizer, trained
from tunesmith_trainer.training.group import check_placed

# AdamW keeps two figures in 32 bits for each weight.
OPTIMIZER_BYTES = 8


class MeasureSharding(TrainerCallback):
    """Measures at the end of the first step, when gradients and the optimizer's state have been made, and refuses to go on."""

    def __init__(self, stage: TrainInput, strategy: Parallelism) -> None:
        """Take what was asked for."""
        self._stage = stage
        self._strategy = strategy
        self.measured: Sharding | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any, **_: Any) -> None:
        """Refuse a model on another device than was asked for, and a base that is not quantized, before a step is done with it."""
        check_placed(self._stage, model.parameters())
        if self._stage.base_quantization is not None and not any(map(is_quantized, model.parameters())):
            raise StageError("NoEffect", f"baseQuantization {self._stage.base_quantization} was asked for, but no weight is quantized")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any, optimizer: Any, **_: Any) -> None:
        """Measure once; raises StageError(NoEffect) where sharding was asked for and nothing is."""
        if self.measured is None:
            self.measured = measure(model, optimizer)
            check(self.measured, self._strategy, args.world_size)


def is_quantized(parameter: torch.nn.Parameter) -> bool:
    """Return whether a parameter is one of bitsandbytes' with two weights in each byte."""
    return hasattr(parameter, "quant_state") and parameter.dtype == torch.uint8


def measure(model: torch.nn.Module, optimizer: Any) -> Sharding:
    """Return what this process holds, or the process that holds most; all processes take part."""
    parameters = list(model.parameters())
    state = [value for values in torch_optimizer(optimizer).state.values() for value in values.values() if isinstance(value, torch.Tensor)]
    held = torch.tensor([sum(map(held_bytes, parameters)), sum(map(held_bytes, state))], dtype=torch.int64, device=device_of(parameters))
    if distributed.is_initialized():
        distributed.all_reduce(held, op=distributed.ReduceOp.MAX)
    return Sharding(
        parameter_bytes_per_rank=int(held[0]),
        optimizer_bytes_per_rank=int(held[1]),
        total_parameter_bytes=sum(size_of(parameter) * parameter.element_size() for parameter in parameters),
        trainable_parameters=sum(size_of(parameter) for parameter in trained(model).values()),
    )


def device_of(parameters: Iterable[torch.Tensor]) -> torch.device:
    """Return the device that collectives on these parameters take place on."""
    first = next(iter(parameters))
    return first.device


def held_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor that lie in this process."""
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    shard = getattr(tensor, "ds_tensor", None)
    # Between uses ZeRO-3 leaves of a parameter its shard and an empty tensor; what it keeps whole counts twice.
    return tensor.numel() * tensor.element_size() + (shard.numel() * shard.element_size() if shard is not None else 0)


def size_of(parameter: Any) -> int:
    """Return how many elements a parameter has in all processes together."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def check(held: Sharding, strategy: Parallelism, processes: int) -> None:
    """Refuse a training that is not sharded as asked: a process may hold half of what it would hold alone, or a little more.

    Half way between its fair share and the whole: small weights are not cut, and cuts are padded. Raises StageError(NoEffect).
    """
    bound = (1 + 1 / processes) / 2
    zero_stage = strategy.deep_speed.zero_stage if strategy.deep_speed else 0
    asked = f"deepSpeed.zeroStage {zero_stage}" if zero_stage else "fsdp"
    if (strategy.fsdp or zero_stage == 3) and held.parameter_bytes_per_rank > bound * held.total_parameter_bytes:
        _refuse(asked, "weights", held.parameter_bytes_per_rank, held.total_parameter_bytes, processes)
    whole = OPTIMIZER_BYTES * held.trainable_parameters
    if (strategy.fsdp or zero_stage) and held.optimizer_bytes_per_rank > bound * whole:
        _refuse(asked, "the optimizer's state", held.optimizer_bytes_per_rank, whole, processes)


def _refuse(asked: str, what: str, held: int, whole: int, processes: int) -> None:
    message = f"parallelism.{asked} was asked for, but a process holds {held} of {whole} bytes of {what} with {processes} processes"
    raise StageError("NoEffect", f"{message}: it is not sharded")
