"""The base model's folder: what must not be in it, and what can be known of it without loading a weight."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith_trainer.contract import Run
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.failure import raise_surroundings
from tunesmith_trainer.spec import Adapter

PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
# Four bits a weight, and the quantized scale of each 64 of them.
NF4_BYTES = 0.52


@dataclass(frozen=True)
class ModelFacts:
    """What a model's config says: its size, its longest context, its class, and its linear layers' input widths."""

    architecture: str
    parameters: int
    context_length: int
    hidden_size: int
    layers: int
    vocabulary: int
    linears: dict[str, tuple[int, int]]


def refuse_unsafe(folder: Path, uri: str) -> None:
    """Refuse a model folder that would run code when loaded.

    Raises StageError: UnsafeWeights for pickled weights, RemoteCodeRefused for Python files or `auto_map`, InvalidModel
    where there are no safetensors weights or no config at all.
    """
    files = [path for path in folder.rglob("*") if path.is_file()]
    pickled = sorted(path.name for path in files if path.suffix in PICKLE_SUFFIXES)
    if pickled:
        raise StageError(
            "UnsafeWeights",
            f"{uri} holds {', '.join(pickled[:5])}: files of this kind can run code when loaded. Convert the weights to "
            "safetensors and delete these files",
        )
    code = sorted(path.name for path in files if path.suffix == ".py")
    if code:
        raise StageError("RemoteCodeRefused", f"{uri} holds Python code ({', '.join(code[:5])}); it is never run: delete it")
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in _read_object(folder / name):
            raise StageError("RemoteCodeRefused", f"{name} in {uri} has auto_map, which names code to run; remove the key")
    if not (folder / "config.json").is_file() or not any(path.suffix == ".safetensors" for path in files):
        raise StageError("InvalidModel", f"{uri} is not a model's folder: it needs config.json and *.safetensors files")


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise StageError("InvalidModel", f"{path.name} in the model's folder is not JSON: {error}") from None
    return value if isinstance(value, dict) else {}


def load_tokenizer(folder: Path) -> Any:
    """Return the folder's tokenizer; raises StageError(InvalidModel) where it has none that loads."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds here; but for what is around us, all mean the same to the user
        raise_surroundings(error)
        raise StageError("InvalidModel", f"the model's tokenizer cannot be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise StageError("InvalidModel", "the model's folder has no fast tokenizer (tokenizer.json)")
    return tokenizer


def inspect(folder: Path) -> ModelFacts:
    """Return a model's facts from its config alone: the modules are built without memory for their weights.

    Raises StageError(InvalidModel) for a config that transformers does not know.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    except Exception as error:  # see load_tokenizer
        raise_surroundings(error)
        raise StageError("InvalidModel", f"this is not a causal language model that can be loaded: {error}") from error
    text = config.get_text_config()
    return ModelFacts(
        architecture=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        context_length=int(getattr(text, "max_position_embeddings", 0) or 0),
        hidden_size=int(text.hidden_size),
        layers=int(text.num_hidden_layers),
        vocabulary=int(text.vocab_size),
        linears={name: (module.in_features, module.out_features) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)},
    )


def check_length(facts: ModelFacts, max_length: int) -> None:
    """Refuse sequences longer than the model's positions: StageError(SequenceTooLong)."""
    if facts.context_length and max_length > facts.context_length:
        raise StageError(
            "SequenceTooLong",
            f"training.maxLength is {max_length}, but the model's positions end at {facts.context_length}",
        )


def _is_head(name: str) -> bool:
    return name.rpartition(".")[2] == "lm_head"


def check_target_modules(facts: ModelFacts, adapter: Adapter | None) -> None:
    """Refuse LoRA target modules that name no linear layer of the model: StageError(InvalidSettings)."""
    if adapter is None or adapter.lora is None:
        return
    known = {name.rpartition(".")[2] for name in facts.linears if not _is_head(name)}
    for target in adapter.lora.target_modules:
        if target != "all-linear" and target.rpartition(".")[2] not in known:
            raise StageError(
                "InvalidSettings",
                f"adapter.lora.targetModules: {target!r} is no linear layer of this model, which has "
                f"{', '.join(sorted(known))}; all-linear means all of them",
            )
    if "all-linear" in adapter.lora.target_modules and len(adapter.lora.target_modules) > 1:
        raise StageError("InvalidSettings", "adapter.lora.targetModules: all-linear stands alone")


def adapter_parameters(facts: ModelFacts, adapter: Adapter) -> int:
    """Return how many parameters a LoRA adapter adds."""
    assert adapter.lora is not None
    targets = adapter.lora.target_modules
    widths = [
        sum(shape)
        for name, shape in facts.linears.items()
        if not _is_head(name) and (targets == ["all-linear"] or name.rpartition(".")[2] in targets)
    ]
    return adapter.lora.r * sum(widths)


def estimate_memory(facts: ModelFacts, run: Run) -> int:
    """Return roughly how many bytes one process needs: weights, gradients, AdamW's two moments, activations.

    What the strategy shards is divided by the number of processes; of sharded weights, one layer at a time is held whole.
    Activations are those of a decoder layer kept for the backward pass (about 16 hidden-size tensors a layer, one with
    gradient checkpointing) and one block of logits. Meant for "will it fit", not for a limit set to the byte.
    """
    adapter, training, spread = run.adapter, run.training, run.parallelism
    width = 2 if training.precision == "BF16" else 4
    if adapter is None:
        # Full fine-tuning keeps the weights in 32 bits and computes in `precision`.
        weights, trainable = 4 * facts.parameters, facts.parameters
    else:
        trainable = adapter_parameters(facts, adapter)
        weights = width * facts.parameters + 4 * trainable
    if run.base_quantization:
        quantized = sum(inputs * outputs for name, (inputs, outputs) in facts.linears.items() if not _is_head(name))
        weights -= int(quantized * (width - NF4_BYTES))
    zero_stage = spread.deep_speed.zero_stage if spread.deep_speed else 0
    state = 12 * trainable // (spread.processes if spread.fsdp or zero_stage else 1)
    if spread.fsdp or zero_stage == 3:
        weights = weights // spread.processes + weights // max(facts.layers, 1)
    tokens = training.per_device_train_batch_size * training.max_length
    kept = 1 if training.gradient_checkpointing else 16
    activations = tokens * (facts.layers * kept * facts.hidden_size * width + facts.vocabulary * 4)
    return weights + state + activations
