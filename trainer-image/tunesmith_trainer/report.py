"""The HTML report of a comparison: one file without scripts and without anything loaded from elsewhere.

Everything that comes from a user, a model or a dataset goes through Jinja's autoescaping; the page's Content-Security-Policy
forbids scripts altogether, should anything ever slip through.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Any

from tunesmith_trainer import store
from tunesmith_trainer.contract_eval import CompareInput, EvaluateResult, Metric
from tunesmith_trainer.gate import Decision, Verdict
from tunesmith_trainer.timeline import Span, timeline

DIGITS, ERROR_DIGITS = 5, 2
"""Significant digits of figures and of their standard errors on the page; results.json has them in full."""
SAMPLE_TOKENS = 1500
"""Tokens of the data sample that are shown; one long document would push everything else off the page."""


@dataclass(frozen=True)
class Comparison:
    """All that a report tells of."""

    stage: CompareInput
    evaluations: dict[str, EvaluateResult]
    """By model name, the tested model first."""
    decisions: list[Decision]
    verdict: Verdict


@dataclass(frozen=True)
class Delta:
    """The tested model against one baseline."""

    text: str
    tone: str
    """`better`, `worse` or `same`, by the metric's direction; `same` also where it has none."""


@dataclass(frozen=True)
class Run:
    """What the FineTuneJob left behind; every part may be missing."""

    settings: list[tuple[str, list[tuple[str, str]]]]
    digests: list[tuple[str, str, str]]
    libraries: dict[str, str]
    sample: list[tuple[bool, str]]
    sample_note: str
    chart: str | None


def render(comparison: Comparison) -> str:
    """Return the report as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    stage = comparison.stage
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    run = read_run(stage)
    return environment.get_template("report.html.jinja").render(
        stage=stage,
        verdict=comparison.verdict,
        summary=summary(comparison),
        gate=list(zip(stage.gate, comparison.decisions, strict=True)),
        models=[*(model.name for model in stage.baselines), stage.tested.name],
        metrics=metric_rows(comparison),
        warnings=[(name, text) for name, found in comparison.evaluations.items() for text in found.warnings or ()],
        timeline=timeline(spans(comparison)),
        run=run,
        suites=[(suite.name, describe(suite.dump())) for suite in stage.suites],
        digests=[(model.name, model.uri, model.digest) for model in (stage.tested, *stage.baselines)] + run.digests,
        versions=sorted((run.libraries | comparison.evaluations[stage.tested.name].versions).items()),
        figure=figure,
        error=lambda text: figure(text, ERROR_DIGITS),
    )


def summary(comparison: Comparison) -> str:
    """Return the verdict in one sentence."""
    total = len(comparison.decisions)
    if not total:
        return "No gate was set: nothing was asked of this model, so the verdict is Passed."
    met = sum(decision.outcome == "Passed" for decision in comparison.decisions)
    missing = sum(decision.outcome == "Missing" for decision in comparison.decisions)
    tail = f" {missing} could not be judged: no suite measured the metric." if missing else ""
    return f"{met} of {total} condition{'s' if total > 1 else ''} met.{tail}"


def figure(text: str, digits: int = DIGITS) -> str:
    """Return a measured figure with `digits` significant digits, in plain notation where that stays short."""
    number = Decimal(text)
    if not number.is_finite():
        return str(number)
    rounded = Decimal(f"{number:.{digits}g}")
    return f"{rounded:f}" if Decimal("1e-6") < abs(number) < Decimal("1e9") or not number else f"{rounded:e}"


def metric_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row for each metric: its figures in the order of the table's columns, and a delta for each baseline."""
    names = [model.name for model in comparison.stage.baselines]
    tested = comparison.stage.tested.name
    figures = {name: {m.metric: m for m in found.metrics} for name, found in comparison.evaluations.items()}
    paths = dict.fromkeys(metric.metric for found in comparison.evaluations.values() for metric in found.metrics)
    rows = []
    for path in paths:
        own = figures[tested].get(path)
        known = own or next(figures[name][path] for name in names if path in figures[name])
        rows.append(
            {
                "metric": path,
                "arrow": {True: "↑", False: "↓", None: ""}[known.higher_is_better],
                "cells": [figures[name].get(path) for name in (*names, tested)],
                "deltas": [delta(own, figures[name].get(path)) for name in names],
            }
        )
    return rows


