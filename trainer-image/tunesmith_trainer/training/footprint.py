"""How much memory one step of a training takes: the model's own code, run on tensors that have a shape and no contents.

The model is built as Train builds it, with its real widths, all its layers, the adapter, checkpointing, autocast and TRL's head, and goes
forward and backward over one batch under torch's FakeTensorMode, which works out shapes alone. Each tensor's storage is counted from the
operation that makes it until it is freed. So no architecture has a formula, and a model of 70 billion weights is measured in seconds.
"""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peft import get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoModelForCausalLM, masking_utils
from trl.kernels import chunked_logprob
from trl.trainer.utils import add_fused_lm_head

from tunesmith_contract.stages import Device, Run
from tunesmith_trainer.failure import raise_surroundings
from tunesmith_trainer.model.base import load_config
from tunesmith_trainer.training import arguments
from tunesmith_trainer.training.loop import lora_config

# Overrides by which training keeps other tensors than those that are measured.
OTHER_KEEPING = ("activation_offloading", "torch_compile", "use_liger_kernel", "torchdynamo")


class UnmeasurableError(Exception):
    """The step of this model or of these settings cannot be measured; the text says why."""


@dataclass(frozen=True)
class Batch:
    """What one forward pass gets: `rows` of `length` tokens; packed: all of them in one row, each with positions of its own."""

    rows: int
    length: int
    packed: bool = False

    @property
    def asks_for_mask(self) -> bool:
        """Whether attention needs a mask: some row of a batch is shorter than the longest, or packed rows are kept apart."""
        return self.packed or self.rows > 1

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what TRL's collator makes of it, without contents."""
        shape = (1, self.rows * self.length) if self.packed else (self.rows, self.length)
        ids, labels, other = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        return {"input_ids": ids, "labels": labels, "position_ids" if self.packed else "attention_mask": other}


@dataclass(frozen=True)
class Footprint:
    """One process's tensors in a step, in bytes, as if nothing were sharded; `trainable` counts numbers."""

    weights: int
    """Parameters and buffers, with the adapter's."""
    gradients: int
    trainable: int
    step: int
    """The most that is alive at once beside the weights: what the backward pass needs, what operations make, and the gradients."""
    linears: int
    """Numbers in the linear layers but the head: what a base in 4 bits has in 4 bits."""
    largest_linear: int
    unit: int
    """Bytes of the largest layer that FSDP shards as one."""
    rest: int
    """Bytes outside of these layers: embeddings, the head."""


