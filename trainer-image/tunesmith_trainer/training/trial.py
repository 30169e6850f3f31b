"""What Train and Finalize would refuse of a run, found in Prepare by trying it, before a GPU is asked for.

The adapter is put on the model itself, without memory for its weights. All else is tried by the trainer that Train uses, for one step on
the CPU, on a tiny model of the same architecture: the optimizer and its packages, the scheduler, the loader of rows, checkpointing of
gradients. No list of what libraries refuse is kept: their own words are passed on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tunesmith_contract.adapters import Adapter, LoRA
from tunesmith_contract.stages import Run
from tunesmith_contract.training import Training
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.failure import raise_surroundings
from tunesmith_trainer.model import generation, shrink
from tunesmith_trainer.model.base import load_config
from tunesmith_trainer.training.arguments import parse_overrides, training_arguments

ROWS, TOKENS = 8, 16
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
# Optimizers that step on a CPU; the others are made here, and step on the GPU that they are for.
STEPPING = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
# What costs minutes, or reaches beyond this trial, and does not fail by what a user wrote.
COMPILER = ("torch_compile", "torch_compile_backend", "torch_compile_mode")
LEFT_OUT = (*COMPILER, "full_determinism", "dataloader_drop_last", "pad_to_multiple_of", "activation_offloading", "tf32")


def check(source: Path, run: Run, tokenizer: Any) -> None:
    """Refuse settings by which Train would fail, in the libraries' own words: StageError(InvalidSettings, InvalidOverrides).

    Raises StageError(InvalidModel) for a config.json that is loaded and cannot be saved.
    """
    config = load_config(source)
    model = shrink.build(config, "meta")
    _check_saving(model)
    if run.adapter is not None and run.adapter.lora is not None:
        check_adapter(model, run.adapter)
    _check_compiler(run.training)
    small = next(shrink.tiny(config), None)
    if small is None:
        return
    training = run.training
    error = _try(small, run, training, tokenizer)
    if error is None:
        return
    for key in training.overrides:
        others = {name: value for name, value in training.overrides.items() if name != key}
        if _try(small, run, training.model_copy(update={"overrides": others}), tokenizer) is None:
            raise StageError("InvalidOverrides", f"training.overrides.{key}: training would fail by it: {_words(error)}") from error
    plain = training.model_copy(update={"overrides": {}, "seed": 0, "gradient_checkpointing": False, "lr_scheduler_type": "linear"})
    if _try(small, run.model_copy(update={"adapter": None}), plain, tokenizer) is not None:
        # It is the tiny model that cannot be trained so; what training does to the rows was tried before (rehearsal.py).
        print(f"the run's settings could not be tried: {_words(error)}", flush=True)
        return
    raise StageError("InvalidSettings", f"training would fail in its first step by the settings under training: {_words(error)}") from error


def _words(error: BaseException) -> str:
    """Return what a library said, in one line; that a package is to be installed is no help where the image is all there is."""
    said = " ".join(str(error).split()) or type(error).__name__
    return f"{said} (the trainer image does not have it: leave the setting out)" if isinstance(error, ImportError) else said


def _check_saving(model: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            generation.make_savable(model).config.save_pretrained(folder)
        except Exception as error:  # as transformers loads a config, and validates it more strictly when it saves
            raise_surroundings(error)
            raise StageError("InvalidModel", f"config.json in the model's folder cannot be saved with the model: {_words(error)}") from error


def _check_compiler(training: Training) -> None:
    """Refuse a backend or a mode of torch.compile that torch does not have: StageError(InvalidOverrides)."""
    overrides = parse_overrides(training.overrides)
    if not any(overrides.get(name) for name in COMPILER):
        return
    import torch

    for name, known in (("torch_compile_backend", torch.compiler.list_backends(exclude_tags=())), ("torch_compile_mode", MODES)):
        if overrides.get(name) not in (None, *known):
            raise StageError("InvalidOverrides", f"training.overrides.{name}: {overrides[name]!r} is none of {', '.join(known)}")


def check_adapter(model: Any, adapter: Adapter) -> None:
    """Refuse an adapter that PEFT does not put on the model as the user wrote it: StageError(InvalidSettings).

    Each name under targetModules must find layers: PEFT is content with one that does, and leaves the others out without a word.
    """
    from peft import get_peft_model
    from peft.utils.error import NoMatchingPeftModuleError

    from tunesmith_trainer.training.loop import lora_config

    assert adapter.lora is not None
    lora = adapter.lora
    if "all-linear" in lora.target_modules and len(lora.target_modules) > 1:
        raise StageError("InvalidSettings", "adapter.lora.targetModules: all-linear stands alone")
    linear = _linear(model)
    _refuse_names(model, lora, linear)
    try:
        adapted: Any = get_peft_model(model, lora_config(adapter))
    except NoMatchingPeftModuleError:
        raise _no_layer(lora.target_modules[0], linear) from None
    except Exception as error:  # PEFT raises many kinds; but for what is around us, all are about the adapter
        raise_surroundings(error)
        # An adapter of experts that are one tensor has no layer whose input could be dropped.
        advice = "; set loraDropout to 0" if "ParamWrapper" in str(error) and "dropout" in str(error) else ""
        message = f"adapter.lora: PEFT refuses these settings for {type(model).__name__}: {_words(error)}{advice}"
        raise StageError("InvalidSettings", message) from error
    put = adapted.base_model
    kept = put.peft_config["default"].target_modules
    for target in lora.target_modules:
        # Names of experts that are one tensor each in transformers 5 are turned by PEFT into names of these tensors.
        turned = target not in kept and bool(put.targeted_parameter_names)
        if target != "all-linear" and not turned and not any(_is(name, target) for name in put.targeted_module_names):
            raise _no_layer(target, linear)


def _is(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _refuse_names(model: Any, lora: LoRA, linear: list[str]) -> None:
    """Refuse targets that are embeddings or the head, whose loss TRL takes beside the adapter."""
    from torch import nn

    head = model.get_output_embeddings()
    for target in lora.target_modules:
        found = [module for name, module in model.named_modules() if _is(name, target)]
        if any(module is head or isinstance(module, nn.Embedding) for module in found):
            raise _no_layer(target, linear)


def _linear(model: Any) -> list[str]:
    """Return the names of a model's linear layers but the head, without the modules that they are in."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return sorted({name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, (nn.Linear, Conv1D)) and part is not head})


