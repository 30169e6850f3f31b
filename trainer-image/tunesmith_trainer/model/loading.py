"""Loading a model: refused before and after where a folder does not hold the whole model that its config.json describes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith_trainer.errors import StageError
from tunesmith_trainer.failure import raise_surroundings
from tunesmith_trainer.model import weights


def check(folder: Path, uri: str) -> int | None:
    """Refuse a model whose files are not whole, or not what its config.json says, by their headers alone: StageError(InvalidModel).

    Returns how many tokens the model has embeddings for, None where it does not say.
    """
    with _refusing(uri):
        return weights.check_tensors(folder, weights.check_files(folder))


def check_tokens(tokenizer: Any, rows: int | None, uri: str) -> None:
    """Refuse a tokenizer with tokens that the model has no embedding for: StageError(InvalidModel)."""
    with _refusing(uri):
        weights.check_tokens(tokenizer, rows)


def refuse_quantized(folder: Path, uri: str) -> None:
    """Refuse to train on a model that is quantized: StageError(InvalidModel).

    Its adapter would be added to weights that are not there: what is merged is the base, or nothing that can be loaded.
    """
    with _refusing(uri):
        method = weights.quantization(folder)
    if method:
        raise StageError(
            "InvalidModel",
            f"{uri} is quantized already ({method}), and a quantized model cannot be fine-tuned: name the model before its quantization (of a "
            "FineTuneJob the artifact Merged); baseQuantization: NF4 trains an adapter on it in 4 bits",
        )


def load(folder: Path, **settings: Any) -> Any:
    """Return a folder's model, loaded with further settings of from_pretrained; StageError(InvalidModel) where it is not whole."""
    from transformers import AutoModelForCausalLM

    model, found = AutoModelForCausalLM.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        # What is of another shape is refused below, by name.
        ignore_mismatched_sizes=True,
        **settings,
    )
    with _refusing(folder.name):
        weights.refuse(type(model).__name__, len(model.state_dict()), *(found[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched")))
    return model


@contextmanager
def _refusing(uri: str) -> Iterator[None]:
    """Have what is raised inside mean that a model cannot be loaded, but for what is around the program."""
    try:
        yield
    except Exception as error:  # transformers raises many kinds for a config that it does not know
        raise_surroundings(error)
        why = str(error) if isinstance(error, weights.Unfit) else f"this is not a causal language model that can be loaded: {error}"
        raise StageError("InvalidModel", f"{uri}: {why}") from error
