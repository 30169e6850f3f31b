"""Training data: reading it row by row, counting what is lost of it, and dropping the rows that are not wanted."""

from __future__ import annotations

import hashlib
import json
import re
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from tunesmith_contract.data import Format, Preparation
from tunesmith_trainer import store
from tunesmith_trainer.data import files, formats
from tunesmith_trainer.data.chat import Encoded, Encoder, Encoding
from tunesmith_trainer.errors import RowError, StageError

Row = dict[str, Any]
# Formats whose rows may be conversations.
CONVERSATIONAL = ("Messages", "PromptCompletion")
# CPU time that a row's patterns may take: some backtrack for ever.
PATTERN_SECONDS = 5.0


@dataclass(frozen=True)
class Placed:
    """A normalised row, and where it was read."""

    row: Row
    place: str


@dataclass
class Source:
    """A dataset's rows by their place, and what reading them has shown so far: rows of each file, and columns that were left out.

    Iterating raises StageError naming the dataset, the file, the row and what is wrong.
    """

    name: str
    uri: str
    format: Format
    files: dict[str, int] = field(default_factory=dict)
    ignored: set[str] = field(default_factory=set)

    def __iter__(self) -> Iterator[Placed]:
        """Yield every row, normalised."""
        try:
            paths = files.of(store.existing(self.uri))
        except files.FilesError as error:
            raise StageError("InvalidDataset", f"dataset {self.name!r}: {self.uri}: {error}") from None
        for name, path in paths.items():
            self.files[name] = 0
            for number, value in files.rows(path):
                place = f"dataset {self.name!r}, file {name}, row {number}"
                try:
                    if isinstance(value, RowError):
                        raise value
                    row, left = formats.normalise(value, self.format)
                    _check_storable(row)
                except RowError as error:
                    raise StageError("InvalidDataset", f"{place}: {error} (format {self.format})") from None
                self.files[name] += 1
                self.ignored |= left
                yield Placed(row, place)


def _check_storable(row: Row) -> None:
    """Refuse a row that cannot be written down again: numbers that JSON has not, halves of letters."""
    try:
        store.canonical_json(row)
    except UnicodeEncodeError:
        raise RowError("a text holds half of a surrogate pair (\\ud800 to \\udfff), which is no letter") from None
    except (ValueError, RecursionError):
        raise RowError("NaN, Infinity, or nested too deep") from None


@contextmanager
def placed(place: str) -> Iterator[None]:
    """Turn a RowError into the stage's, naming where the row was read."""
    try:
        yield
    except RowError as error:
        raise StageError("InvalidDataset", f"{place}: {error}") from None
    except RecursionError:
        raise StageError("InvalidDataset", f"{place}: nested too deep") from None


def digest(source: Path) -> str:
    """Return a source's digest: of a file its bytes, of a folder its manifest."""
    return store.file_digest(source) if source.is_file() else store.scan(source).digest


