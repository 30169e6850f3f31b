"""The training loop: TRL's SFTTrainer on the rows that Prepare wrote, with our checkpoints and our way to stop."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers.trainer
from datasets import Dataset, Features, List, Value
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    set_seed,
)
from transformers.integrations import KubeflowCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from tunesmith_trainer import chat, checkpoint, dataset, group, state, store, strategy
from tunesmith_trainer.contract import Checkpoint, TrainAnswer, TrainInput
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.fence import Fence
from tunesmith_trainer.group import Meeting
from tunesmith_trainer.model import load_tokenizer
from tunesmith_trainer.progress import MetricsFile, ProgressReport
from tunesmith_trainer.publication import Place, Publisher
from tunesmith_trainer.settings import training_arguments
from tunesmith_trainer.sharding import MeasureSharding
from tunesmith_trainer.spec import Adapter, Parallelism
from tunesmith_trainer.start import find_start
from tunesmith_trainer.stopping import EvaluationStopped, Flag, SaveAndStop, diverged
from tunesmith_trainer.vitals import Vitals

SCHEDULER_NAME = "scheduler.pt"
# The label that takes a token out of the loss.
UNTRAINED = -100
FEATURES = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})


class Trainer(SFTTrainer):
    """SFTTrainer with checkpoints in the run's layout: saved on the node, complete in the store when their manifest is written.

    Their form is the same for all strategies (state.py), so the next attempt may have another number of processes.
    """

    publisher: Publisher
    vitals: Vitals
    meeting: Meeting
    # Time in which no step could be made because of checkpoints.
    blocked_seconds = 0.0
    saved_step = 0
    # Of the step under way, over all processes' gradients; ZeRO has none at times.
    gradient_norm: Any = 0.0

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
        weights = state.gather_weights(self.model, self.args.should_save)
        if self.args.should_save:
            # What the last step made of them has gone through no gradient yet.
            if not all(bool(weights[name].isfinite().all()) for name in state.trained(self.model)):
                raise diverged("a weight", self.state.global_step)
            self._save(output_dir, state_dict=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self.meeting.wait("the first process, which writes the weights")
        gathered = state.gather_optimizer(self.model, self.optimizer, self.args.should_save)
        if self.args.should_save:
            torch.save(gathered, Path(output_dir) / state.FILE)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, *_: Any, **__: Any) -> None:
        """Load nothing: the model was built with the checkpoint's weights."""

    def _load_optimizer_and_scheduler(self, folder: str | None) -> None:
        if folder is not None:
            state.load_optimizer(self.model, self.optimizer, Path(folder))
            self.lr_scheduler.load_state_dict(torch.load(Path(folder) / SCHEDULER_NAME, weights_only=True))

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


def encoded_rows(path: str, model_folder: str, only_assistant: bool) -> Iterator[dict[str, list[int]]]:
    """Yield a data file's rows as token ids and labels."""
    tokenizer = load_tokenizer(Path(model_folder))
    template = chat.training_template(tokenizer) if only_assistant else None
    for row in dataset.read_normal(Path(path)):
        encoded = chat.encode(tokenizer, row, template)
        pairs = zip(encoded.ids, encoded.trained, strict=True)
        yield {"input_ids": encoded.ids, "labels": [token if trained else UNTRAINED for token, trained in pairs]}


def load_rows(stage: TrainInput, name: str, meeting: Meeting) -> Dataset | None:
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
    with meeting.first_on_node("the node's first process, which tokenizes"):
        return Dataset.from_generator(encoded_rows, features=FEATURES, gen_kwargs=arguments, cache_dir=cache)


def load_model(stage: TrainInput, resumed: Path | None) -> Any:
    """Return the model to train, with the weights of the checkpoint that training goes on from.

    The base is in bf16 where it stays frozen, in 32 bits where it is trained whole: the small steps of full fine-tuning vanish
    when added to a bf16 weight, and an adapter's weights are in 32 bits anyway.
    """
    precision = torch.bfloat16 if stage.training.precision == "BF16" else torch.float32
    config = lora_config(stage.adapter)
    model: Any = AutoModelForCausalLM.from_pretrained(
        resumed if resumed and not config else store.path_of(stage.model.uri),
        dtype=precision if config else torch.float32,
        quantization_config=four_bit(precision) if stage.base_quantization else None,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    if config is None:
        return model
    # An adapter begins with random numbers: the same in all processes, and whatever the strategy.
    set_seed(stage.training.seed)
    return get_peft_model(model, config)


def restore_adapter(model: Any, resumed: Path | None) -> None:
    """Give an adapter 32 bits, of which TRL leaves it 16 on a quantized base, and the weights of the checkpoint."""
    for parameter in state.trained(model).values():
        parameter.data = parameter.data.float()
    if resumed:
        set_peft_model_state_dict(model, load_file(resumed / "adapter_model.safetensors"))


def four_bit(compute: torch.dtype) -> BitsAndBytesConfig:
    """Return QLoRA's configuration: weights in NF4, their scales quantized too, computed with in `compute`."""
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute)


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


