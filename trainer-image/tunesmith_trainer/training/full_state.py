"""A training's state in one form for all strategies: whole tensors by parameter name, however they are sharded while it runs.

So a checkpoint does not depend on how many processes wrote it, nor on their strategy. It costs the first process memory for
all that is trained: 4 bytes a trainable parameter for weights in 32 bits and 8 for AdamW's moments, on the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import distributed
from torch.distributed.tensor import DTensor, distribute_tensor

FILE = "optimizer.pt"
# What AdamW keeps for each weight.
MOMENTS = ("exp_avg", "exp_avg_sq")


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def torch_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Return torch's optimizer out of what accelerate and DeepSpeed wrap it in."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def is_zero(optimizer: Any) -> bool:
    """Return whether accelerate wraps DeepSpeed's optimizer, which keeps torch's state in flat shards of many parameters."""
    return hasattr(optimizer.optimizer, "optimizer")


def gather_weights(model: torch.nn.Module, leader: bool) -> dict[str, torch.Tensor]:
    """Return all trained weights and the buffers on the leader's host, nothing elsewhere; all processes take part."""
    named = dict(model.named_parameters(remove_duplicate=False))
    whole = {name: tensor for name, tensor in model.state_dict().items() if name not in named} if leader else {}
    return whole | dict(_on_leader(((name, _whole(parameter)) for name, parameter in trained(model).items()), leader))


def _whole(parameter: torch.nn.Parameter) -> torch.Tensor:
    if isinstance(parameter, DTensor):
        return parameter.full_tensor()
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_get_full_fp32_param

        # The weights in 32 bits, of which the model may hold copies in 16.
        return safe_get_full_fp32_param(parameter)  # type: ignore[no-any-return]
    return parameter.detach()


def _on_leader(tensors: Iterator[tuple[str, torch.Tensor]], leader: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors on the leader's host; the others compute them, since that takes all processes, and drop them."""
    for name, tensor in tensors:
        if leader:
            yield name, tensor.detach().to("cpu")


def gather_optimizer(model: torch.nn.Module, optimizer: Any, leader: bool) -> dict[str, Any]:
    """Return the optimizer's state: `state` by parameter name, and the settings of its `groups`; all processes take part."""
    base = torch_optimizer(optimizer)
    read = _zero_state if is_zero(optimizer) else _plain_state
    if is_zero(optimizer):
        _link_zero(optimizer.optimizer, base)
    state: dict[str, dict[str, Any]] = {}
    for name, parameter in trained(model).items():
        values = read(parameter, base)
        if leader:
            state[name] = {key: value.detach().to("cpu") if isinstance(value, torch.Tensor) else value for key, value in values.items()}
    groups = [{key: value for key, value in group.items() if key != "params"} for group in base.param_groups]
    return {"state": state, "groups": groups}


def _plain_state(parameter: torch.nn.Parameter, base: torch.optim.Optimizer) -> dict[str, Any]:
    values = base.state.get(parameter, {})
    return {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in values.items()}


def _zero_state(parameter: torch.nn.Parameter, base: torch.optim.Optimizer) -> dict[str, Any]:
    from deepspeed.utils import safe_get_full_optimizer_state

    step = next(iter(base.state.values()))["step"]
    # A tensor of its own for each parameter: they are counted up in place.
    return {"step": step.clone()} | {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}


def load_optimizer(model: torch.nn.Module, optimizer: Any, folder: Path) -> None:
    """Give an optimizer the state that a checkpoint's folder holds, each process its share."""
    saved = torch.load(folder / FILE, map_location="cpu", mmap=True, weights_only=True)
    base = torch_optimizer(optimizer)
    if is_zero(optimizer):
        _make_zero_state(optimizer.optimizer, base, saved["state"])
        _link_zero(optimizer.optimizer, base)
        _load_zero(model, saved["state"])
        _load_zero_weights(model, folder)
        for group, settings in zip(base.param_groups, saved["groups"], strict=True):
            group.update(settings)
    else:
        base.load_state_dict(_numbered(model, base, saved))


def _numbered(model: torch.nn.Module, base: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """Return a gathered state as torch's load_state_dict takes it: by number, sharded as the parameters are."""
    names = {id(parameter): name for name, parameter in trained(model).items()}
    parameters = [parameter for group in base.param_groups for parameter in group["params"]]
    state = {}
    for number, parameter in enumerate(parameters):
        values = saved["state"].get(names[id(parameter)], {})
        state[number] = {key: _like(parameter, value) for key, value in values.items()}
    groups = [settings | {"params": group["params"]} for settings, group in zip(saved["groups"], base.state_dict()["param_groups"], strict=True)]
    return {"state": {number: values for number, values in state.items() if values}, "param_groups": groups}


def _like(parameter: torch.nn.Parameter, value: Any) -> Any:
    if isinstance(parameter, DTensor) and isinstance(value, torch.Tensor) and value.shape == parameter.shape:
        # Every process has read the whole: none has to send it.
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


def _link_zero(zero: Any, base: torch.optim.Optimizer) -> None:
    """Tell ZeRO-2's parameters where their state is: by itself it does so for the first of several parameter groups alone."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    if hasattr(zero, "single_partition_of_fp32_groups"):
        for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(parameters, flat, base.state)


def _make_zero_state(zero: Any, base: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Make the state that torch's optimizer would only make at its first step."""
    step = next(iter(state.values()))["step"]
    for flat in getattr(zero, "single_partition_of_fp32_groups", None) or zero.fp32_partitioned_groups_flat:
        counter = step.clone().to(flat.device) if base.defaults.get("fused") else step.clone()
        base.state[flat] = {"step": counter} | {key: torch.zeros_like(flat) for key in MOMENTS}


def _load_zero(model: torch.nn.Module, state: dict[str, Any]) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    for name, parameter in trained(model).items():
        for key in MOMENTS:
            if hasattr(parameter, "ds_id"):
                safe_set_local_optimizer_state(parameter, _shard(parameter, state[name][key]), key)
            else:
                safe_set_full_optimizer_state(parameter, state[name][key], key)


def _load_zero_weights(model: torch.nn.Module, folder: Path) -> None:
    """Give DeepSpeed the weights in 32 bits that it trains: the model was loaded with them rounded to 16."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    # PEFT leaves its name of the adapter out of the names in the file.
    names = {name.replace(".default.", "."): parameter for name, parameter in trained(model).items()}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            for name in names.keys() & set(weights.keys()):
                parameter, value = names[name], weights.get_tensor(name)
                if hasattr(parameter, "ds_id"):
                    safe_set_local_fp32_param(parameter, _shard(parameter, value))
                else:
                    safe_set_full_fp32_param(parameter, value)


def _shard(parameter: Any, value: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a whole tensor, as ZeRO-3 cuts it: flat, in equal parts, the last one padded."""
    size = parameter.ds_tensor.numel()
    padded = torch.zeros(size * distributed.get_world_size(), dtype=torch.float32)
    padded[: value.numel()] = value.flatten()
    return padded.narrow(0, size * distributed.get_rank(), size)
