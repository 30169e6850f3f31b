"""When a training saves, and when it stops: all its processes at one step, whatever one of them was told or has met."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunesmith_trainer.errors import StageError
from tunesmith_trainer.training.uploader import Publisher
from tunesmith_trainer.training.watchdog import Vitals


class Flag(Protocol):
    """Something that a signal can set."""

    is_set: bool


# What a process tells the others after each step; the highest word goes.
GO_ON, STOP, FAIL, DIVERGED = 0, 1, 2, 3


class EvaluationStopped(Exception):
    """Raised in all processes at one batch of an evaluation, since one of them has to stop."""


class Training(Protocol):
    """What is read of the trainer."""

    publisher: Publisher
    vitals: Vitals
    gradient_norm: Any


def diverged(what: str, step: int) -> StageError:
    """Return the failure of a training whose numbers ran off: the next attempt would take the same steps."""
    return StageError("Diverged", f"training diverged: {what} is not finite at step {step}; lower learningRate, or raise warmupSteps")


class SaveAndStop(TrainerCallback):
    """Saves at the steps asked for and at the end; when any process was told to stop, all save at one step and stop.

    transformers' own save on SIGTERM sets a flag in the process that got the signal alone, so that a drained pod enters
    the save while the others wait for it in a gradient reduction. A checkpoint that could not be published ends all alike.
    """

    def __init__(self, trainer: Training, stop: Flag, every_steps: int) -> None:
        """Take the trainer that it is for, the flag that SIGTERM sets, and how often to save."""
        self._trainer = trainer
        self._publisher, self._vitals = trainer.publisher, trainer.vitals
        self._stop = stop
        self._every_steps = every_steps
        self.interrupted = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Tell that training has begun."""
        self._vitals.begin(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Decide whether this step is saved and whether it is the last."""
        self._vitals.step = state.global_step
        stop = self._heed(args.device, state.global_step)
        ended = state.global_step >= state.max_steps
        self.interrupted = stop and not ended
        control.should_save = ended or self.interrupted or state.global_step % self._every_steps == 0
        if self.interrupted:
            control.should_training_stop = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep a process that has to stop from evaluating first."""
        if self.interrupted:
            control.should_evaluate = False

    def on_prediction_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End an evaluation where a process has to stop: it may take longer than the grace period."""
        if self._heed(args.device, state.global_step):
            self.interrupted = True
            raise EvaluationStopped

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any) -> None:
        """Refuse a model that is lost: no number that is not finite may go into a result."""
        if self._vitals.phase == "evaluating":
            self._vitals.phase = "training"
        if not math.isfinite(metrics["eval_loss"]):
            raise diverged("the validation loss", state.global_step)

    def _heed(self, device: torch.device, step: int) -> bool:
        """Return whether a process was told to stop; raises StageError where one of them cannot go on."""
        word = self._agree(device)
        if word == DIVERGED:
            raise diverged("the gradient", step)
        if word == FAIL:
            self._publisher.wait()
            raise StageError("PeerUnavailable", "another training process could not publish its checkpoint; see its result")
        return word == STOP

    def _agree(self, device: torch.device) -> int:
        word = FAIL if self._publisher.failed else STOP if self._stop.is_set else GO_ON
        # Once a gradient is not finite no weight ever is again, and transformers hides such losses from the log. ZeRO tells -1 of it.
        word = word if 0 <= self._trainer.gradient_norm < math.inf else DIVERGED
        if not distributed.is_initialized():
            return word
        words = torch.tensor(word, device=device)
        distributed.all_reduce(words, op=distributed.ReduceOp.MAX)
        return int(words.item())
