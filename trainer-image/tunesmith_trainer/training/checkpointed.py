"""Checkpoints in the run's layout, for any of TRL's trainers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tunesmith_trainer.training import full_state
from tunesmith_trainer.training.group import Meeting
from tunesmith_trainer.training.stopping import EvaluationStopped, diverged
from tunesmith_trainer.training.uploader import Publisher
from tunesmith_trainer.training.watchdog import Vitals

if TYPE_CHECKING:
    from transformers import Trainer as Base
else:
    Base = object

SCHEDULER_NAME = "scheduler.pt"


class Checkpointed(Base):
    """Mixin before a trainer of TRL's: saved on the node, complete in the store when the manifest is written.

    The form is the same for all strategies (full_state.py), so the next attempt may have another number of processes. A method's own
    state, beyond weights, optimizer and scheduler, is kept by its `save_more` and `load_more`.
    """

    publisher: Publisher
    vitals: Vitals
    meeting: Meeting
    # Time in which no step could be made because of checkpoints.
    blocked_seconds = 0.0
    saved_step = 0
    # Of the step under way, over all processes' gradients; ZeRO has none at times.
    gradient_norm: Any = 0.0

    def settle_more(self) -> None:
        """Finish sums that are still pending; every process calls this before the first one saves."""

    def save_more(self, folder: Path) -> None:
        """Save the method's own state in a checkpoint's folder."""

    def load_more(self, folder: Path) -> None:
        """Load what `save_more` saved."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no card: Finalize writes the one that the user reads."""

    def create_optimizer(self, *arguments: Any, **settings: Any) -> torch.optim.Optimizer:
        """Make the optimizer without groups that hold nothing (an adapter has no weights that do not decay): DeepSpeed drops them.

        So a state has the same groups, and the scheduler as many, whatever the strategy.
        """
        optimizer = super().create_optimizer(*arguments, **settings)
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    def _run_epoch(self, *arguments: Any, **settings: Any) -> None:
        # transformers would make one more step where training goes on from the last one.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*arguments, **settings)  # type: ignore[no-untyped-call]

    def _evaluate(self, *arguments: Any, **settings: Any) -> dict[str, float]:
        try:
            return super()._evaluate(*arguments, **settings)
        except EvaluationStopped:
            # Half an evaluation is none: TRL would tell what it measured with the next figures of training.
            self._metrics["eval"].clear()
            self.control.should_save = self.saved_step < self.state.global_step
            self.control.should_training_stop = True
            return {}

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        self.gradient_norm = 0.0 if norm is None else norm
        return norm

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained weights whole, in 32 bits."""
        weights = full_state.gather_weights(self.model, self.args.should_save)
        if self.args.should_save:
            # What the last step made of them has gone through no gradient yet.
            if not all(bool(weights[name].isfinite().all()) for name in full_state.trained(self.model)):
                raise diverged("a weight", self.state.global_step)
            self._save(output_dir, state_dict=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self.meeting.wait("the first process, which writes the weights")
        gathered = full_state.gather_optimizer(self.model, self.optimizer, self.args.should_save)
        if self.args.should_save:
            torch.save(gathered, Path(output_dir) / full_state.FILE)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)
        self.settle_more()
        if self.args.should_save:
            self.save_more(Path(output_dir))

    def _load_from_checkpoint(self, *_: Any, **__: Any) -> None:
        """Load nothing: the model was built with the checkpoint's weights."""

    def _load_optimizer_and_scheduler(self, folder: str | None) -> None:
        if folder is not None:
            full_state.load_optimizer(self.model, self.optimizer, Path(folder))
            self.lr_scheduler.load_state_dict(torch.load(Path(folder) / SCHEDULER_NAME, weights_only=True))
            self.load_more(Path(folder))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        began = time.monotonic()
        self.vitals.phase = "saving"
        self.publisher.wait()
        self.meeting.wait("the checkpoint before, which is on its way to the store")
        super()._save_checkpoint(model, trial)  # type: ignore[no-untyped-call]
        # Every process writes its own part; nothing must be published before the last one has.
        self.meeting.wait("the others, which save")
        self.publisher.start(self.state.global_step)
        self.saved_step = self.state.global_step
        self.vitals.phase = "training"
        self.blocked_seconds += time.monotonic() - began