def delta(tested: Metric | None, baseline: Metric | None) -> Delta:
    """Return the tested model's difference from a baseline, absolute and relative, and whether that is for the better."""
    if tested is None or baseline is None:
        return Delta("", "same")
    value, base = Decimal(tested.value), Decimal(baseline.value)
    if not (value.is_finite() and base.is_finite()):
        return Delta("", "same")
    change = value - base
    if not change:
        return Delta("0", "same")
    sign = "+" if change > 0 else "\N{MINUS SIGN}"
    relative = f" ({sign}{figure(str(abs(change / base) * 100), 2)} %)" if base else ""
    tone = "same"
    if tested.higher_is_better is not None:
        tone = "better" if (change > 0) == tested.higher_is_better else "worse"
    return Delta(f"{sign}{figure(str(abs(change)), 3)}{relative}", tone)


def spans(comparison: Comparison) -> list[Span]:
    """Return when each stage ran: the FineTuneJob's, then the evaluations."""
    lineage = comparison.stage.lineage
    stages = [Span(s.name, s.start_time, s.completion_time) for s in lineage.stages] if lineage else []
    return stages + [Span(f"Evaluate {name}", found.start_time, found.completion_time) for name, found in comparison.evaluations.items()]


def read_run(stage: CompareInput) -> Run:
    """Return what the FineTuneJob recorded beside its artefacts."""
    if stage.lineage is None:
        return Run([], [], {}, [], "", None)
    folder = store.path_of(stage.lineage.run_uri)
    recorded = store.read_json(folder / "run.json") or {}
    sample = (store.read_json(folder / "data" / "sample.json") or {}).get("tokens", [])
    trained = sum(bool(token["trained"]) for token in sample)
    cut = f" The first {SAMPLE_TOKENS} are shown." if len(sample) > SAMPLE_TOKENS else ""
    return Run(
        settings=[(block, describe(value)) for block, value in recorded.get("run", {}).items() if value not in ({}, [])],
        digests=[("base model", item["uri"], item["digest"]) for item in [recorded.get("model")] if item]
        + [(f"dataset {item['name']}", f"{item['rows']} rows, {item['dropped']} dropped", item["digest"]) for item in recorded.get("datasets", [])],
        libraries=recorded.get("libraries", {}),
        sample=list(runs(sample[:SAMPLE_TOKENS])),
        sample_note=f"{trained} of {len(sample)} tokens are trained.{cut}",
        chart=loss_chart(folder / "metrics.jsonl"),
    )


def runs(tokens: list[dict[str, Any]]) -> Iterator[tuple[bool, str]]:
    """Yield the sample's text in stretches that are trained or not; line breaks are made visible."""
    for trained, group in groupby(tokens, key=lambda token: bool(token["trained"])):
        yield trained, "".join(token["text"] for token in group).replace("\n", "↵\n")


def describe(value: Any) -> list[tuple[str, str]]:
    """Return nested settings as dotted names and their values."""
    return list(_flatten("", value))


def _flatten(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flatten(f"{prefix}.{key}" if prefix else str(key), item)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            named = isinstance(item, dict) and isinstance(item.get("name"), str)
            label = item["name"] if named else number
            rest = {key: inner for key, inner in item.items() if key != "name"} if named else item
            yield from _flatten(f"{prefix}.{label}" if prefix else str(label), rest)
    elif isinstance(value, list):
        yield prefix, ", ".join(str(item) for item in value)
    else:
        yield prefix, "{}" if value == {} else json.dumps(value) if isinstance(value, bool) else str(value)


def loss_chart(path: Path) -> str | None:
    """Return the loss curves in `metrics.jsonl` as an SVG data URI, or None where nothing was logged."""
    from tunesmith_trainer.charts import loss_curve

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    points: dict[str, list[tuple[float, float]]] = {"loss": [], "eval_loss": []}
    for line in lines:
        try:
            logged = json.loads(line)
        except ValueError:  # a pod was killed while it wrote this line
            continue
        for name, curve in points.items():
            if name in logged:
                curve.append((float(logged["step"]), float(logged[name])))
    return loss_curve(points["loss"], points["eval_loss"]) if any(points.values()) else None
