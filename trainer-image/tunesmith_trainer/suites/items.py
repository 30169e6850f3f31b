"""The items that a figure was made of: kept beside it, so that a gate can tell a difference from chance.

Each item (a row of a dataset, a document of a task) has an identity, marks by which it is found again in training data, and for
each figure a top and a bottom: the figure is `link(sum of tops / sum of bottoms)`. No text of an item is kept.

A file of items has its figures in the first line and an item in each other one (docs/contract.md, Evaluate).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tunesmith_contract.results import ItemsFile, Metric
from tunesmith_trainer import store
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.gate.statistics import Column

Link = Literal["Identity", "Exp"]
TOLERANCE = 1e-6
"""How far a figure may be from the one that its items make: sums in another order."""


def written(value: float) -> str:
    """Return a figure as the contract writes it: the shortest decimal that reads back the same, or NaN, Infinity."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return repr(float(value))


@dataclass(frozen=True)
class Figure:
    """How items make a figure."""

    link: Link = "Identity"
    ends: tuple[float, float] | None = None
    """Least and greatest that a top can be for each unit of its bottom, where that is known."""
    units: str | None = None
    """Digest of what the bottoms count, where models may count unlike things (tokens)."""
    parts: Mapping[str, float] | None = None
    """Of a group's figure: its tasks' figures, and what each of their items weighs."""


@dataclass(frozen=True)
class Marks:
    """By what an item is found in training data: hashes of all of it, and of a few stretches of its words."""

    whole: tuple[str, ...] = ()
    stretches: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """One item: `values` has top and bottom for each figure that it is a part of."""

    id: str
    values: Mapping[str, tuple[float, float]]
    marks: Marks = Marks()


@dataclass
class Measured:
    """What a suite measured on one model."""

    metrics: list[Metric] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)

    def checked(self) -> Measured:
        """Return the same without figures that their items do not make: such a figure counts as one without items."""
        values = {metric.metric: float(metric.value) for metric in self.metrics}
        figures = {path: figure for path, figure in self.figures.items() if path in values and _agrees(self.sample(path), values[path])}
        return Measured(self.metrics, figures, self.items)

    def beside(self, other: Measured) -> Measured:
        """Return all figures of two measurements of the same data; an item of both has the values of both."""
        mine = {item.id: item for item in self.items}
        for item in other.items:
            known = mine.get(item.id, item)
            mine[item.id] = replace(known, values={**known.values, **item.values})
        return Measured([*self.metrics, *other.metrics], {**self.figures, **other.figures}, list(mine.values()))

    def sample(self, path: str) -> Sample | None:
        """Return the items of a figure in their order, or None for one that was measured without."""
        figure = self.figures.get(path)
        if figure is None:
            return None
        parts = figure.parts or {path: 1.0}
        found = [
            (item.id, weight * item.values[part][0], item.values[part][1])
            for item in self.items
            for part, weight in parts.items()
            if part in item.values
        ]
        if not found:
            return None
        ids, tops, bottoms = zip(*found, strict=True)
        return Sample(ids, Column(tops, bottoms), figure)


@dataclass(frozen=True)
class Sample:
    """A figure's items."""

    ids: tuple[str, ...]
    column: Column
    figure: Figure

    @property
    def is_binary(self) -> bool:
        """Whether the figure is a share of 0/1 items."""
        return self.figure.link == "Identity" and set(self.column.bottoms) == {1} and set(self.column.tops) <= {0, 1}


def _agrees(sample: Sample | None, value: float) -> bool:
    if sample is None or not all(map(math.isfinite, (value, *sample.column.tops, *sample.column.bottoms))):
        return False
    bottom = math.fsum(sample.column.bottoms)
    if bottom <= 0:
        return False
    ratio = math.fsum(sample.column.tops) / bottom
    try:
        made = math.exp(ratio) if sample.figure.link == "Exp" else ratio
    except OverflowError:
        return False
    return math.isclose(made, value, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def content(measured: Measured) -> bytes:
    """Return a file of items."""
    head = {"figures": {path: _compact(vars(figure)) for path, figure in measured.figures.items()}}
    kept = {part for path, figure in measured.figures.items() for part in figure.parts or (path,)}
    values = [{path: pair for path, pair in item.values.items() if path in kept} for item in measured.items]
    lines = [{"id": item.id, "values": pairs} | _compact(vars(item.marks)) for item, pairs in zip(measured.items, values, strict=True)]
    return b"".join(store.canonical_json(line) + b"\n" for line in (head, *lines))


def _compact(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (None, ())}


def write(folder: Path, measured: Measured) -> str:
    """Write a file of items under its digest's name and return the digest."""
    written = content(measured)
    digest = hashlib.sha256(written).hexdigest()
    path = place(folder, digest)
    if not path.exists():
        store.write_bytes(path, written)
    return f"sha256:{digest}"


def place(folder: Path, digest: str) -> Path:
    """Return where the file of items with that digest lies under `folder`."""
    return folder / f"{digest.removeprefix('sha256:')}.jsonl"


def read(files: Iterable[ItemsFile]) -> Measured:
    """Return figures and items of all files; raises StageError(SourceNotFound, DigestMismatch) for a file that is not there or another one."""
    whole = Measured()
    for file in files:
        written = store.existing(file.uri).read_bytes()
        if "sha256:" + hashlib.sha256(written).hexdigest() != file.digest:
            raise StageError("DigestMismatch", f"{file.uri} was changed after it was written: delete it, and evaluate again in a new EvalRun")
        head, *lines = (json.loads(line) for line in written.splitlines())
        whole.figures |= {path: _figure(value) for path, value in head["figures"].items()}
        whole.items += [_item(line) for line in lines]
    return whole


def _figure(value: Mapping[str, Any]) -> Figure:
    ends = value.get("ends")
    return Figure(value.get("link", "Identity"), tuple(ends) if ends else None, value.get("units"), value.get("parts"))


def _item(line: Mapping[str, Any]) -> Item:
    marks = Marks(tuple(line.get("whole", ())), tuple(line.get("stretches", ())))
    return Item(line["id"], {path: tuple(pair) for path, pair in line["values"].items()}, marks)