def build(stage: TrainInput, spread: Parallelism, resumed: Path | None, staging: Path, vitals: Vitals) -> Trainer:
    """Return the trainer of a stage, ready to train; it saves into the staging folder."""
    torch.serialization.register_package(100, lambda _: None, restore_to_numbered_cpu)
    # transformers names checkpoints `checkpoint-<step>`; the run's layout says `step-<step>`.
    vars(transformers.trainer)["PREFIX_CHECKPOINT_DIR"] = checkpoint.PREFIX
    # It would look for DeepSpeed's own form of a checkpoint.
    vars(transformers.trainer)["deepspeed_load_checkpoint"] = lambda *_, **__: None
    strategy.prepare_libraries(spread, stage.device)
    has_validation = (store.path_of(stage.run_uri) / "data" / "validation.jsonl").is_file()
    arguments = training_arguments(stage.training, stage.method, stage.adapter, stage.device, str(staging), validates=has_validation)
    if stage.device == "CPU":
        arguments["ddp_backend"] = "gloo"
    arguments.setdefault("ddp_find_unused_parameters", False)
    group.require_visible(stage)
    settings = SFTConfig(**arguments | strategy.arguments(spread, stage.adapter, stage.training))
    group.check(stage, settings)
    meeting = Meeting(vitals)
    trainer = Trainer(
        model=load_model(stage, resumed),
        args=settings,
        processing_class=load_tokenizer(store.path_of(stage.model.uri)),
        train_dataset=load_rows(stage, "train.jsonl", meeting),
        eval_dataset=load_rows(stage, "validation.jsonl", meeting),
    )
    # transformers adds it, whatever `report_to` says, where the protocol's variables are set. Ours reports instead (progress.py).
    trainer.remove_callback(KubeflowCallback)
    if stage.adapter:
        restore_adapter(trainer.model, resumed)
    trainer.vitals, trainer.meeting = vitals, meeting
    return trainer


def train(stage: TrainInput, stop: Flag, vitals: Vitals) -> TrainAnswer:
    """Train from the newest checkpoint to the end; raises StageError(Interrupted) naming the checkpoint it saved."""
    place = Place(store.path_of(stage.run_uri), stage.attempt, stage.checkpoints.keep)
    staging = Path(os.environ["TUNESMITH_SCRATCH"]) / "checkpoints"
    resumed, launch = find_start(place, vitals)
    resumed_step = checkpoint.step_of(resumed) if resumed else 0
    spread = strategy.in_effect(stage)
    trainer = build(stage, spread, resumed, staging, vitals)
    fence = Fence(place.run_folder, launch)
    trainer.publisher = Publisher(place, fence, staging, vitals)
    devices = trainer.meeting.devices() if stage.device == "GPU" else None
    saving = SaveAndStop(trainer, stop, stage.checkpoints.every_steps)
    metrics = MetricsFile(place.run_folder / "metrics.jsonl", fence)
    measuring = MeasureSharding(stage, spread)
    publisher = trainer.publisher
    for callback in (saving, metrics, ProgressReport(lambda: publisher.published), measuring):
        trainer.add_callback(callback)
    try:
        output = trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    except Exception:
        # To wait for the store is no hang. One that fails before its first step has no place in training to tell (vitals.py).
        if vitals.phase != "starting":
            vitals.phase = "ending"
        publisher.let_finish()
        raise
    vitals.phase = "ending"
    eval_loss = None
    with suppress(EvaluationStopped):
        eval_loss = None if saving.interrupted else last_eval_loss(trainer)
    trainer.publisher.wait()
    metrics.close()
    step = trainer.state.global_step
    saved = place.folder(step) if step > resumed_step else resumed
    assert saved is not None
    made = Checkpoint(uri=store.uri_of(saved), step=step)
    seconds = float(output.metrics.get("train_runtime", 0.0))
    if saving.interrupted:
        # The last two tell what the GPU time of the steps was worth.
        details = {"globalStep": made.step, "checkpoint": made.dump(), "resumedFromStep": resumed_step, "trainRuntimeSeconds": round(seconds, 3)}
        raise StageError("Interrupted", f"stopped by SIGTERM; the checkpoint of step {made.step} was saved", details)
    tokens = trainer.state.num_input_tokens_seen - trainer._initial_num_input_tokens_seen
    if devices:
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        print(f"peak of this process's GPU memory: {allocated} bytes in tensors, {reserved} bytes taken", flush=True)
    print(f"checkpoints held training up for {trainer.blocked_seconds:.3f} s of {seconds:.3f} s", flush=True)
    return TrainAnswer(
        global_step=made.step,
        epoch=round(trainer.state.epoch or 0.0, 4),
        train_loss=mean_loss(trainer, output.training_loss),
        eval_loss=eval_loss,
        train_runtime_seconds=round(seconds, 3),
        tokens_per_second=round(tokens / seconds, 1) if seconds else 0.0,
        world_size=trainer.accelerator.num_processes,
        devices=devices,
        resumed_from_step=resumed_step,
        sharding=measuring.measured,
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
