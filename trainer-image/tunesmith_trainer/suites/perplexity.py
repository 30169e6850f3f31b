"""Token-level perplexity over the tokens that a training loss would be taken on, and bits per byte beside it.

With s the summed negative log-likelihood (in nats) of a row's scored tokens, n their number and b the bytes of their text,
over all rows: perplexity = exp(sum s / sum n), bits_per_byte = sum s / (ln 2 * sum b). Both are functions of a ratio of sums,
so their standard errors come from the delta method with rows as the independent units.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith_contract.evaluation import Perplexity
from tunesmith_contract.results import Metric
from tunesmith_trainer import store
from tunesmith_trainer.data import dataset
from tunesmith_trainer.data.chat import Encoded, Encoder, training_template
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.suites import overlap
from tunesmith_trainer.suites.items import Figure, Item, Measured, written

METHOD = 3
"""Part of the cache key: to be raised whenever a change here changes a figure."""
# Logits of one batch are held to this many numbers: half a gigabyte in 16 bits.
LOGITS = 1 << 28
# On a CPU larger batches gain nothing, and rows of unlike lengths cost padding.
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Row:
    """A sequence ready to be scored: its tokens, which of them count, and the bytes that those stand for."""

    ids: list[int]
    trained: list[bool]
    size: int
    number: int = 0
    """Of the row in the data, which may have several sequences."""


@dataclass(frozen=True)
class Score:
    """One row's negative log-likelihood in nats, and over how many tokens and bytes."""

    nll: float
    tokens: int
    size: int
    number: int = 0


def measure(suite: str, settings: Perplexity, model: Any, tokenizer: Any) -> Measured:
    """Return a suite's two metrics for a loaded model, and its rows.

    Raises StageError: SourceNotFound and InvalidDataset for the data, EmptyDataset when no token is left to score,
    UnsupportedTemplate when the model's chat template cannot mark the assistant's tokens.
    """
    rows = read_rows(settings, tokenizer)
    scores = by_row(score(model, rows))
    metrics = [
        _metric(f"{suite}/perplexity", perplexity(scores), len(scores)),
        _metric(f"{suite}/bits_per_byte", bits_per_byte(scores), len(scores)),
    ]
    # A row is at worst as if every token of the vocabulary were as likely as any other.
    worst = math.log(model.config.get_text_config().vocab_size)
    tokens_a_byte = sum(one.tokens for one in scores) / max(1, sum(one.size for one in scores))
    figures = {
        f"{suite}/perplexity": Figure("Exp", (0.0, worst), tokens_digest(rows, tokenizer)),
        f"{suite}/bits_per_byte": Figure("Identity", (0.0, worst / math.log(2) * tokens_a_byte)),
    }
    return Measured(metrics, figures, list(items(suite, settings, scores))).checked()


def items(suite: str, settings: Perplexity, scores: Sequence[Score]) -> Iterator[Item]:
    """Yield the rows with their scores, in the data's order."""
    source = dataset.Source(Path(settings.dataset.uri).name, settings.dataset.uri, settings.dataset.format)
    found = {one.number: one for one in scores}
    for number, item in enumerate(source):
        if one := found.get(number):
            values = {f"{suite}/perplexity": (one.nll, float(one.tokens)), f"{suite}/bits_per_byte": (one.nll / math.log(2), float(one.size))}
            yield overlap.item_of(number, item.row, values)


