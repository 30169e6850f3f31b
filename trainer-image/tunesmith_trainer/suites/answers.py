"""Whether a model ends its answers by itself: asked a few of a suite's questions, greedily, as a server would ask it.

A model that was never taught to stop, or whose folder does not name the token that it stops with, answers each request up to the
server's limit. No likelihood shows that.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import dropwhile, islice, takewhile
from operator import itemgetter
from pathlib import Path
from typing import Any

from tunesmith_contract.evaluation import Perplexity
from tunesmith_contract.results import Metric
from tunesmith_trainer.data import chat, dataset
from tunesmith_trainer.data.chat import Encoded, Encoder
from tunesmith_trainer.model import generation
from tunesmith_trainer.suites import overlap
from tunesmith_trainer.suites.items import Figure, Measured

PROMPTS = 8
NEW_TOKENS = 128


def measure(suite: str, settings: Perplexity, model: Any, tokenizer: Any, folder: Path) -> Measured:
    """Return the share of answers that end within NEW_TOKENS tokens at a token at which a server of the folder stops, with its rows.

    Nothing for rows that are no conversations, for a class of models that transformers cannot generate with, and where no question fits.
    """
    if settings.dataset.format not in dataset.CONVERSATIONAL or not model.can_generate():
        return Measured()
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    longest = min(settings.max_length, context - NEW_TOKENS)
    asked = list(islice((question for question in questions(settings, tokenizer) if len(question.ids) <= longest), PROMPTS))
    if not asked:
        print(
            f"{suite}/stopped is not measured: no conversation has a last answer of less than {NEW_TOKENS} tokens to a question that fits", flush=True
        )
        return Measured()
    ends = generation.stops(folder, tokenizer)
    ended = [any(token in ends for token in answer) for answer in answers(model, [question.ids for question in asked], ends)]
    share = sum(ended) / len(ended)
    error = math.sqrt(share * (1 - share) / (len(ended) - 1)) if len(ended) > 1 else None
    path = f"{suite}/stopped"
    metric = Metric(metric=path, value=repr(share), stderr=None if error is None else repr(error), higher_is_better=True, samples=len(ended))
    found = sorted(zip(asked, ended, strict=True), key=lambda pair: pair[0].number)
    items = [overlap.item_of(question.number, question.row, {path: (float(stopped), 1.0)}) for question, stopped in found]
    return Measured([metric], {path: Figure()}, items).checked()


@dataclass(frozen=True)
class Question:
    """The tokens of a server's prompt for the last answer of a row, and the row with its number."""

    ids: list[int]
    number: int
    row: dict[str, Any]


def questions(settings: Perplexity, tokenizer: Any) -> Iterator[Question]:
    """Yield the last questions of conversations, as the prompts that a server makes of them; those with short answers first.

    A good answer that is longer than what is generated would look like one without an end.
    """
    source, encoder = settings.dataset, Encoder(tokenizer, answers=True)
    found = []
    for number, item in enumerate(dataset.Source(Path(source.uri).name, source.uri, source.format)):
        with dataset.placed(item.place):
            asked = encoder.question(item.row)
            answered = encoder.encode(item.row).sequences
            if asked and answered and (length := last_stretch(answered[-1])) <= NEW_TOKENS:
                found.append((length, Question(asked, number, item.row)))
    for _, asked in sorted(found, key=itemgetter(0)):
        yield asked


def last_stretch(sequence: Encoded) -> int:
    """Return how many tokens the last answer of a sequence has, with its end of turn."""
    backwards = dropwhile(operator.not_, reversed(sequence.trained))
    return sum(1 for _ in takewhile(bool, backwards))


def answers(model: Any, asked: list[list[int]], ends: list[int]) -> list[list[int]]:
    """Return the likeliest continuation of each prompt; what follows an end token has no meaning."""
    import torch
    from transformers import GenerationConfig

    # Models with a recurrent state would read padding as text.
    size = 1 if getattr(model, "_is_stateful", False) else len(asked)
    own = model.generation_config
    # The folder's settings of sampling, which generate would fall back to.
    model.generation_config = GenerationConfig()
    try:
        config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=ends or None, pad_token_id=0)
        found = []
        for first in range(0, len(asked), size):
            batch = asked[first : first + size]
            width = max(map(len, batch))
            ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in batch], device=model.device)
            real = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch], device=model.device)
            with torch.inference_mode():
                found += model.generate(input_ids=ids, attention_mask=real, generation_config=config)[:, width:].tolist()
        return found
    finally:
        model.generation_config = own


def warnings(tokenizer: Any, folder: Path) -> list[str]:
    """Say where a server of the folder does not stop at the end of an assistant's turn."""
    turn, ends = chat.end_of_turn(tokenizer), generation.stops(folder, tokenizer)
    if not turn or turn[-1] in ends:
        return []
    names = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(ends))) or "nothing"
    return [
        f"the chat template ends an assistant's turn with {tokenizer.decode(turn)!r}, but a server stops at {names}: "
        f"add token {turn[-1]} to eos_token_id in {generation.FILE}"
    ]