def texts(value: Any) -> Iterator[str]:
    """Yield every text in a row, but for the roles."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, member in value.items():
            if key not in ("role", "type"):
                yield from texts(member)
    elif isinstance(value, list):
        for member in value:
            yield from texts(member)


@dataclass(frozen=True)
class Cut:
    """What of a sequence is trained on where it is longer than maxLength: its beginning, its end, or all where packing goes on in the next."""

    max_length: int
    keeps: str = "start"

    def kept(self, sequence: Encoded) -> list[bool]:
        """Return which of the tokens that are trained on are in the loss."""
        if self.keeps == "all":
            return sequence.trained
        return sequence.trained[: self.max_length] if self.keeps == "start" else sequence.trained[-self.max_length :]

    def splits(self, sequence: Encoded) -> bool:
        """Return whether an answer is cut in two, so that it is trained without its end."""
        return self.keeps == "start" and len(sequence.ids) > self.max_length and all(sequence.trained[self.max_length - 1 : self.max_length + 1])


@dataclass
class Counts:
    """What became of a dataset's rows as sequences of tokens."""

    sequences: int = 0
    longest: int = 0
    """Tokens of the longest sequence."""
    cut_rows: int = 0
    cut_tokens: int = 0
    endless_rows: int = 0
    stripped_rows: int = 0
    switches: Counter[str] = field(default_factory=Counter)
    ends: Counter[int] = field(default_factory=Counter)
    """The tokens by which trained stretches end."""

    def add(self, encoding: Encoding, kept: list[list[bool]], cut: Cut) -> None:
        """Count a row's sequences, of which `kept` says which tokens are trained within maxLength."""
        pairs = list(zip(encoding.sequences, kept, strict=True))
        lost = sum(sum(sequence.trained) - sum(part) for sequence, part in pairs)
        shorter = any(len(part) < len(sequence.ids) for sequence, part in pairs)
        self.sequences += sum(map(any, kept))
        self.longest = max(self.longest, *(len(sequence.ids) for sequence in encoding.sequences))
        # What follows the last token that is trained, such as a line break, is no loss; what stands before an answer is.
        self.cut_rows += bool(lost) or (shorter and cut.keeps == "end")
        self.cut_tokens += lost
        self.endless_rows += any(cut.splits(sequence) for sequence in encoding.sequences)
        self.stripped_rows += encoding.stripped
        if encoding.switch:
            self.switches[encoding.switch] += 1
        for sequence in encoding.sequences:
            goes_on = [*sequence.trained[1:], False]
            self.ends.update(token for token, trained, more in zip(sequence.ids, sequence.trained, goes_on, strict=True) if trained and not more)


class Filter:
    """Says of a row why it is dropped, if it is, and counts what becomes of the others."""

    def __init__(self, preparation: Preparation | None, encoder: Encoder, cut: Cut) -> None:
        """Compile the patterns; raises StageError(InvalidSettings) for one that is no regular expression."""
        wanted = preparation or Preparation()
        self._min_tokens = wanted.min_tokens or 0
        self._encoder = encoder
        self._cut = cut
        self._patterns = [_compile(pattern) for pattern in wanted.drop_patterns or ()]

    def reason(self, row: Row, counts: Counts) -> str | None:
        """Return why a row is dropped, or None for a row to keep; raises StageError(InvalidSettings) for a pattern that finds no end.

        Raises RowError for a row that the model's template or tokenizer cannot take.
        """
        if self._patterns and self._matches(row):
            return "matches a dropPattern"
        encoding = self._encoder.encode(row)
        if not encoding.sequences:
            return "nothing to train on: no answer has a weight"
        if max(len(sequence.ids) for sequence in encoding.sequences) < self._min_tokens:
            return f"shorter than minTokens ({self._min_tokens})"
        kept = [self._cut.kept(sequence) for sequence in encoding.sequences]
        if not any(map(any, kept)):
            return f"nothing to train on within maxLength ({self._cut.max_length})"
        counts.add(encoding, kept, self._cut)
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


@dataclass
class Loaded:
    """A dataset's digest, where it was read, the rows kept, how many were dropped for which reason, and what became of the others."""

    digest: str
    source: Source
    rows: list[Row] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    counts: Counts = field(default_factory=Counts)


def load(source: Source, rule: Filter) -> Loaded:
    """Read, check and filter a dataset; raises StageError(EmptyDataset) with counts where nothing is left."""
    loaded = Loaded(digest(store.existing(source.uri)), source)
    for item in source:
        with placed(item.place):
            why = rule.reason(item.row, loaded.counts)
        if why is None:
            loaded.rows.append(item.row)
        else:
            loaded.dropped[why] += 1
    if not loaded.rows:
        counts = "; ".join(f"{count} {why}" for why, count in loaded.dropped.most_common()) or "the files have no rows"
        raise StageError("EmptyDataset", f"dataset {source.name!r} has no row left: {counts}")
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


def read_normal(path: Path) -> Iterator[Placed]:
    """Yield the rows of a file that `write` wrote, with their places; none where there is no file."""
    if path.is_file():
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                yield Placed(json.loads(line), f"file data/{path.name}, row {number}")
