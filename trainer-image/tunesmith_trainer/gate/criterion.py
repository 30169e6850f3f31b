"""One condition of a gate, as the spec has it, and what can be said of it before anything is measured."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from tunesmith_trainer.spec import Contract, DecimalString, Positive, json_name

Kind = Literal["min", "max", "max_drop", "max_ratio", "min_ratio"]
KINDS: tuple[Kind, ...] = ("min", "max", "max_drop", "max_ratio", "min_ratio")
COMPARING = ("max_drop", "max_ratio", "min_ratio")
CONFIDENCE = "0.95"
OVERLAP = "overlap"
"""Metric of every suite: the share of its items that the tested model was trained on. Counted, not estimated."""


class Criterion(Contract):
    """One condition of the gate: exactly one of min, max, maxDrop, maxRatio, minRatio; the last three against a baseline."""

    metric: str
    baseline: str | None = None
    min: DecimalString | None = None
    max: DecimalString | None = None
    max_drop: DecimalString | None = None
    max_ratio: DecimalString | None = None
    min_ratio: DecimalString | None = None
    higher_is_better: bool | None = None
    min_samples: Positive | None = None
    confidence: DecimalString | None = None

    @model_validator(mode="after")
    def _one_condition(self) -> Criterion:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of {', '.join(map(json_name, KINDS))} must be given")
        if (self.baseline is not None) != (given[0] in COMPARING):
            raise ValueError(f"{json_name(given[0])} {'must not' if self.baseline else 'must'} have a baseline")
        if not 0.5 <= float(self.confidence or CONFIDENCE) < 1:
            raise ValueError("confidence must be at least 0.5 and below 1")
        return self

    @property
    def kind(self) -> Kind:
        """Which condition it is."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    @property
    def limit(self) -> str:
        """The condition's figure, as the user wrote it."""
        return str(getattr(self, self.kind))

    @property
    def suite(self) -> str:
        """The suite that its metric is of."""
        return self.metric.partition("/")[0]

    def direction(self, known: bool | None) -> bool:
        """Return whether more is better of its metric; `known`: what the metric itself says.

        Raises ValueError, saying what to do, where nothing says so, where the two disagree, and for a condition that asks for
        the metric to become worse.
        """
        wanted = self.higher_is_better
        if known is None and wanted is None:
            raise ValueError(f"{self.metric} does not say whether more of it is better: set `higherIsBetter` in the criterion")
        if known is not None and wanted not in (None, known):
            raise ValueError(f"`higherIsBetter: {str(wanted).lower()}` is wrong: of {self.metric} {'more' if known else 'less'} is better")
        higher = wanted if known is None else known
        against = ("max", "max_ratio") if higher else ("min", "min_ratio")
        if self.kind in against:
            instead = {"max": "min", "min": "max", "max_ratio": "minRatio", "min_ratio": "maxRatio"}[self.kind]
            better = "more" if higher else "less"
            raise ValueError(f"`{json_name(self.kind)}` on {self.metric} asks for a worse model, for {better} of it is better: use `{instead}`")
        return bool(higher)
