"""Training data: reading JSON Lines in several shapes, checking every row, and dropping the ones not wanted."""

from __future__ import annotations

import hashlib
import json
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from tunesmith_trainer import store
from tunesmith_trainer.chat import encode
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.spec import DataFormat, Preparation

Row = dict[str, Any]
ROLES = ("system", "user", "assistant")
SUFFIXES = (".jsonl", ".json")
ALPACA_HEAD = "Below is an instruction that describes a task{}. Write a response that appropriately completes the request.\n\n"
# CPU time that a row's patterns may take: some backtrack for ever.
PATTERN_SECONDS = 5.0


class RowError(ValueError):
    """What is wrong with one row, to be told with its file and number."""


@dataclass
class Loaded:
    """A dataset's digest, the rows kept, and how many were dropped for which reason."""

    digest: str
    rows: list[Row] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def files_of(source: Path) -> list[Path]:
    """Return the data files of a source: itself, or a folder's JSON Lines files in order."""
    if source.is_file():
        return [source]
    return [path for path in store.listed_files(source) if path.suffix in SUFFIXES]


def digest(source: Path) -> str:
    """Return a source's digest: of a file its bytes, of a folder its manifest."""
    return store.file_digest(source) if source.is_file() else store.scan(source).digest


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"{key!r} must be a text that is not empty")
    return value


def _messages(row: Row) -> Row:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RowError("'messages' must be a list of at least one message")
    normal = []
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise RowError(f"messages[{number}].role must be one of {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise RowError(f"messages[{number}].content must be a text")
        normal.append({"role": message["role"], "content": message["content"]})
    if not any(message["role"] == "assistant" and message["content"].strip() for message in normal):
        raise RowError("no message of the assistant: there is nothing to learn from this row")
    return {"messages": normal}


def _alpaca(row: Row) -> Row:
    """Word a row as Stanford Alpaca does, with its two heads."""
    instruction, output = _text(row, "instruction"), _text(row, "output")
    given = row.get("input") or ""
    if not isinstance(given, str):
        raise RowError("'input' must be a text where it is present")
    head = ALPACA_HEAD.format(", paired with an input that provides further context" if given else "")
    middle = f"### Input:\n{given}\n\n" if given else ""
    return {"prompt": f"{head}### Instruction:\n{instruction}\n\n{middle}### Response:\n", "completion": output}


def _prompt_completion(row: Row) -> Row:
    return {"prompt": _text(row, "prompt"), "completion": _text(row, "completion")}


def _plain(row: Row) -> Row:
    return {"text": _text(row, "text")}


NORMALISERS: dict[DataFormat, Callable[[Row], Row]] = {
    "Messages": _messages,
    "Alpaca": _alpaca,
    "PromptCompletion": _prompt_completion,
    "Text": _plain,
}


def read(name: str, uri: str, data_format: DataFormat) -> Iterator[Row]:
    """Yield a source's rows, normalised; raises StageError naming the dataset, the file, the row and what is wrong."""
    source = store.existing(uri)
    paths = files_of(source)
    if not paths:
        raise StageError("InvalidDataset", f"dataset {name!r}: {uri} holds no .jsonl file")
    for path in paths:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    try:
                        yield _parse(line, data_format)
                    except RowError as error:
                        place = f"dataset {name!r}, file {path.name}, row {number}"
                        raise StageError("InvalidDataset", f"{place}: {error} (format {data_format})") from None


def _parse(line: bytes, data_format: DataFormat) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise RowError(f"not JSON ({error})") from None
    if not isinstance(row, dict):
        raise RowError("not a JSON object")
    return NORMALISERS[data_format](row)


def texts(row: Row) -> list[str]:
    """Return every text in a row."""
    if "messages" in row:
        return [message["content"] for message in row["messages"]]
    return list(row.values())


class Filter:
    """Says of a row why it is dropped, if it is."""

    def __init__(self, preparation: Preparation, tokenizer: Any, template: str | None, max_length: int) -> None:
        """Compile the patterns; raises StageError(InvalidSettings) for one that is no regular expression."""
        self._min_tokens = preparation.min_tokens
        self._tokenizer = tokenizer
        self._template = template
        self._max_length = max_length
        self._patterns = [_compile(pattern) for pattern in preparation.drop_patterns]

    def reason(self, row: Row) -> str | None:
        """Return why a row is dropped, or None for a row to keep; raises StageError(InvalidSettings) for a pattern that finds no end."""
        if self._patterns and self._matches(row):
            return "matches a dropPattern"
        encoded = encode(self._tokenizer, row, self._template)
        if len(encoded.ids) < self._min_tokens:
            return f"shorter than minTokens ({self._min_tokens})"
        if not any(encoded.trained[: self._max_length]):
            return f"nothing to train on within maxLength ({self._max_length})"
        return None

    def _matches(self, row: Row) -> bool:
        tried = ""
        try:
            with cpu_limit(PATTERN_SECONDS):
                for pattern in self._patterns:
                    tried = pattern.pattern
                    if any(pattern.search(text) for text in texts(row)):
                        return True
        except TimeoutError:
            message = f"preparation.dropPatterns: {tried!r} found no end in one row within {PATTERN_SECONDS:.0f} s"
            raise StageError("InvalidSettings", f"{message}: it tries too many ways, as nested + and * do; word it with fewer") from None
        return False


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise StageError("InvalidSettings", f"preparation.dropPatterns: {pattern!r} is no regular expression: {error}") from None


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what takes more CPU time than that. In the main thread alone; `re` looks for signals while it searches.

    The package `regex` has a time limit of its own, but takes other patterns than `re`: `a{e}` is a fuzzy match, `\\frac{d}{dx}` an error.
    """

    def expire(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, expire)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def load(name: str, uri: str, data_format: DataFormat, rule: Filter) -> Loaded:
    """Read, check and filter a dataset; raises StageError(EmptyDataset) with counts where nothing is left."""
    loaded = Loaded(digest(store.existing(uri)))
    for row in read(name, uri, data_format):
        why = rule.reason(row)
        if why is None:
            loaded.rows.append(row)
        else:
            loaded.dropped[why] += 1
    if not loaded.rows:
        counts = "; ".join(f"{count} {why}" for why, count in loaded.dropped.most_common()) or "the files have no rows"
        raise StageError("EmptyDataset", f"dataset {name!r} has no row left: {counts}")
    return loaded


def split(rows: list[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Return the rows to train on and to validate on.

    A row's side depends on its content alone, so equal rows never land on both sides and the order of files does not
    matter. At least one row validates; raises StageError(EmptyDataset) where none would be left to train on.
    """
    marks = [int.from_bytes(hashlib.sha256(store.canonical_json([seed, row])).digest()[:8]) / 2**64 for row in rows]
    threshold = max(fraction, min(marks) + 2**-53)
    validation = [row for row, mark in zip(rows, marks, strict=True) if mark < threshold]
    train = [row for row, mark in zip(rows, marks, strict=True) if mark >= threshold]
    if not train:
        raise StageError("EmptyDataset", f"validation.fraction {fraction} of {len(rows)} rows leaves none to train on")
    return train, validation


def write(path: Path, rows: list[Row]) -> None:
    """Write rows as JSON Lines."""
    store.write_bytes(path, b"".join(store.canonical_json(row) + b"\n" for row in rows))


def read_normal(path: Path) -> Iterator[Row]:
    """Yield the rows of a file that `write` wrote; none where there is no file."""
    if path.is_file():
        with path.open("rb") as lines:
            for line in lines:
                yield json.loads(line)
