"""The training processes as a group: as many as were asked for, on the devices that were asked for, and where they wait for one another.

accelerate makes a training of one process, on the CPU, out of each of many where it finds no GPU, and says nothing of it. So what it made
is compared with what was asked for before a weight is loaded.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from tunesmith_contract.stages import TrainInput
from tunesmith_trainer import device
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.training import exchange
from tunesmith_trainer.training.watchdog import Vitals

TYPES = {"GPU": "cuda", "CPU": "cpu"}
# For what hosts do alone while the others wait: a slow store, tokenizing, a checkpoint. Far longer than a collective on GPUs may take.
PATIENCE = timedelta(hours=24)


def require_visible(stage: TrainInput) -> None:
    """Refuse to go on where no GPU is left for this process, of what its launcher saw: StageError(DeviceUnavailable)."""
    if stage.device == "GPU" and not torch.cuda.is_available():
        raise _unavailable("this training process sees no GPU that it can use, though its pod did a moment ago")


def check(stage: TrainInput, settings: Any) -> None:
    """Compare what transformers and accelerate have made (TrainingArguments) with what was asked for: StageError(DeviceUnavailable)."""
    rendezvous = stage.rendezvous
    if wrong := mismatch(rendezvous.nodes * rendezvous.processes_per_node, settings.world_size, TYPES[stage.device], settings.device.type):
        raise _unavailable(wrong)


def mismatch(processes: int, found: int, kind: str, found_kind: str) -> str:
    """Return how a process group differs from what was asked for; empty where it does not."""
    if found_kind != kind:
        return f"training would compute on {found_kind}, and {kind} was asked for"
    if found != processes:
        return f"training has {found} processes that know one another, and {processes} were asked for (nodes x processesPerNode)"
    return ""


def check_placed(stage: TrainInput, parameters: Iterable[torch.Tensor]) -> None:
    """Refuse a model of which a weight lies elsewhere than was asked for: StageError(DeviceUnavailable)."""
    elsewhere = Counter(parameter.device.type for parameter in parameters if parameter.device.type != TYPES[stage.device])
    if elsewhere:
        told = ", ".join(f"{count} on {kind}" for kind, count in elsewhere.items())
        raise _unavailable(f"weights of the model do not lie on {TYPES[stage.device]}: {told}")


def _unavailable(wrong: str) -> StageError:
    return StageError("DeviceUnavailable", f"{device.node()} ({device.describe(device.Facts(driver=device.driver()[0]))}): {wrong}")


class Meeting:
    """Where all training processes wait for one another, for as long as hosts need: no collective on the GPUs is held open meanwhile.

    These have a limit of half an hour, after which NCCL ends the process.
    """

    def __init__(self, vitals: Vitals) -> None:
        """Take what tells the launcher that this process waits. All processes call this together, once there is a process group."""
        self._vitals = vitals
        self._alone = not distributed.is_initialized() or distributed.get_world_size() == 1
        self._group = None if self._alone else distributed.new_group(timeout=PATIENCE, backend="gloo")

    def wait(self, what: str) -> None:
        """Wait until every process is here; `what` says in the launcher's log what is waited for."""
        if not self._alone:
            with self._vitals.waiting(lambda: what):
                distributed.barrier(group=self._group)

    @contextmanager
    def first_on_node(self, what: str) -> Iterator[None]:
        """Let each node's first process do what is in the block before the node's others do it too."""
        first = int(os.environ.get("LOCAL_RANK", "0")) == 0
        if not first:
            self.wait(what)
        yield
        if first:
            self.wait(what)

    def devices(self) -> dict[str, int] | None:
        """Return the GPUs' names and how many processes compute on each kind, None on CPUs. All processes call this together."""
        if not torch.cuda.is_available():
            return None
        name = torch.cuda.get_device_name()
        names = [name]
        if not self._alone:
            names = exchange.gather_everywhere(name, self._group)
        return dict(Counter(names))
