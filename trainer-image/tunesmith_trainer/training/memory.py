"""How much memory a run needs: of each device in a step of training, and of the hosts of its stages' pods; and what is refused for it.

footprint.py measures a step; here is reckoned what the strategy makes of it. docs/memory.md has the method and its error.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith_contract.results import HostMemory
from tunesmith_contract.stages import Device, Pods, Run
from tunesmith_trainer.errors import StageError

if TYPE_CHECKING:
    from tunesmith_trainer.training.footprint import Footprint

# Four bits a weight, and the quantized scale of each 64 of them.
NF4_BYTES = 0.52
# Bytes that an optimizer keeps for each trained number, where it is not AdamW's two figures in 32 bits. Adafactor keeps rows and columns.
ADAMW_BYTES = 8.0
OPTIMIZER_BYTES = (
    dict.fromkeys(("sgd", "adafactor"), 0.1)
    | dict.fromkeys(("adagrad", "rmsprop", "rmsprop_bnb", "lion_32bit", "paged_lion_32bit"), 4.0)
    | dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"), 2.1)
    | dict.fromkeys(("lion_8bit", "paged_lion_8bit", "rmsprop_bnb_8bit"), 1.1)
)
# DeepSpeed's stage3_max_live_parameters: numbers that ZeRO-3 may hold gathered.
ZERO3_LIVE = 1_000_000_000
# What a process takes of its host beside tensors: Python, torch, transformers.
PROCESS = 1 << 30
GIB = 1 << 30
LEVERS = (
    "lower training.perDeviceTrainBatchSize (and raise gradientAccumulationSteps: the global batch stays) or training.maxLength, set "
    "training.gradientCheckpointing to true, shard with parallelism.fsdp or deepSpeed over more GPUs, or train an adapter.lora, with "
    "baseQuantization NF4 where that is too much still"
)


@dataclass(frozen=True)
class Need:
    """Bytes of one process's tensors on its device at the peak of a step."""

    weights: int
    optimizer: int
    step: int
    """What the backward pass needs, gradients, and what operations make."""
    trainable: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.optimizer + self.step


@dataclass(frozen=True)
class Host:
    """Bytes of a pod's host memory: what is needed, about, and what it cannot do without."""

    need: int
    least: int


def device_need(folder: Path, run: Run, device: Device, longest: int) -> Need | str:
    """Return what one process needs in a step over rows of up to `longest` tokens, or in words why that is not known."""
    from tunesmith_trainer.training import footprint

    assert run.method.sft is not None
    training, packs = run.training, run.method.sft.packing
    length = training.max_length if packs else max(1, min(training.max_length, longest))
    one_row = packs and "wrapped" not in training.overrides.get("packing_strategy", "")
    batch = footprint.Batch(training.per_device_train_batch_size, length, packed=one_row)
    try:
        found = footprint.measure(folder, run, device, batch, whole=not is_sharded(run))
    except footprint.UnmeasurableError as error:
        return str(error)
    need = _sharded(found, run) if is_sharded(run) else _whole(found, run, device)
    return _in_four_bits(need, found, run) if run.base_quantization else need


def is_sharded(run: Run) -> bool:
    """Return whether several processes share what one would hold."""
    return run.parallelism.processes > 1 and run.parallelism.ddp is None and (run.parallelism.fsdp or run.parallelism.deep_speed) is not None


def optimizer_bytes(run: Run) -> float:
    """Return the bytes that the run's optimizer keeps for each trained number."""
    return OPTIMIZER_BYTES.get(run.training.overrides.get("optim", "").strip('" '), ADAMW_BYTES)


def _whole(found: Footprint, run: Run, device: Device) -> Need:
    """Each process holds all; with DDP gradients have a second place, the buckets in which they travel.

    On CPUs accelerate uses DDP for a single process too.
    """
    buckets = found.gradients if run.parallelism.processes > 1 or device == "CPU" else 0
    return Need(found.weights, int(found.trainable * optimizer_bytes(run)), found.step + buckets, found.trainable)


def _sharded(found: Footprint, run: Run) -> Need:
    """Return a process's share, and what it holds of the others' for a time.

    `found` has weights in the precision that is computed in, and no gradients. FSDP keeps what it trains in 32 bits and gathers two layers
    and what lies outside of layers; ZeRO keeps weights in 32 bits beside those it computes with.
    """
    processes, zero = run.parallelism.processes, run.parallelism.deep_speed
    low = 2 if run.training.precision == "BF16" else 4
    moments = found.trainable * optimizer_bytes(run) / processes
    gradients = 4 * found.trainable / processes
    trains_all = run.adapter is None
    # A layer's gradients, before they are added up over the processes, in the precision of the weights and in 32 bits.
    travelling = found.unit * (1 + 4 / low) if trains_all else 0
    if zero is None:
        held = (4 / low if trains_all else 1) * found.weights / processes
        gathered = 2 * found.unit + found.rest * (2 if trains_all else 1)
    else:
        master = 4 * found.trainable / processes
        held = found.weights / (processes if zero.zero_stage == 3 else 1) + master
        gathered = min(found.weights, low * ZERO3_LIVE + found.unit) if zero.zero_stage == 3 else 0
    return Need(int(held), int(moments), int(found.step + gradients + gathered + travelling), found.trainable)


