"""What quantization is calibrated on: which rows, cut to how many tokens, and in which batches.

Rows stay apart: joined to one sequence, each would be read as the continuation of those before it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tunesmith_trainer import chat, dataset
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.spec import Quantization

# Which rows calibrate must not change from one attempt to the next.
SEED = 42


def tokens(path: Path, settings: Quantization, tokenizer: Any, max_length: int) -> list[list[int]]:
    """Return the tokens of the rows that calibrate, each row's first `max_length`.

    Raises StageError: EmptyDataset where there are no rows, InvalidDataset naming a row that cannot be rendered.
    """
    rows = list(dataset.read_normal(path))
    if not rows:
        raise StageError("EmptyDataset", f"{path.name} has no rows to calibrate on: has Prepare finished for this run?")
    chosen = random.Random(SEED).sample(rows, min(settings.num_calibration_samples, len(rows)))
    return [ids[:max_length] for ids in encode(chosen, tokenizer)]


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
