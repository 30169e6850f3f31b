"""TRL's SFTTrainer with our checkpoints, and with figures that are sums over tokens."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from trl.trainer.sft_trainer import SFTTrainer

from tunesmith_trainer.errors import StageError
from tunesmith_trainer.training import full_state, losses
from tunesmith_trainer.training.group import Meeting
from tunesmith_trainer.training.stopping import EvaluationStopped, diverged
from tunesmith_trainer.training.uploader import Publisher
from tunesmith_trainer.training.watchdog import Vitals

SCHEDULER_NAME = "scheduler.pt"
# What transformers reckons from this attempt's seconds and all steps of the run.
FALSE_SPEEDS = ("train_samples_per_second", "train_steps_per_second")


class Trainer(SFTTrainer):
    """SFTTrainer with checkpoints in the run's layout: saved on the node, complete in the store when their manifest is written.

    Their form is the same for all strategies (full_state.py), so the next attempt may have another number of processes.
    """

    publisher: Publisher
    vitals: Vitals
    meeting: Meeting
    # Time in which no step could be made because of checkpoints.
    blocked_seconds = 0.0
    saved_step = 0
    # Of the step under way, over all processes' gradients; ZeRO has none at times.
    gradient_norm: Any = 0.0

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        """Take what SFTTrainer takes."""
        super().__init__(*arguments, **settings)
        # TRL divides a step's loss by its number of predicted tokens, over all processes and micro-batches, whatever the model's class.
        # transformers counts them where the class's own loss would take the number, and as that one would.
        self.model_accepts_loss_kwargs = self._loss_shifts_labels = True
        if self.eval_dataset is not None:
            self.eval_dataset = losses.filled_up(self.eval_dataset, self.args.world_size * self.args.eval_batch_size)
        self._training, self._validation = losses.Tally(self.args.device), losses.Tally(self.args.device)
        self.ledger = losses.Ledger(self._training)

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **settings: Any) -> Any:
        """Return TRL's loss, and count what it is made of."""
        tally = self._training if self.model.training else self._validation

        def counted(**given: Any) -> Any:
            outputs = model(**given)
            if given.get("fused_lm_head"):
                tally.add(outputs, losses.real_tokens(given, rounded=self.args.pad_to_multiple_of is not None))
            return outputs

        return super().compute_loss(counted, inputs, *arguments, **settings)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log figures that are sums over tokens in place of means of batches' means."""
        if "train_loss" in logs:
            self._end(logs)
        if "loss" in logs:
            self.ledger.settle()
            window = self.ledger.close_window()
            logs |= {"loss": window.loss, "num_tokens": (self.ledger.run or self.ledger.attempt).real}
            self._metrics["train"].update(window.metrics)
        for metrics in self._metrics.values():
            metrics.pop("num_tokens", None)
        super().log(logs, start_time)

    def _end(self, logs: dict[str, float]) -> None:
        """Make the last line of a training that of the whole run, with the loss of the steps since the line before."""
        self.ledger.settle()
        self._metrics["train"].clear()
        for name in ("train_loss", *FALSE_SPEEDS):
            logs.pop(name, None)
        if self.ledger.run:
            logs["train_loss"] = self.ledger.run.loss
        if self.state.global_step >= self.state.max_steps and self.ledger.window.trained:
            logs["loss"] = self.ledger.window.loss

    def evaluation_loop(self, *arguments: Any, **settings: Any) -> Any:
        """Evaluate; the loss is the mean over all validation tokens. Raises StageError(EmptyDataset) where there is none."""
        if self.vitals.phase == "training":
            self.vitals.phase = "evaluating"
        self._validation.take()
        output = super().evaluation_loop(*arguments, **settings)
        sums = self._validation.take()
        if not sums.trained:
            raise StageError("EmptyDataset", "no validation row has a token to take the loss on within training.maxLength")
        output.metrics["eval_loss"] = sums.loss
        self._metrics["eval"].update(sums.metrics)
        return output

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
        self.ledger.settle()
        if self.args.should_save:
            self.ledger.save(Path(output_dir))

    def _load_from_checkpoint(self, *_: Any, **__: Any) -> None:
        """Load nothing: the model was built with the checkpoint's weights."""

    def _load_optimizer_and_scheduler(self, folder: str | None) -> None:
        if folder is not None:
            full_state.load_optimizer(self.model, self.optimizer, Path(folder))
            self.lr_scheduler.load_state_dict(torch.load(Path(folder) / SCHEDULER_NAME, weights_only=True))
            self.ledger.load(Path(folder))

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