def _in_four_bits(need: Need, found: Footprint, run: Run) -> Need:
    """Return the need of a base whose linear layers are in 4 bits, one of them at a time whole."""
    width = 2 if run.training.precision == "BF16" else 4
    spared = int(found.linears * (width - NF4_BYTES))
    return Need(need.weights - spared, need.optimizer, need.step + found.largest_linear * width, need.trainable)


def stored_numbers(folder: Path) -> Counter[str]:
    """Return how many numbers a model's safetensors files hold, by their type as the files name it (`BF16`, `F32`)."""
    from safetensors import safe_open

    numbers: Counter[str] = Counter()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                part = file.get_slice(name)
                numbers[part.get_dtype()] += prod(part.get_shape())
    return numbers


def train_host(run: Run, device: Device, stored: Counter[str], need: Need | str) -> Host:
    """Return what a training pod needs of its host.

    Each process loads the whole model. Weights of the type that is asked for stay in the file, whose pages the kernel can drop again; others
    are converted, into memory. The pod's first process then holds the weights and the optimizer's state of all processes for a checkpoint.
    """
    known = need if isinstance(need, Need) else Need(0, 0, 0)
    each = run.parallelism.processes_per_node
    low = "BF16" if run.training.precision == "BF16" and run.adapter else "F32"
    width = 2 if low == "BF16" else 4
    converted = width * (stored.total() - stored[low])
    if run.base_quantization or (run.parallelism.deep_speed and run.parallelism.deep_speed.zero_stage == 3):
        # bitsandbytes takes weights one at a time, ZeRO-3 shards them as they come.
        converted = 0
    if device == "GPU":
        checkpoint = int(known.trainable * optimizer_bytes(run))
        return Host(max(each * converted, checkpoint) + each * PROCESS, max(each * converted, checkpoint))
    trained = known.trainable * (8 + optimizer_bytes(run)) / (run.parallelism.processes if is_sharded(run) else 1)
    least = each * max(converted, int(trained))
    return Host(max(each * (known.total or converted), least) + each * PROCESS, least)


def finalize_host(run: Run, stored: Counter[str]) -> Host:
    """Return what Finalize needs: nothing for an Adapter alone; for Merged the model in bf16.

    Full fine-tuning's weights are compared with the base before, and converted from 32 bits.
    """
    if "Merged" not in run.output.artifacts and not run.variants:
        return Host(PROCESS, 0)
    converted = 2 * (stored.total() - stored["BF16"])
    model = 2 * stored.total()
    return Host(model + PROCESS, converted) if run.adapter else Host(model + converted + PROCESS, model)


def quantize_host(run: Run, stored: Counter[str]) -> Host | None:
    """Return what Quantize needs: the model in bf16, which comes from its file as it is; None without variants."""
    return Host(2 * stored.total() + PROCESS, 0) if run.variants else None


def hosts(folder: Path, run: Run, device: Device, need: Need | str) -> dict[str, Host]:
    """Return what the pods of each stage need of their hosts."""
    stored = stored_numbers(folder)
    found = {"train": train_host(run, device, stored, need), "finalize": finalize_host(run, stored)}
    quantize = quantize_host(run, stored)
    return found | ({"quantize": quantize} if quantize else {})


def shown(found: dict[str, Host]) -> HostMemory:
    """Return the hosts' needs as a result has them."""
    return HostMemory(**{stage: host.need for stage, host in found.items()})


def check(run: Run, pods: Pods | None, need: Need | str, found: dict[str, Host]) -> None:
    """Refuse a run that its GPUs or its pods have no room for: StageError(InsufficientMemory)."""
    if pods is None:
        return
    room = pods.train.gpu_memory
    if room and isinstance(need, Need) and need.total > room:
        raise StageError("InsufficientMemory", f"{describe(need)}; resources.gpuMemory is {size(room)}: {LEVERS}")
    each = run.parallelism.processes_per_node
    for stage, host in found.items():
        limit = getattr(pods, stage).memory
        if limit is None or host.least <= limit:
            continue
        field = "resources.memory" if stage == "train" else f"resources.memory, or stageResources for {stage.capitalize()},"
        how = f", with {each} processes that each load the whole model" if stage == "train" and each > 1 else ""
        advice = "; an adapter.lora, or fewer processes in each pod, need less" if stage == "train" else ""
        raise StageError(
            "InsufficientMemory",
            f"a pod of {stage.capitalize()} needs at least {size(host.least)} of its host's memory{how}, about {size(host.need)} in all; "
            f"{field} is {size(limit)}: raise it{advice}",
        )


def describe(need: Need | str) -> str:
    """Return in words what each process needs of its device."""
    if isinstance(need, str):
        return f"unknown: {need}"
    parts = f"weights {size(need.weights)}, the optimizer's state {size(need.optimizer)}, activations and gradients {size(need.step)}"
    return f"a process of Train needs about {size(need.total)} of its device's memory for tensors ({parts})"


def size(count: float) -> str:
    """Return bytes for people: `61.3 GiB`, `512 MiB`."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / (1 << 20):.0f} MiB"
