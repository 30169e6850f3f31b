"""The training loop: TRL's SFTTrainer on the rows that Prepare wrote, with our checkpoints and our way to stop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers.trainer
from accelerate import PartialState
from datasets import Dataset, Features, List, Value
from peft import LoraConfig
from torch import distributed
from transformers import AutoModelForCausalLM, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from tunesmith_trainer import chat, checkpoint, dataset, store
from tunesmith_trainer.contract import Checkpoint, TrainAnswer, TrainInput
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.model import load_tokenizer
from tunesmith_trainer.progress import MetricsFile, ProgressReport
from tunesmith_trainer.settings import training_arguments
from tunesmith_trainer.spec import Adapter

# The label that takes a token out of the loss.
UNTRAINED = -100
FEATURES = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})


class Flag(Protocol):
    """Something that a signal can set."""

    is_set: bool


class SaveAndStop(TrainerCallback):
    """Saves at the steps asked for and at the end; when any process was told to stop, all save at one step and stop.

    transformers' own save on SIGTERM sets a flag in the process that got the signal alone, so that a drained pod enters
    the save while the others wait for it in a gradient reduction.
    """

    def __init__(self, stop: Flag, every_steps: int) -> None:
        """Take the flag that SIGTERM sets and how often to save."""
        self._stop = stop
        self._every_steps = every_steps
        self.interrupted = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Decide whether this step is saved and whether it is the last."""
        ended = state.global_step >= state.max_steps
        self.interrupted = self._any_stopped(args.device) and not ended
        control.should_save = ended or self.interrupted or state.global_step % self._every_steps == 0
        if self.interrupted:
            control.should_training_stop = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep a process that has to stop from evaluating first."""
        if self.interrupted:
            control.should_evaluate = False

    def _any_stopped(self, device: torch.device) -> bool:
        if not distributed.is_initialized():
            return self._stop.is_set
        flag = torch.tensor(int(self._stop.is_set), device=device)
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
        return bool(flag.item())


class Trainer(SFTTrainer):
    """SFTTrainer with checkpoints in the run's layout, complete when their manifest is written."""

    run_folder: Path
    keep: int

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no card: Finalize writes the one that the user reads."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[no-untyped-call]
        # Every process writes its random state; the manifest must not be written before the last one has.
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            store.write_manifest(self.saved_folder())
            checkpoint.prune(self.run_folder, self.keep)

    def saved_folder(self) -> Path:
        """Return where the checkpoint of the current step lies."""
        return Path(str(self.args.output_dir)) / f"{checkpoint.PREFIX}-{self.state.global_step}"


def encoded_rows(path: str, model_folder: str, only_assistant: bool) -> Iterator[dict[str, list[int]]]:
    """Yield a data file's rows as token ids and labels."""
    tokenizer = load_tokenizer(Path(model_folder))
    template = chat.training_template(tokenizer) if only_assistant else None
    for row in dataset.read_normal(Path(path)):
        encoded = chat.encode(tokenizer, row, template)
        pairs = zip(encoded.ids, encoded.trained, strict=True)
        yield {"input_ids": encoded.ids, "labels": [token if trained else UNTRAINED for token, trained in pairs]}


def load_rows(stage: TrainInput, name: str) -> Dataset | None:
    """Return a data file of the run as token ids and labels, or None where the run has no such file."""
    path = store.path_of(stage.run_uri) / "data" / name
    if not path.is_file():
        return None
    assert stage.method.sft is not None
    arguments = {
        "path": str(path),
        "model_folder": str(store.path_of(stage.model.uri)),
        "only_assistant": stage.method.sft.assistant_only_loss,
    }
    cache = str(Path(os.environ["TUNESMITH_SCRATCH"]) / "datasets")
    # One process of each node encodes, the others read what it wrote.
    with PartialState().local_main_process_first():
        return Dataset.from_generator(encoded_rows, features=FEATURES, gen_kwargs=arguments, cache_dir=cache)


def load_model(stage: TrainInput) -> Any:
    """Return the base model: in bf16 where it stays frozen, in 32 bits where it is trained whole.

    The small steps of full fine-tuning vanish when added to a bf16 weight; an adapter's weights are in 32 bits anyway.
    """
    frozen = stage.adapter is not None
    return AutoModelForCausalLM.from_pretrained(
        store.path_of(stage.model.uri),
        dtype=torch.bfloat16 if frozen and stage.training.precision == "BF16" else torch.float32,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )


