"""The base model's folder: what must not be in it, and what can be known of it without loading a weight."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith_trainer.errors import StageError
from tunesmith_trainer.failure import raise_surroundings

PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


@dataclass(frozen=True)
class ModelFacts:
    """What a model's config says: its class, its size and its longest context."""

    architecture: str
    parameters: int
    context_length: int
    """0: it names none."""


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
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        # Some settings are first looked at when a text is encoded.
        tokenizer("a")
    except Exception as error:  # transformers raises many kinds here; but for what is around us, all mean the same to the user
        raise_surroundings(error)
        raise StageError("InvalidModel", f"the model's tokenizer cannot be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise StageError("InvalidModel", "the model's folder has no fast tokenizer (tokenizer.json)")
    return tokenizer


def load_config(folder: Path) -> Any:
    """Return the configuration in a folder, by code of transformers alone; raises what transformers raises."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def inspect(folder: Path) -> ModelFacts:
    """Return a model's facts from its config alone: the modules are built without memory for their weights.

    Raises StageError(InvalidModel) for a config that transformers does not know.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        config = load_config(folder)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
        return _facts(config.get_text_config(), model)
    except Exception as error:  # see load_tokenizer
        raise_surroundings(error)
        raise StageError("InvalidModel", f"this is not a causal language model that can be loaded: {error}") from error


def _facts(text: Any, model: Any) -> ModelFacts:
    return ModelFacts(
        architecture=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        context_length=int(getattr(text, "max_position_embeddings", 0) or 0),
    )


def check_length(facts: ModelFacts, max_length: int) -> None:
    """Refuse sequences longer than the model's positions: StageError(SequenceTooLong)."""
    if facts.context_length and max_length > facts.context_length:
        raise StageError(
            "SequenceTooLong",
            f"training.maxLength is {max_length}, but the model's positions end at {facts.context_length}",
        )
