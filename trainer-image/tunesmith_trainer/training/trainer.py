"""TRL's SFTTrainer with our checkpoints, and with figures that are sums over tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trl.trainer.sft_trainer import SFTTrainer

from tunesmith_trainer.errors import StageError
from tunesmith_trainer.training import losses
from tunesmith_trainer.training.checkpointed import Checkpointed

# What transformers reckons from this attempt's seconds and all steps of the run.
FALSE_SPEEDS = ("train_samples_per_second", "train_steps_per_second")


class Trainer(Checkpointed, SFTTrainer):
    """SFTTrainer whose losses are sums over tokens, over processes, micro-batches and attempts."""

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

    def settle_more(self) -> None:
        """Take in the sums of the step before, which are on their way from the device."""
        self.ledger.settle()

    def save_more(self, folder: Path) -> None:
        """Save the sums over tokens."""
        self.ledger.save(folder)

    def load_more(self, folder: Path) -> None:
        """Load the sums over tokens."""
        self.ledger.load(folder)
