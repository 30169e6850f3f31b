"""Finds the items of an evaluation in the data that a model was trained on.

An item is found whole, or in part: a stretch of thirteen words (GPT-3's paper counts so) that it shares with a row. Compared are
texts without case, and with their spaces made one; system messages, and the words around an instruction, say nothing of an item.
Only hashes are kept: items lie on a volume where their texts need not be.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith_trainer.data import turns
from tunesmith_trainer.suites.items import Item, Marks

SYSTEM = ("system", "developer")
STRETCH = 13
STRETCHES = 3
"""Of an item's words: the first ones, those in the middle, the last ones."""
COMMON = 3
"""A stretch that more items than this share is a form's, not an item's."""
WORDS = 50_000_000
"""Of the training data, in which stretches are looked for: about a minute's work. Beyond, only whole texts are."""


@dataclass(frozen=True)
class Found:
    """How many of a suite's items are in the training data."""

    items: int
    equal: int
    similar: int
    """In part, and not whole."""


def normal(text: str) -> str:
    """Return a text as it is compared."""
    return " ".join(text.casefold().split())


def texts_of(row: Mapping[str, Any]) -> list[str]:
    """Return what distinguishes a normalised row, as it is compared: all turns but the system's, prompt and completion, or the text."""
    return _texts(message for message in _turns(row) if message.get("role") not in SYSTEM)


def answers_of(row: Mapping[str, Any]) -> list[str]:
    """Return what a row has of its own: a prompt's words may be a form's."""
    return _texts(message for message in _turns(row) if message.get("role") == "assistant")


def _turns(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a row as turns, whatever its format."""
    if "messages" in row:
        return list(row["messages"])
    asked, said = row.get("prompt"), row.get("completion", row.get("text"))
    before = asked if isinstance(asked, list) else [{"role": "user", "content": asked}]
    return [*before, *(said if isinstance(said, list) else [{"role": "assistant", "content": said}])]


def _texts(messages: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the texts of turns; one that only calls tools says its calls."""
    found = []
    for message in messages:
        pieces = turns.texts(message) or [json.dumps(call, sort_keys=True, ensure_ascii=False) for call in message.get("tool_calls") or ()]
        found += [normal("\n".join(pieces))] if pieces else []
    return found


def marks_of(row: Mapping[str, Any]) -> Marks:
    """Return the marks of a row of a dataset: it is found whole where all of its texts are one row's."""
    return Marks((_hash("\n".join(texts_of(row))),), tuple(_some(answers_of(row))))


def item_of(number: int, row: Mapping[str, Any], values: Mapping[str, tuple[float, float]]) -> Item:
    """Return a row of a dataset as an item: known by its number, and by what it says."""
    marks = marks_of(row)
    return Item(f"{number}-{marks.whole[0]}", values, marks)


def marks_of_document(texts: Iterable[str]) -> Marks:
    """Return the marks of a task's document: it is found whole where its question is a turn, a prompt or a text of a row."""
    longest = sorted({normal(text) for text in texts if text.strip()}, key=len, reverse=True)[:2]
    return Marks(tuple(_hash(text) for text in longest), tuple(_some(longest[:1])))


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _some(texts: Sequence[str]) -> Iterator[str]:
    words = max((text.split() for text in texts), key=len, default=[])
    last = len(words) - STRETCH
    if last >= 0:
        for start in sorted({last * part // (STRETCHES - 1) for part in range(STRETCHES)}):
            yield _hash(" ".join(words[start : start + STRETCH]))


def find(suites: Mapping[str, Sequence[Item]], rows: Iterable[Mapping[str, Any]]) -> dict[str, Found]:
    """Count each suite's items that are in `rows`, the data trained on, which is read once."""
    wanted = {mark for items in suites.values() for item in items for mark in item.marks.whole}
    stretches = {stretch for items in suites.values() for stretch in _telling(items)}
    seen: set[str] = set()
    words = 0
    for row in rows:
        texts = texts_of(row)
        seen.update(mark for mark in map(_hash, {"\n".join(texts), *texts}) if mark in wanted)
        if stretches and words < WORDS:
            for text in texts:
                parts = text.split()
                words += len(parts)
                found = (_hash(" ".join(parts[start : start + STRETCH])) for start in range(len(parts) - STRETCH + 1))
                seen.update(stretch for stretch in found if stretch in stretches)
    return {suite: _count(items, seen) for suite, items in suites.items()}


def _telling(items: Sequence[Item]) -> set[str]:
    """Return the stretches that are not a form's."""
    shared = Counter(stretch for item in items for stretch in set(item.marks.stretches))
    return {stretch for stretch, times in shared.items() if times <= COMMON}


def _count(items: Sequence[Item], seen: set[str]) -> Found:
    telling = _telling(items)
    equal = [any(mark in seen for mark in item.marks.whole) for item in items]
    similar = [any(stretch in seen and stretch in telling for stretch in item.marks.stretches) for item in items]
    return Found(len(items), sum(equal), sum(part and not whole for whole, part in zip(equal, similar, strict=True)))
