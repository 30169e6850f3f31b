"""A run's settings as TRL's SFTConfig, and the checks of `training.overrides`."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tempfile
import typing
from typing import Any

from tunesmith_contract.adapters import Adapter
from tunesmith_contract.methods import Method
from tunesmith_contract.stages import Device, Run
from tunesmith_contract.training import Training
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.failure import raise_surroundings

# Keys that the spec has a field for: two places for one setting would leave the reader guessing which one won.
SPEC_FIELDS = {
    "num_train_epochs": "training.numTrainEpochs",
    "max_steps": "training.maxSteps",
    "learning_rate": "training.learningRate",
    "per_device_train_batch_size": "training.perDeviceTrainBatchSize",
    "gradient_accumulation_steps": "training.gradientAccumulationSteps",
    "max_length": "training.maxLength",
    "warmup_steps": "training.warmupSteps",
    "lr_scheduler_type": "training.lrSchedulerType",
    "weight_decay": "training.weightDecay",
    "max_grad_norm": "training.maxGradNorm",
    "logging_steps": "training.loggingSteps",
    "bf16": "training.precision",
    "fp16": "training.precision",
    "seed": "training.seed",
    "data_seed": "training.seed",
    "gradient_checkpointing": "training.gradientCheckpointing",
    "packing": "method.sft.packing",
    "assistant_only_loss": "method.sft.assistantOnlyLoss",
}
# Keys that Tunesmith sets itself, that load code or files, or that reach out of the pod.
OWNED = {
    "output_dir", "deepspeed", "trust_remote_code", "model_init_kwargs", "chat_template_path", "dataset_kwargs",
    "dataset_text_field", "eos_token", "pad_token", "completion_only_loss", "report_to", "logging_dir", "run_name",
    "resume_from_checkpoint", "use_cpu", "no_cuda", "do_train", "do_eval", "do_predict", "local_rank", "ddp_backend",
    "ddp_timeout", "parallelism_config", "accelerator_config", "load_best_model_at_end", "ignore_data_skip",
    "restore_callback_states_from_checkpoint", "enable_jit_checkpoint", "auto_find_batch_size", "remove_unused_columns",
    "include_num_input_tokens_seen", "disable_tqdm", "project", "liger_kernel_config", "metric_for_best_model",
    "greater_is_better", "per_device_eval_batch_size", "logging_strategy", "logging_first_step", "debug", "padding_free",
}  # fmt: skip
OWNED_PREFIXES = ("fsdp", "hub_", "push_to_hub", "save_", "eval_", "trackio", "batch_eval", "log_on", "log_level")


def training_arguments(
    training: Training, method: Method, adapter: Adapter | None, device: Device, output_dir: str, validates: bool
) -> dict[str, Any]:
    """Return the keyword arguments of SFTConfig for a run; raises StageError(InvalidOverrides)."""
    assert method.sft is not None
    mixed = training.precision == "BF16" and (device == "GPU" or adapter is None)
    ours = {
        "output_dir": output_dir,
        "num_train_epochs": training.num_train_epochs,
        "max_steps": training.max_steps or -1,
        "learning_rate": float(training.learning_rate),
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "per_device_eval_batch_size": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "max_length": training.max_length,
        "warmup_steps": training.warmup_steps,
        "lr_scheduler_type": training.lr_scheduler_type,
        "weight_decay": float(training.weight_decay),
        "max_grad_norm": float(training.max_grad_norm),
        "logging_steps": training.logging_steps,
        # TRL turns bf16 on where nothing is said. With a frozen bf16 base on a CPU, autocast only costs time.
        "bf16": mixed,
        "seed": training.seed,
        "gradient_checkpointing": training.gradient_checkpointing,
        "packing": method.sft.packing,
        "use_cpu": device == "CPU",
        "eval_strategy": "epoch" if validates else "no",
        # Checkpoints are written by our own trainer, into our own layout and with manifests.
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        # Counted with the losses (losses.py), as the libraries count padding too.
        "include_num_input_tokens_seen": "no",
        "dataloader_pin_memory": device == "GPU",
    }
    return ours | parse_overrides(training.overrides)


def kept_part(training: Training, method: Method) -> str:
    """Return which part of a sequence longer than maxLength TRL trains on: its start, its end, or all of it in several pieces."""
    overrides = parse_overrides(training.overrides)
    if method.sft is not None and method.sft.packing:
        return "start" if overrides.get("packing_strategy", "bfd") == "bfd" else "all"
    return "end" if overrides.get("truncation_mode") == "keep_end" else "start"


def parse_overrides(overrides: dict[str, str]) -> dict[str, Any]:
    """Return overrides with their values read as JSON and checked against SFTConfig's types.

    Raises StageError(InvalidOverrides) for a key that is unknown, owned by Tunesmith or a field of the spec, and for a
    value that is no JSON or of another type.
    """
    if not overrides:
        return {}
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from trl.trainer.sft_config import SFTConfig

    types = typing.get_type_hints(SFTConfig)
    known = {field.name for field in dataclasses.fields(SFTConfig) if field.init}
    parsed = {}
    for key, text in overrides.items():
        _check_key(key, known)
        try:
            value = json.loads(text)
        except ValueError:
            raise _refusal(key, f'{text!r} is not JSON (a text needs quotes: "\\"{text}\\"")') from None
        try:
            TypeAdapter(types[key], config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
        except ValidationError as error:
            raise _refusal(key, f"{text} is of the wrong type: {error.errors()[0]['msg']}") from None
        parsed[key] = value
    return parsed


def _refusal(key: str, why: str) -> StageError:
    return StageError("InvalidOverrides", f"training.overrides.{key}: {why}")


def _check_key(key: str, known: set[str]) -> None:
    if key in SPEC_FIELDS:
        raise _refusal(key, f"set {SPEC_FIELDS[key]} instead")
    if key in OWNED or key.startswith(OWNED_PREFIXES):
        raise _refusal(key, "Tunesmith owns this setting, so it cannot be overridden")
    if key not in known:
        allowed = [name for name in known if name not in OWNED and not name.startswith(OWNED_PREFIXES)]
        close = difflib.get_close_matches(key, allowed, n=1)
        hint = f"; did you mean {SPEC_FIELDS.get(close[0], close[0])}?" if close else ""
        raise _refusal(key, f"TRL's SFTConfig has no such setting{hint}")


def check(training: Training, method: Method, adapter: Adapter | None) -> None:
    """Build the SFTConfig that Train will build, on the CPU: what TRL refuses is told before a GPU is asked for."""
    from trl.trainer.sft_config import SFTConfig

    with tempfile.TemporaryDirectory() as folder:
        # Known types and JSON are checked first, so that what is left can only be a value TRL does not like.
        arguments = training_arguments(training, method, adapter, "CPU", folder, validates=False)
        # transformers looks for the GPU, which Train's pod has and this one has not.
        arguments.pop("tf32", None)
        try:
            SFTConfig(**arguments)
        except Exception as error:  # TRL and transformers raise many kinds; but for what is around us, all are about these settings
            raise_surroundings(error)
            reason = "InvalidOverrides" if training.overrides else "InvalidSettings"
            raise StageError(reason, f"TRL refuses these training settings: {error}") from error


def check_batches(run: Run, rows: int, sequences: int) -> None:
    """Refuse `dataloader_drop_last` where the sequences of the training rows do not fill one batch of all processes: StageError(InvalidOverrides)."""
    if parse_overrides(run.training.overrides).get("dataloader_drop_last"):
        require_batch(max(rows, sequences), run.training.per_device_train_batch_size * run.parallelism.processes)


def require_batch(sequences: int, batch: int) -> None:
    """Refuse to drop a last batch that is the first one as well: StageError(InvalidOverrides)."""
    if sequences < batch:
        raise StageError(
            "InvalidOverrides",
            f"training.overrides.dataloader_drop_last: {sequences} sequences do not fill a batch of {batch} (perDeviceTrainBatchSize times all "
            "processes), so nothing would be trained; leave the setting out, or lower perDeviceTrainBatchSize",
        )