class Meter(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, and answers what code asks of a tensor's contents.

    The answer is no, but where transformers asks whether attention does without a mask.
    """

    def __init__(self, masks_nothing: bool) -> None:
        """Take whether it does."""
        super().__init__()
        self._masks_nothing = masks_nothing
        self._alive: dict[int, tuple[Any, int]] = {}
        self.now = self.most = 0

    def count(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._alive:
            size = storage.nbytes()
            self._alive[key] = weakref.ref(storage, lambda _: self._forget(key)), size
            self.now += size
            self.most = max(self.most, self.now)

    def _forget(self, key: int) -> None:
        self.now -= self._alive.pop(key)[1]

    def __torch_dispatch__(self, operation: Any, _types: Any, arguments: Any = (), named: Any = None) -> Any:
        """Run an operation and count what it returns."""
        if operation is torch.ops.aten._local_scalar_dense.default:
            if arguments[0].dtype != torch.bool:
                raise UnmeasurableError("its code reads numbers out of tensors")
            return self._masks_nothing and _asked_by(masking_utils.__name__)
        if operation is torch.ops.aten._grouped_mm.default and arguments[0].dtype != torch.bfloat16:
            # Shapes of the product of experts are known to torch in bf16 alone.
            low = [value.bfloat16() if isinstance(value, torch.Tensor) and value.is_floating_point() else value for value in arguments]
            returned = operation(*low, **(named or {})).to(arguments[0].dtype)
        else:
            returned = operation(*arguments, **(named or {}))
        for value in tree_iter(returned):
            if isinstance(value, torch.Tensor):
                self.count(value)
        return returned


def _asked_by(module: str) -> bool:
    """Return whether code of a module is among the callers."""
    frame = sys._getframe(1)
    while frame.f_back:
        frame = frame.f_back
        if frame.f_globals.get("__name__") == module:
            return True
    return False


def measure(folder: Path, run: Run, device: Device, batch: Batch, *, whole: bool) -> Footprint:
    """Measure a step of a run; `whole`: weights and gradients of a process are not sharded. Raises UnmeasurableError."""
    overrides = arguments.parse_overrides(run.training.overrides)
    for name in OTHER_KEEPING:
        if overrides.get(name):
            raise UnmeasurableError(f"training.overrides.{name} changes what is kept in memory")
    given = arguments.training_arguments(run.training, run.method, run.adapter, device, "", validates=False)
    try:
        model = _build(folder, run, overrides.get("gradient_checkpointing_kwargs"), whole=whole)
        return _step(model, batch, device, _Step(mixed=bool(given["bf16"]), whole=whole, again=run.training.gradient_accumulation_steps > 1))
    except UnmeasurableError:
        raise
    except Exception as error:  # a model's code may ask anything that shapes alone do not answer
        raise_surroundings(error)
        raise UnmeasurableError(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}") from error


@dataclass(frozen=True)
class _Step:
    """How a step is done: in mixed precision; with gradients that stay where they are made; on top of those of a micro-batch before."""

    mixed: bool
    whole: bool
    again: bool


def _build(folder: Path, run: Run, checkpointing: dict[str, Any] | None, *, whole: bool) -> Any:
    """Return the model that Train builds (loop.py), without memory for its weights.

    What is sharded is held in the precision that is computed in, of which FSDP and DeepSpeed gather it; else a base that is trained is
    in 32 bits.
    """
    low = torch.bfloat16 if run.training.precision == "BF16" else torch.float32
    config = load_config(folder)
    adapter = lora_config(run.adapter)
    with torch.device("meta"):
        base: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=low if adapter or not whole else torch.float32, trust_remote_code=False
        )
        add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
        model: Any = get_peft_model(base, adapter, autocast_adapter_dtype=whole) if adapter else base
    if run.training.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
        if adapter:
            model.enable_input_require_grads()
    return model.train()


def _step(model: Any, batch: Batch, device: Device, how: _Step) -> Footprint:
    """Go forward and backward, and return what that took."""
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        _leave_meta(model)
        # It would make masks for what it believes is a compiler, whether the rows need them or not.
        stack.enter_context(mock.patch.object(masking_utils, "is_tracing", lambda *_: False))
        # What cannot be measured is reported in one line.
        stack.enter_context(mock.patch.object(logging.getLogger("torch._subclasses.fake_tensor"), "disabled", True))
        if device == "GPU":
            stack.enter_context(_kernels_of_gpus())
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not how.whole:
            for parameter in trained:
                parameter.register_post_accumulate_grad_hook(_drop_gradient)
        meter = stack.enter_context(Meter(masks_nothing=not batch.asks_for_mask))
        for tensor in [*model.parameters(), *model.buffers()]:
            meter.count(tensor)
        weights = meter.now
        if how.again and how.whole:
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
        with torch.autocast("cpu", torch.bfloat16) if how.mixed else nullcontext():
            loss = model(**batch.tensors(), use_cache=False, fused_lm_head=True).loss
        loss.backward()
        del loss
    return Footprint(
        weights=weights,
        gradients=sum(map(_bytes, trained)),
        trainable=sum(parameter.numel() for parameter in trained),
        step=meter.most - weights,
        **_parts(model),
    )


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _leave_meta(model: Any) -> None:
    """Give a model on the device meta tensors without contents that act as those of a CPU; tied weights stay tied."""
    made: dict[int, Any] = {}

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")

    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None:
                made.setdefault(id(old), torch.nn.Parameter(empty(old), requires_grad=old.requires_grad))
                module._parameters[name] = made[id(old)]
        for name, old in module._buffers.items():
            module._buffers[name] = None if old is None else empty(old)


@contextmanager
def _kernels_of_gpus() -> Iterator[None]:
    """Have TRL's head make no more tensors than its kernels do on GPUs, which work within the tile that they are given."""
    with ExitStack() as stack:
        for name in ("_forward_tile", "_backward_tile", "_addmm_fp32"):
            stack.enter_context(mock.patch.object(chunked_logprob, name, lambda *_, **__: None))
        yield


def _parts(model: Any) -> dict[str, int]:
    """Return what sharding and 4 bits need to know of a model's modules."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    frozen = [each for each in base.modules() if isinstance(each, torch.nn.Linear) and each is not head and not each.weight.requires_grad]
    linears = [each.weight.numel() for each in frozen]
    classes = set(getattr(base, "_no_split_modules", None) or ())
    units = [_held(module) for module in base.modules() if type(module).__name__ in classes]
    whole = _held(base)
    return {
        "linears": sum(linears),
        "largest_linear": max(linears, default=0),
        "unit": max(units, default=whole),
        "rest": max(0, whole - sum(units)) if units else 0,
    }


def _held(module: torch.nn.Module) -> int:
    return sum(map(_bytes, module.parameters()))


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
