"""A model folder's generation_config.json: the tokens at which transformers and vLLM stop, and the settings of sampling.

The base's file is carried as it is, for transformers refuses to save some that it loads (a temperature without do_sample). Only the
tokens are added by which the training data end an answer: a base model's own list lacks the end of a turn.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tunesmith_trainer import store
from tunesmith_trainer.data import chat
from tunesmith_trainer.data.chat import Encoder
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.failure import raise_surroundings

FILE = "generation_config.json"
# In the run's run.json, as Prepare finds them.
KEY = "stopTokenIds"


def trained_ends(name: str, rows: list[dict[str, Any]], ends: Iterable[int], encoder: Encoder) -> list[int]:
    """Return the tokens at which a model stops that learns a dataset's rows, out of those by which their trained stretches end.

    Of conversations that are trained whole it is also the end of an assistant's turn, if a token of its own ends that. Raises
    StageError(UnsupportedTemplate) where answers end by text at which no server stops.
    """
    tokenizer = encoder.tokenizer
    found = [token for token in ends if is_special(tokenizer, token)]
    talk = next((row for row in rows if chat.is_conversation(row)), None)
    if talk is None:
        return found
    turn = chat.end_of_turn(tokenizer)
    if not encoder.answers and "completion" not in talk:
        return found + [token for token in turn[-1:] if token not in found and is_special(tokenizer, token)]
    if found:
        return found
    raise StageError(
        "UnsupportedTemplate",
        f"dataset {name!r}: the chat template ends an assistant's turn with {tokenizer.decode(turn)!r}, which is no special token, so no server "
        f"could stop there: have it end the turn with {tokenizer.eos_token or 'a special token'}",
    )


def is_special(tokenizer: Any, token: int) -> bool:
    """Return whether a token is one that text does not hold by chance: a special or an added one."""
    return token in tokenizer.all_special_ids or token in tokenizer.added_tokens_decoder


def settings(folder: Path) -> dict[str, Any]:
    """Return a model folder's settings of generation: its file's, or where there is none those that transformers finds in config.json.

    Raises StageError(InvalidModel) for a file that is no JSON object.
    """
    path = folder / FILE
    if path.is_file():
        return _read(path)
    from transformers import GenerationConfig

    # As transformers does when it loads the model.
    found = GenerationConfig.from_pretrained(folder, config_file_name="config.json", _from_model_config=True, local_files_only=True)
    return found.to_diff_dict()


def check(folder: Path) -> None:
    """Refuse settings of generation that transformers and vLLM do not load: StageError(InvalidModel)."""
    if not (folder / FILE).is_file():
        return
    from transformers import GenerationConfig

    listed(settings(folder))
    try:
        GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many kinds here; but for what is around us, all are about this file
        raise_surroundings(error)
        raise StageError("InvalidModel", f"{FILE} in the model's folder cannot be loaded: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise StageError("InvalidModel", f"{path.name} in the model's folder is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise StageError("InvalidModel", f"{path.name} in the model's folder is no JSON object")
    return value


def listed(value: dict[str, Any]) -> list[int]:
    """Return the end tokens of settings of generation; raises StageError(InvalidModel)."""
    ends = value.get("eos_token_id")
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    if not all(isinstance(token, int) for token in ends):
        raise StageError("InvalidModel", f"{FILE} in the model's folder: eos_token_id is neither a token's number nor a list of such")
    return ends


def stops(folder: Path, tokenizer: Any) -> list[int]:
    """Return the tokens at which a server of the folder stops: those of its settings of generation, and the tokenizer's end token."""
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return list(dict.fromkeys([*listed(settings(folder)), *own]))


def carry(base: Path, folder: Path, ends: list[int]) -> None:
    """Give a folder the base's settings of generation, and the trained ends beside the base's own."""
    value = settings(base)
    missing = [token for token in ends if token not in listed(value)]
    if (base / FILE).is_file() and not missing:
        shutil.copyfile(base / FILE, folder / FILE)
        return
    if missing:
        value["eos_token_id"] = [*listed(value), *missing]
    store.write_json(folder / FILE, value)


def recorded_ends(run_folder: Path) -> list[int]:
    """Return the trained ends as Prepare found them; none where an older image prepared the run."""
    return (store.read_json(run_folder / "run.json") or {}).get(KEY, [])


def make_savable(model: Any) -> Any:
    """Take out of a loaded model what transformers would refuse to save, and return it; `carry` writes the base's settings."""
    if getattr(model, "generation_config", None) is not None:
        model.generation_config = type(model.generation_config)()
    for name in model.config._get_generation_parameters():
        delattr(model.config, name)
    return model