def tokens_digest(rows: Sequence[Row], tokenizer: Any) -> str:
    """Return the digest of the tokens that are scored, as texts: models whose digests differ count unlike things."""
    scored = ([token for token, counts in zip(row.ids, row.trained, strict=True) if counts] for row in rows)
    digest = hashlib.sha256()
    for ids in scored:
        digest.update(json.dumps(tokenizer.convert_ids_to_tokens(ids)).encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"


def template_of(settings: Perplexity, tokenizer: Any) -> dict[str, Any] | None:
    """Return the chat templates that rows are rendered with; None for texts."""
    templates = training_template(tokenizer)
    if settings.dataset.format not in dataset.CONVERSATIONAL or not templates:
        return None
    return {"templates": templates}


def data_digest(settings: Perplexity) -> str:
    """Return the digest of the rows' file or folder; raises StageError(SourceNotFound)."""
    return dataset.digest(store.existing(settings.dataset.uri))


def read_rows(settings: Perplexity, tokenizer: Any) -> list[Row]:
    """Return the sequences that have at least one token to score, cut at maxLength as training cuts them."""
    source = settings.dataset
    encoder = Encoder(tokenizer, answers=True)
    if source.format == "Messages":
        encoder.check_template()
    rows, cut = [], 0
    for number, item in enumerate(dataset.Source(Path(source.uri).name, source.uri, source.format)):
        with dataset.placed(item.place):
            sequences = encoder.encode(item.row).sequences
        cut += any(len(sequence.ids) > settings.max_length for sequence in sequences)
        rows += [row for sequence in sequences if (row := _row(sequence, number, settings.max_length, tokenizer))]
    if cut:
        print(f"{source.uri}: {cut} rows are longer than maxLength ({settings.max_length}) and were cut", flush=True)
    if not rows:
        raise StageError("EmptyDataset", f"{source.uri} has no token to score within maxLength ({settings.max_length})")
    return rows


def _row(sequence: Encoded, number: int, max_length: int, tokenizer: Any) -> Row | None:
    ids = sequence.ids[:max_length]
    # The first token has nothing before it that could predict it.
    trained = [False, *sequence.trained[1:max_length]]
    scored = [token for token, counts in zip(ids, trained, strict=True) if counts]
    if not scored:
        return None
    text = tokenizer.decode(scored, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Row(ids, trained, len(text.encode()), number)


def score(model: Any, rows: Sequence[Row]) -> Iterator[Score]:
    """Yield the score of each row, shortest first. Logits are taken to 32 bits before the softmax."""
    import torch

    ordered = sorted(rows, key=lambda row: len(row.ids))
    budget = max(1, min(BATCH_TOKENS, LOGITS // model.config.get_text_config().vocab_size))
    with torch.inference_mode():
        for batch in batches(ordered, budget):
            yield from _score_batch(model, batch)


def by_row(scores: Iterable[Score]) -> list[Score]:
    """Return one score for each row of the data: the sequences of one row are not independent of one another."""
    found: dict[int, Score] = {}
    for one in scores:
        other = found.get(one.number, Score(0.0, 0, 0, one.number))
        found[one.number] = Score(one.nll + other.nll, one.tokens + other.tokens, one.size + other.size, one.number)
    return list(found.values())


def batches(rows: Sequence[Row], tokens: int) -> Iterator[list[Row]]:
    """Yield runs of `rows` (sorted by length) that take at most `tokens` tokens when padded; a longer row comes alone."""
    batch: list[Row] = []
    for row in rows:
        if batch and len(row.ids) * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _score_batch(model: Any, batch: list[Row]) -> Iterator[Score]:
    import torch

    width = max(len(row.ids) for row in batch)
    ids = torch.zeros((len(batch), width), dtype=torch.long)
    attention = torch.zeros_like(ids)
    counts = torch.zeros_like(ids, dtype=torch.bool)
    for number, row in enumerate(batch):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        attention[number, : len(row.ids)] = 1
        counts[number, : len(row.ids)] = torch.tensor(row.trained)
    ids, attention, counts = (tensor.to(model.device) for tensor in (ids, attention, counts))
    logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits
    # Position t predicts token t + 1.
    wanted = counts[:, 1:]
    losses = torch.nn.functional.cross_entropy(logits[:, :-1][wanted].float(), ids[:, 1:][wanted], reduction="none")
    parts = torch.split(losses.double(), wanted.sum(dim=1).tolist())
    for row, part in zip(batch, parts, strict=True):
        yield Score(float(part.sum()), len(part), row.size, row.number)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, float | None]:
    """Return the ratio of two sums and its standard error by the delta method; None with fewer than two rows."""
    total, count = math.fsum(denominators), len(denominators)
    value = math.fsum(numerators) / total if total else math.nan
    if count < 2 or not total:
        return value, None
    squares = math.fsum((top - value * bottom) ** 2 for top, bottom in zip(numerators, denominators, strict=True))
    return value, math.sqrt(count / (count - 1) * squares) / total


def perplexity(scores: Sequence[Score]) -> tuple[float, float | None]:
    """Return exp(nats per token) and its standard error."""
    mean, error = ratio([score.nll for score in scores], [score.tokens for score in scores])
    try:
        value = math.exp(mean)
    except OverflowError:
        return math.inf, None
    return value, None if error is None else value * error


def bits_per_byte(scores: Sequence[Score]) -> tuple[float, float | None]:
    """Return bits per byte of text and its standard error."""
    mean, error = ratio([score.nll for score in scores], [score.size for score in scores])
    return mean / math.log(2), None if error is None else error / math.log(2)


def _metric(path: str, estimate: tuple[float, float | None], samples: int) -> Metric:
    value, error = estimate
    return Metric(
        metric=path,
        value=written(value),
        stderr=None if error is None else written(error),
        higher_is_better=False,
        samples=samples,
    )
