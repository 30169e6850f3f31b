"""What quantization is calibrated on: which rows, cut to how many tokens, and in which batches.

Rows stay apart: joined to one sequence, each would be read as the continuation of those before it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tunesmith_contract.quantization import Quantization, Variant
from tunesmith_trainer.data import chat, dataset
from tunesmith_trainer.errors import StageError

# Which rows calibrate must not change from one attempt to the next.
SEED = 42
# Tokens for each input of a layer, below which a warning is due.
ENOUGH = 16


def path(run_folder: Path, variant: Variant) -> Path:
    """Return where the rows of a variant's calibration lie: its own, or the training rows."""
    calibration = variant.quantization.calibration
    own = calibration is not None and calibration.dataset is not None
    return run_folder / "data" / (f"calibration-{variant.name}.jsonl" if own else "train.jsonl")


def tokens(rows: list[dataset.Placed], settings: Quantization, tokenizer: Any, max_length: int) -> list[list[int]]:
    """Return the tokens of the rows that calibrate, drawn with a fixed seed: each row's first `max_length`.

    So many rows as `numCalibrationSamples` says, or rows of at most `calibration.maxTokens` tokens, the last of them cut there. Raises
    StageError: InvalidDataset naming a row that cannot be rendered, InvalidSettings where it says neither.
    """
    if settings.calibration is None:
        if settings.num_calibration_samples is None:
            raise StageError("InvalidSettings", "one of numCalibrationSamples, calibration must be given")
        chosen = random.Random(SEED).sample(rows, min(settings.num_calibration_samples, len(rows)))
        return [ids[:max_length] for ids in encode(chosen, tokenizer)]
    left, found = settings.calibration.max_tokens, []
    for ids in encode(random.Random(SEED).sample(rows, len(rows)), tokenizer):
        found.append(ids[: min(max_length, left)])
        left -= len(found[-1])
        if not left:
            break
    return found


def check(variant: Variant, count: int, widest: int) -> str | None:
    """Refuse tokens that are fewer than the widest input of a quantized layer; return a warning for fewer than 16 times it.

    GPTQ solves for as many unknowns as a layer has inputs. A variant with `numCalibrationSamples` is only warned of. Raises StageError:
    InvalidSettings where `maxTokens` is too small, InvalidDataset where the rows are.
    """
    calibration = variant.quantization.calibration
    if calibration and count < widest:
        short = f"variant {variant.name!r}: it is calibrated on {count} tokens, fewer than the widest layer that is quantized has inputs ({widest})"
        if calibration.max_tokens < widest:
            raise StageError("InvalidSettings", f"{short}: raise calibration.maxTokens to {ENOUGH * widest}, or {widest} at least")
        raise StageError("InvalidDataset", f"{short}: name a dataset with more rows as calibration.dataset, or set numCalibrationSamples")
    if count < ENOUGH * widest:
        return (
            f"variant {variant.name!r}: it is calibrated on {count} tokens, fewer than {ENOUGH} times the {widest} inputs of the widest layer "
            "that is quantized: measure what it loses, or calibrate it on more"
        )
    return None


def encode(rows: Iterable[dataset.Placed], tokenizer: Any) -> Iterator[list[int]]:
    """Yield rows as tokens, rendered whole; raises StageError(InvalidDataset) naming a row that cannot be."""
    encoder = chat.Encoder(tokenizer, answers=False)
    for item in rows:
        with dataset.placed(item.place):
            yield encoder.whole(item.row)


def batches(rows: Iterable[list[int]], most: int) -> list[dict[str, Any]]:
    """Return a model's inputs: rows of one length side by side, of at most `most` tokens or a single row.

    What calibration costs is a forward pass of each layer for each batch. Rows of unlike lengths do not share one: padding would
    calibrate on tokens that no request has.
    """
    import torch

    alike: dict[int, list[list[int]]] = {}
    for row in filter(None, rows):
        alike.setdefault(len(row), []).append(row)
    parts = [same[start : start + max(1, most // length)] for length, same in alike.items() for start in range(0, len(same), max(1, most // length))]
    return [{"input_ids": torch.tensor(part), "attention_mask": torch.ones(len(part), len(part[0]), dtype=torch.long)} for part in parts]
