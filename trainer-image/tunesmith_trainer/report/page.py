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

from tunesmith_contract.evaluation import CONFIDENCE, Criterion
from tunesmith_contract.results import EvaluateResult, Metric, Overlap, Verdict
from tunesmith_contract.stages import CompareInput
from tunesmith_trainer import store
from tunesmith_trainer.gate.judging import Decision
from tunesmith_trainer.report.timeline import Span, timeline

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
    overlap: list[Overlap] | None = None
    """With the data trained on, by suite; None: no such data is known."""
    unlike: frozenset[tuple[str, str]] = frozenset()
    """Baselines with their metrics that count other tokens than the tested model's."""


@dataclass(frozen=True)
class Delta:
    """The tested model against one baseline."""

    text: str
    tone: str
    """`better`, `worse` or `same`, by the metric's direction; `same` also where it has none."""


UNLIKE = Delta("other tokens", "same")
"""In place of a difference between perplexities over unlike tokens."""


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
        overlap=comparison.overlap,
        environments=environments(comparison),
        bounds=bounds,
        confidence=confidence,
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
        return "No gate was set: nothing was asked of this model, and a ModelDeployment does not serve it by this EvalRun."
    met, missing, undecided = (
        sum(decision.outcome == outcome for decision in comparison.decisions) for outcome in ("Passed", "Missing", "Inconclusive")
    )
    tail = f" {missing} could not be judged: the metric was not measured." if missing else ""
    tail += f" {undecided} could not be decided: too few items, or a figure too close to its limit." if undecided else ""
    return f"{met} of {total} condition{'s' if total > 1 else ''} met.{tail}"


def bounds(decision: Decision) -> str:
    """Return the interval that a criterion was judged by; empty where it was not judged by one."""
    if decision.lower is None or decision.upper is None:
        return ""
    return f"{figure(decision.lower, 4)} … {figure(decision.upper, 4)}"


def confidence(criterion: Criterion) -> str:
    """Return how sure each of a criterion's bounds is."""
    return f"each {float(criterion.confidence or CONFIDENCE) * 100:g} %"


def environments(comparison: Comparison) -> list[tuple[str, str]]:
    """Return what each model was measured on, the same ones together; more than one line says that rounding differs between models."""
    found: dict[str, list[str]] = {}
    for name, evaluation in comparison.evaluations.items():
        recorded = evaluation.environment or {}
        words = ", ".join(f"{key} {value}" for key, value in sorted(recorded.items()) if key != "device")
        place = recorded.get("device", "not recorded")
        found.setdefault(f"{place} ({words})" if words else place, []).append(name)
    return [(", ".join(names), where) for where, names in found.items()]


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
                "samples": known.samples,
                "deltas": [UNLIKE if (name, path) in comparison.unlike else delta(own, figures[name].get(path)) for name in names],
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
    from tunesmith_trainer.report.charts import loss_curve

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
