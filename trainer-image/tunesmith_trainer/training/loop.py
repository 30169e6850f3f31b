"""The training loop: TRL's SFTTrainer on the rows that Prepare wrote, with our checkpoints and our way to stop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers.trainer
from datasets import Dataset, Features, List, Value
from datasets.exceptions import DatasetGenerationError
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig, set_seed
from transformers.integrations import KubeflowCallback
from trl.trainer.sft_config import SFTConfig

from tunesmith_contract.adapters import Adapter
from tunesmith_contract.results import TrainAnswer
from tunesmith_contract.stages import Checkpoint, TrainInput
from tunesmith_contract.training import Parallelism
from tunesmith_trainer import store
from tunesmith_trainer.data import chat, dataset
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.model import generation, loading
from tunesmith_trainer.model.base import load_tokenizer
from tunesmith_trainer.training import checkpoint, full_state, group, strategy
from tunesmith_trainer.training.arguments import kept_part, require_batch, training_arguments
from tunesmith_trainer.training.fence import Fence
from tunesmith_trainer.training.group import Meeting
from tunesmith_trainer.training.losses import UNTRAINED
from tunesmith_trainer.training.progress import MetricsFile, ProgressReport
from tunesmith_trainer.training.sharding_check import MeasureSharding
from tunesmith_trainer.training.start import find_start
from tunesmith_trainer.training.stopping import EvaluationStopped, Flag, SaveAndStop
from tunesmith_trainer.training.trainer import Trainer
from tunesmith_trainer.training.uploader import Place, Publisher
from tunesmith_trainer.training.watchdog import Vitals

FEATURES = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})


def encoded_rows(path: str, model_folder: str, only_assistant: bool, cut: dataset.Cut) -> Iterator[dict[str, list[int]]]:
    """Yield a data file's rows as sequences of token ids and labels; TRL cuts them. Raises StageError(InvalidDataset) naming the row."""
    encoder = chat.Encoder(load_tokenizer(Path(model_folder)), only_assistant)
    for item in dataset.read_normal(Path(path)):
        with dataset.placed(item.place):
            sequences = encoder.encode(item.row).sequences
        for sequence in sequences:
            if any(cut.kept(sequence)):
                pairs = zip(sequence.ids, sequence.trained, strict=True)
                yield {"input_ids": sequence.ids, "labels": [token if trained else UNTRAINED for token, trained in pairs]}


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
        "cut": dataset.Cut(stage.training.max_length, kept_part(stage.training, stage.method)),
    }
    cache = str(Path(os.environ["TUNESMITH_SCRATCH"]) / "datasets")
    # One process of each node encodes, the others read what it wrote.
    with meeting.first_on_node("the node's first process, which tokenizes"):
        return generated(arguments, cache)


def generated(arguments: dict[str, Any], cache: str) -> Dataset:
    """Return a data file's sequences, written below `cache`; raises what `encoded_rows` raises, which datasets wraps."""
    try:
        return Dataset.from_generator(encoded_rows, features=FEATURES, gen_kwargs=arguments, cache_dir=cache)
    except DatasetGenerationError as error:
        raise (error.__cause__ or error) from None


def load_model(stage: TrainInput, resumed: Path | None) -> Any:
    """Return the model to train, with the weights of the checkpoint that training goes on from.

    The base is in bf16 where it stays frozen, in 32 bits where it is trained whole: the small steps of full fine-tuning vanish
    when added to a bf16 weight, and an adapter's weights are in 32 bits anyway.
    """
    precision = torch.bfloat16 if stage.training.precision == "BF16" else torch.float32
    config = lora_config(stage.adapter)
    model = loading.load(
        resumed if resumed and not config else store.path_of(stage.model.uri),
        dtype=precision if config else torch.float32,
        quantization_config=four_bit(precision) if stage.base_quantization else None,
    )
    generation.make_savable(model)
    if config is None:
        return model
    # An adapter begins with random numbers: the same in all processes, and whatever the strategy.
    set_seed(stage.training.seed)
    return get_peft_model(model, config)


def restore_adapter(model: Any, resumed: Path | None) -> None:
    """Give an adapter 32 bits, of which TRL leaves it 16 on a quantized base, and the weights of the checkpoint."""
    for parameter in full_state.trained(model).values():
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


@cache
def prepare_transformers() -> None:
    """Make torch and transformers load and save as the run's layout needs it; once in a process."""
    torch.serialization.register_package(100, lambda _: None, restore_to_numbered_cpu)
    # transformers names checkpoints `checkpoint-<step>`; the run's layout says `step-<step>`.
    vars(transformers.trainer)["PREFIX_CHECKPOINT_DIR"] = checkpoint.PREFIX
    # It would look for DeepSpeed's own form of a checkpoint.
    vars(transformers.trainer)["deepspeed_load_checkpoint"] = lambda *_, **__: None


def build(stage: TrainInput, spread: Parallelism, resumed: Path | None, staging: Path, vitals: Vitals) -> Trainer:
    """Return the trainer of a stage, ready to train; it saves into the staging folder."""
    prepare_transformers()
    strategy.prepare_libraries(spread, stage.device)
    has_validation = (store.path_of(stage.run_uri) / "data" / "validation.jsonl").is_file()
    arguments = training_arguments(stage.training, stage.method, stage.adapter, stage.device, str(staging), validates=has_validation)
    if stage.device == "CPU":
        arguments["ddp_backend"] = "gloo"
    arguments.setdefault("ddp_find_unused_parameters", False)
    group.require_visible(stage)
    settings = SFTConfig(**arguments | strategy.arguments(spread, stage.adapter, stage.training))
    strategy.reduce_in_32_bits(settings)
    group.check(stage, settings)
    meeting = Meeting(vitals)
    trainer = Trainer(
        model=load_model(stage, resumed),
        args=settings,
        processing_class=load_tokenizer(store.path_of(stage.model.uri)),
        train_dataset=load_rows(stage, "train.jsonl", meeting),
        eval_dataset=load_rows(stage, "validation.jsonl", meeting),
    )
    if settings.dataloader_drop_last:
        # Packed rows are fewer sequences than Prepare counts.
        require_batch(len(trainer.train_dataset), settings.train_batch_size * settings.world_size)
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
        # To wait for the store is no hang. One that fails before its first step has no place in training to tell (watchdog.py).
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
    run, tokens = trainer.ledger.run, trainer.ledger.attempt.real
    if devices:
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        print(f"peak of this process's GPU memory: {allocated} bytes in tensors, {reserved} bytes taken", flush=True)
    print(f"checkpoints held training up for {trainer.blocked_seconds:.3f} s of {seconds:.3f} s", flush=True)
    return TrainAnswer(
        global_step=made.step,
        epoch=round(trainer.state.epoch or 0.0, 4),
        train_loss=round(run.loss, 6) if run else None,
        eval_loss=eval_loss,
        train_runtime_seconds=round(seconds, 3),
        tokens_per_second=round(tokens / seconds, 1) if seconds else 0.0,
        world_size=trainer.accelerator.num_processes,
        devices=devices,
        resumed_from_step=resumed_step,
        sharding=measuring.measured,
        checkpoint=made,
    )


def last_eval_loss(trainer: Trainer) -> float | None:
    """Return the validation loss at the end; a run resumed at its last step has not measured it yet."""
    if trainer.eval_dataset is None:
        return None
    history = trainer.state.log_history
    logged = [entry["eval_loss"] for entry in history if "eval_loss" in entry and entry["step"] == trainer.state.global_step]
    value: float = logged[-1] if logged else trainer.evaluate()["eval_loss"]
    return round(value, 6)