def lora_config(adapter: Adapter | None) -> LoraConfig | None:
    """Return PEFT's configuration of an adapter; `all-linear` means all linear layers but the head."""
    if adapter is None or adapter.lora is None:
        return None
    lora = adapter.lora
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=float(lora.lora_dropout),
        target_modules="all-linear" if lora.target_modules == ["all-linear"] else lora.target_modules,
        task_type="CAUSAL_LM",
    )


def restore_to_numbered_cpu(storage: Any, location: str) -> Any:
    """Restore a tensor to `cpu:<n>`, accelerate's name for a process's CPU, which torch.load does not know."""
    return storage if location.startswith("cpu:") else None


def build(stage: TrainInput, callbacks: list[TrainerCallback]) -> Trainer:
    """Return the trainer of a stage, ready to train."""
    torch.serialization.register_package(100, lambda _: None, restore_to_numbered_cpu)
    # transformers names checkpoints `checkpoint-<step>`; the run's layout says `step-<step>`.
    vars(transformers.trainer)["PREFIX_CHECKPOINT_DIR"] = checkpoint.PREFIX
    run_folder = store.path_of(stage.run_uri)
    output = checkpoint.attempt_folder(run_folder, stage.attempt)
    has_validation = (run_folder / "data" / "validation.jsonl").is_file()
    arguments = training_arguments(stage.training, stage.method, stage.adapter, stage.device, str(output), validates=has_validation)
    if stage.device == "CPU":
        arguments["ddp_backend"] = "gloo"
    arguments.setdefault("ddp_find_unused_parameters", False)
    settings = SFTConfig(**arguments)
    trainer = Trainer(
        model=load_model(stage),
        args=settings,
        processing_class=load_tokenizer(store.path_of(stage.model.uri)),
        train_dataset=load_rows(stage, "train.jsonl"),
        eval_dataset=load_rows(stage, "validation.jsonl"),
        peft_config=lora_config(stage.adapter),
        callbacks=callbacks,
    )
    trainer.run_folder, trainer.keep = run_folder, stage.checkpoints.keep
    return trainer


def train(stage: TrainInput, stop: Flag) -> TrainAnswer:
    """Train from the newest checkpoint to the end; raises StageError(Interrupted) naming the checkpoint it saved."""
    run_folder = store.path_of(stage.run_uri)
    resumed = checkpoint.newest(run_folder)
    resumed_step = checkpoint.step_of(resumed) if resumed else 0
    saving = SaveAndStop(stop, stage.checkpoints.every_steps)
    metrics = MetricsFile(run_folder / "metrics.jsonl", resumed_step)
    trainer = build(stage, [saving, metrics, ProgressReport()])
    output = trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    saved = trainer.saved_folder() if trainer.state.global_step > resumed_step else resumed
    assert saved is not None
    made = Checkpoint(uri=store.uri_of(saved), step=trainer.state.global_step)
    seconds = float(output.metrics.get("train_runtime", 0.0))
    if saving.interrupted:
        # The last two tell what the GPU time of the steps was worth.
        details = {"globalStep": made.step, "checkpoint": made.dump(), "resumedFromStep": resumed_step, "trainRuntimeSeconds": round(seconds, 3)}
        raise StageError("Interrupted", f"stopped by SIGTERM; the checkpoint of step {made.step} was saved", details)
    tokens = trainer.state.num_input_tokens_seen - trainer._initial_num_input_tokens_seen
    return TrainAnswer(
        global_step=made.step,
        epoch=round(trainer.state.epoch or 0.0, 4),
        train_loss=mean_loss(trainer, output.training_loss),
        eval_loss=last_eval_loss(trainer),
        train_runtime_seconds=round(seconds, 3),
        tokens_per_second=round(tokens / seconds, 1) if seconds else 0.0,
        world_size=trainer.accelerator.num_processes,
        resumed_from_step=resumed_step,
        checkpoint=made,
    )


def mean_loss(trainer: Trainer, this_attempt: float) -> float:
    """Return the mean of all losses logged, of earlier attempts too, or this attempt's where none was logged."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return round(sum(losses) / len(losses) if losses else this_attempt, 6)


def last_eval_loss(trainer: Trainer) -> float | None:
    """Return the validation loss at the end; a run resumed at its last step has not measured it yet."""
    if trainer.eval_dataset is None:
        return None
    history = trainer.state.log_history
    logged = [entry["eval_loss"] for entry in history if "eval_loss" in entry and entry["step"] == trainer.state.global_step]
    value: float = logged[-1] if logged else trainer.evaluate()["eval_loss"]
    return round(value, 6)