def _no_layer(target: str, linear: list[str]) -> StageError:
    return StageError(
        "InvalidSettings",
        f"adapter.lora.targetModules: {target!r} is no linear layer of this model, which has {', '.join(linear)}; all-linear means all of them",
    )


def _try(small: Any, run: Run, training: Training, tokenizer: Any) -> Exception | None:
    """Train a tiny model for a step as a run's settings say, and return what that raised; raises StageError for what is around it."""
    with tempfile.TemporaryDirectory() as folder, _alone():
        try:
            _step(small, run, training, tokenizer, folder)
        except Exception as error:  # transformers, TRL, PEFT, accelerate and torch raise many kinds
            raise_surroundings(error)
            return error
    return None


def _step(small: Any, run: Run, training: Training, tokenizer: Any, folder: str) -> None:
    from datasets import Dataset
    from transformers import PrinterCallback
    from transformers.integrations import KubeflowCallback
    from trl.trainer.sft_config import SFTConfig

    from tunesmith_trainer.training import loop
    from tunesmith_trainer.training.trainer import Trainer

    arguments = training_arguments(training, run.method, run.adapter, "CPU", folder, validates=False)
    arguments = {name: value for name, value in arguments.items() if name not in LEFT_OUT}
    arguments |= {"max_steps": 1, "gradient_accumulation_steps": 1, "max_length": min(training.max_length, TOKENS)}
    arguments["per_device_train_batch_size"] = min(training.per_device_train_batch_size, 2)
    arguments["dataloader_num_workers"] = min(arguments.get("dataloader_num_workers", 0), 1)
    model = _adapted(small, run.adapter)
    words = model.get_input_embeddings().num_embeddings
    rows = [[(8 + row + token) % words for token in range(TOKENS)] for row in range(ROWS)]
    dataset = Dataset.from_dict({"input_ids": rows, "labels": rows}, features=loop.FEATURES)
    trainer = Trainer(model=model, args=SFTConfig(**arguments), processing_class=tokenizer, train_dataset=dataset)
    for callback in (KubeflowCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.create_optimizer_and_scheduler(training.max_steps or ROWS)
    if trainer.args.optim not in STEPPING:
        trainer.optimizer = trainer.lr_scheduler = None
        trainer.args.optim = STEPPING[0]
    trainer.train()


def _adapted(small: Any, adapter: Adapter | None) -> Any:
    """Return a tiny model with a run's adapter, or with one of all linear layers where it has not those that the adapter names."""
    from peft import get_peft_model

    from tunesmith_trainer.training import loop

    if adapter is None or adapter.lora is None:
        return shrink.build(small, "cpu")
    with suppress(ValueError):
        return get_peft_model(shrink.build(small, "cpu"), loop.lora_config(adapter))
    # Without dropout, which experts do not take: these may be none of the layers that are named.
    every = adapter.lora.model_copy(update={"target_modules": ["all-linear"], "lora_dropout": "0"})
    return get_peft_model(shrink.build(small, "cpu"), loop.lora_config(Adapter(lora=every)))


@contextmanager
def _alone() -> Iterator[None]:
    """Leave the process as it was: accelerate keeps what it was first asked for, for good."""
    from accelerate.state import AcceleratorState, GradientState

    def forget() -> None:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()

    forget()
    try:
        yield
    finally:
        forget()
