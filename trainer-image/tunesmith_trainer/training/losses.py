"""Losses as sums over tokens: what training and validation report is one sum divided by another, over all processes.

A mean of batches' means would depend on which rows share a batch. Each process adds up its own sums, on its device and without
waiting for it; all processes' are added when a figure is due.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch import distributed

# The label that takes a token out of the loss.
UNTRAINED = -100
# In a checkpoint: the sums of the run up to it.
FILE = "losses.json"


@dataclass(frozen=True)
class Sums:
    """Sums over tokens. All but `real` are over the trained ones, which are those that the loss is taken on."""

    nats: float = 0.0
    """Negative log-likelihood."""
    entropy: float = 0.0
    """Of the model's distribution over the next token, in nats."""
    right: float = 0.0
    """How many tokens were the model's first guess."""
    trained: float = 0.0
    real: float = 0.0
    """Tokens of the rows, trained or not; padding is none."""

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(mine + theirs for mine, theirs in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    @property
    def loss(self) -> float:
        """Nats per trained token; NaN where there is none."""
        return self.nats / self.trained if self.trained else math.nan

    @property
    def metrics(self) -> dict[str, list[float]]:
        """TRL's own metrics of the same tokens, in the form that it averages."""
        count = self.trained or math.nan
        return {"entropy": [self.entropy / count], "mean_token_accuracy": [self.right / count]}


class Tally:
    """One process's sums since they were last taken."""

    def __init__(self, device: torch.device) -> None:
        """Take the device that the model computes on."""
        self._sums = torch.zeros(5, dtype=torch.float64, device=device)

    def add(self, outputs: Any, real: torch.Tensor | int) -> None:
        """Add a forward pass of TRL's fused head (log-probabilities, zero where no loss is taken) over `real` tokens."""
        parts = (-outputs.log_probs, outputs.entropy, outputs.is_top1, outputs.label_mask)
        sums = [part.detach().sum(dtype=torch.float64).to(self._sums.device) for part in parts]
        self._sums += torch.stack([*sums, torch.as_tensor(real, dtype=torch.float64, device=self._sums.device)])

    def take(self) -> Sums:
        """Return all processes' sums and begin again; all processes take part."""
        taken = self._sums.clone()
        self._sums.zero_()
        if distributed.is_initialized():
            distributed.all_reduce(taken)
        return Sums(*taken.tolist())


class Ledger:
    """The sums of a run's training, over all its attempts, and of the steps since the last line of its loss curve."""

    def __init__(self, tally: Tally) -> None:
        """Take the tally that training counts in."""
        self._tally = tally
        self.run: Sums | None = Sums()
        """Of all steps of the run; None where a checkpoint, which an older image wrote, does not have those of the steps before it."""
        self.attempt = Sums()
        """Of this attempt's steps."""
        self.window = Sums()
        """Of the steps since the last line of the loss curve."""

    def settle(self) -> None:
        """Add what was trained since the last call; all processes take part."""
        taken = self._tally.take()
        self.window, self.attempt = self.window + taken, self.attempt + taken
        self.run = self.run + taken if self.run else None

    def close_window(self) -> Sums:
        """Return the sums since the last call, and begin again."""
        window, self.window = self.window, Sums()
        return window

    def save(self, folder: Path) -> None:
        """Write the sums into a checkpoint's folder, once they are settled."""
        if self.run:
            (folder / FILE).write_text(json.dumps({"run": dataclasses.asdict(self.run), "window": dataclasses.asdict(self.window)}))

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint's sums."""
        try:
            saved = json.loads((folder / FILE).read_bytes())
        except FileNotFoundError:
            print(f"the checkpoint has no {FILE}: the training loss of the whole run is unknown", flush=True)
            self.run = None
            return
        self.run, self.window = Sums(**saved["run"]), Sums(**saved["window"])


def real_tokens(inputs: dict[str, Any], rounded: bool) -> torch.Tensor | int:
    """Return how many tokens of a batch are no padding; `rounded`: whether batches are padded to a multiple of some length."""
    if "attention_mask" in inputs:
        return inputs["attention_mask"].sum()  # type: ignore[no-any-return]
    # Rows one after another, each counted from 0. Padding behind the last one is at position 0 throughout.
    places: torch.Tensor = inputs["position_ids"]
    if not rounded:
        return places.numel()
    return torch.where(places > 0, torch.arange(1, places.shape[-1] + 1, device=places.device), 0).max()


def filled_up(rows: Dataset, multiple: int) -> Dataset:
    """Return the rows, with rows behind them that no loss is taken on, so that their number is a multiple.

    accelerate would fill the processes' last batches with rows from the start, which would then count twice.
    """
    missing = -len(rows) % multiple
    if not missing:
        return rows
    filler = rows[0] | {"labels": [UNTRAINED] * len(rows[0]["labels"])}
    return concatenate_datasets([rows, Dataset.from_list([filler] * missing, features=rows.features)])
