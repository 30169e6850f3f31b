"""How the processes of a training share the model's weights and the optimizer's state: what TRL is told of it."""

from __future__ import annotations

import importlib
from typing import Any

from tunesmith_contract.adapters import Adapter
from tunesmith_contract.stages import Run, TrainInput
from tunesmith_contract.training import DDP, Parallelism, Training
from tunesmith_trainer.errors import StageError

# The optimizers whose state can be sharded, gathered and cut again: it has the shape of the weights.
SHARDABLE_OPTIMIZERS = ("adamw_torch_fused", "adamw_torch")


def check(run: Run) -> None:
    """Refuse what does not go together, before a GPU is asked for: StageError (InvalidSettings, InvalidOverrides)."""
    sharded = run.parallelism.fsdp is not None or run.parallelism.deep_speed is not None
    if run.base_quantization is not None and run.adapter is None:
        raise StageError("InvalidSettings", "baseQuantization needs an adapter: weights in 4 bits cannot be trained")
    if run.base_quantization is not None and sharded:
        raise StageError("InvalidSettings", "baseQuantization needs parallelism.ddp: a base in 4 bits cannot be sharded")
    optimizer = run.training.overrides.get("optim")
    if sharded and optimizer is not None and optimizer.strip('" ') not in SHARDABLE_OPTIMIZERS:
        allowed = " or ".join(SHARDABLE_OPTIMIZERS)
        raise StageError("InvalidOverrides", f"training.overrides.optim: {optimizer} cannot be sharded; fsdp and deepSpeed take {allowed}")


def in_effect(stage: TrainInput) -> Parallelism:
    """Return the strategy that an attempt trains with: a single process has nobody to share with, and trains plainly."""
    rendezvous = stage.rendezvous
    if rendezvous.nodes * rendezvous.processes_per_node > 1:
        return stage.parallelism
    return Parallelism(nodes=1, processes_per_node=1, ddp=DDP())


def arguments(strategy: Parallelism, adapter: Adapter | None, training: Training) -> dict[str, Any]:
    """Return the keyword arguments of SFTConfig that a strategy needs."""
    if strategy.fsdp is not None:
        return {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"}}
    if strategy.deep_speed is not None:
        # DeepSpeed computes in one precision by its own rules, with weights in 32 bits kept beside it in shards.
        return {"deepspeed": zero(strategy.deep_speed.zero_stage, adapter), "bf16": training.precision == "BF16"}
    return {}


def reduce_in_32_bits(settings: Any) -> None:
    """Have FSDP, in a TrainingArguments, add up the processes' gradients in 32 bits, as DDP does, and leave what the model returns as it is.

    By itself accelerate takes the precision that is computed in for both: 8 bits for a sum of as many gradients as there are processes, and
    for the log-probabilities that the loss is the sum of.
    """
    if settings.bf16 and settings.fsdp_plugin_args is not None:
        import torch
        from torch.distributed.fsdp import MixedPrecisionPolicy

        settings.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def zero(zero_stage: int, adapter: Adapter | None) -> dict[str, Any]:
    """Return DeepSpeed's configuration; what says auto is filled in by transformers.

    The optimizer is torch's: DeepSpeed's own for the CPU is compiled at its first use in each pod, which takes a minute.
    """
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        # Sums of gradients, over processes and over micro-batches: by default in the precision that is computed in.
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {
            "stage": zero_stage,
            # The default bucket takes 2 GB whatever the model's size.
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            # Small weights are kept whole, but these are gathered as of one type, and an adapter's is not the base's.
            "stage3_param_persistence_threshold": "auto" if adapter is None else 0,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def prepare_libraries(strategy: Parallelism, device: str) -> None:
    """Make the libraries do on a CPU what they do on GPUs; to be called before anything of accelerate is set up."""
    if strategy.fsdp is not None and device == "CPU":
        _let_accelerate_shard_on_cpu()
    if strategy.deep_speed is not None:
        # Collectives through shared memory would be compiled at the start of each process; gloo does without.
        # (`deepspeed.comm.torch` as an attribute is torch itself.)
        vars(importlib.import_module("deepspeed.comm.torch"))["build_shm_op"] = lambda: None


def _let_accelerate_shard_on_cpu() -> None:
    """Have accelerate use FSDP on a CPU: it knows it for accelerators alone and falls back to DDP without a word."""
    from accelerate import state
    from accelerate.utils import DistributedType

    original = state.AcceleratorState.__init__

    def initialize(self: Any, *args: Any, **settings: Any) -> None:
        original(self, *args, **settings)
        plugin = settings.get("fsdp_plugin")
        if self.distributed_type == DistributedType.MULTI_CPU and plugin is not None:
            self.distributed_type = DistributedType.FSDP
            state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if self._mixed_precision != "no":
                plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = plugin

    state.AcceleratorState.__init__ = initialize
