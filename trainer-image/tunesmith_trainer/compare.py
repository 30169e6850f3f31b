"""The Compare stage: reads every model's figures, judges the gate, and writes results.json and the report."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from tunesmith_contract.evaluation import OVERLAP
from tunesmith_contract.results import CompareAnswer, Comparison, EvaluateResult, GateOutcome, Measured, Metric, Overlap
from tunesmith_contract.stages import CompareInput, EvaluatedModel
from tunesmith_trainer import store
from tunesmith_trainer.data import dataset
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.gate.judging import Decision, Measurement, Measurements, judge, short, verdict
from tunesmith_trainer.report import page
from tunesmith_trainer.suites import items, overlap

INPUT = CompareInput
EXTRA_RESULTS = 20
"""Metrics in the result beside the gate's own; all of them are in results.json."""


def run(stage: CompareInput) -> CompareAnswer:
    """Judge the gate and write `results.json` and `report.html` into the EvalRun's folder.

    Without a gate the verdict is NoCriteria: nothing was asked. Raises StageError: SourceNotFound for a model without an
    evaluation, DigestMismatch for an evaluation of another model than the one to compare or of other items than the tested
    model's, InvalidSettings for a criterion that cannot be judged.
    """
    evaluations = {model.name: read_evaluation(stage, model) for model in (stage.tested, *stage.baselines)}
    measured = {name: items.read(found.items or []) for name, found in evaluations.items()}
    overlaps = count_overlap(stage, evaluations[stage.tested.name])
    figures = {name: measurements(found, measured[name]) for name, found in evaluations.items()}
    tested = figures[stage.tested.name] | {metric.metric: Measurement(metric, counted=True) for metric in map(overlap_metric, overlaps or ())}
    baselines = {model.name: figures[model.name] for model in stage.baselines}
    decisions = [judge(criterion, tested, baselines) for criterion in stage.gate]
    folder = store.path_of(stage.run_uri)
    whole = page.Comparison(stage, evaluations, decisions, verdict(decisions), overlaps, unlike_tokens(stage, measured))
    store.write_json(folder / "results.json", document(whole))
    store.write_bytes(folder / "report.html", page.render(whole).encode())
    return CompareAnswer(
        verdict=whole.verdict,
        gate=[outcome(decision) for decision in decisions],
        results=results(stage, evaluations),
        overlap=overlaps,
        results_uri=store.join(stage.run_uri, "results.json"),
        report_uri=store.join(stage.run_uri, "report.html"),
    )


def measurements(evaluation: EvaluateResult, measured: items.Measured) -> Measurements:
    """Return a model's figures with their items."""
    return {metric.metric: Measurement(metric, measured.sample(metric.metric)) for metric in evaluation.metrics}


def unlike_tokens(stage: CompareInput, measured: dict[str, items.Measured]) -> frozenset[tuple[str, str]]:
    """Return baselines with their metrics that count other tokens than the tested model's: they cannot be compared."""
    own = measured[stage.tested.name].figures
    return frozenset(
        (model.name, path)
        for model in stage.baselines
        for path, figure in measured[model.name].figures.items()
        if path in own and figure.units != own[path].units
    )


def count_overlap(stage: CompareInput, tested: EvaluateResult) -> list[Overlap] | None:
    """Return for each suite how many of its items are in the data that the tested model was trained on; None where none is known."""
    path = store.path_of(stage.lineage.run_uri) / "data" / "train.jsonl" if stage.lineage else None
    if path is None or not path.is_file() or not tested.items:
        return None
    rows = (placed.row for placed in dataset.read_normal(path))
    found = overlap.find({file.suite: items.read([file]).items for file in tested.items}, rows)
    return [Overlap(suite=suite, items=one.items, equal=one.equal, similar=one.similar) for suite, one in found.items()]


def overlap_metric(found: Overlap) -> Metric:
    """Return a suite's overlap as the share of its items, which is counted and not estimated."""
    share = (found.equal + found.similar) / found.items if found.items else 0.0
    return Metric(metric=f"{found.suite}/{OVERLAP}", value=repr(share), higher_is_better=False)


def read_evaluation(stage: CompareInput, model: EvaluatedModel) -> EvaluateResult:
    """Return the result of a model's Evaluate stage after checking that it is a success and of this very model."""
    uri = stage.evaluations.get(model.name)
    found = store.read_json(store.path_of(uri)) if uri else None
    if not isinstance(found, dict):
        raise StageError("SourceNotFound", f"{model.name} has no evaluation at {uri}: its Evaluate stage has to finish first")
    try:
        result = EvaluateResult.model_validate(found)
    except ValidationError as error:
        raise StageError("InvalidSettings", f"{uri} is not the result of an evaluation that succeeded: {error}") from None
    if result.metrics is None or result.versions is None:
        raise StageError("InvalidSettings", f"{uri} is not the whole result of an evaluation: it has no metrics or no versions")
    if result.model.digest != model.digest:
        raise StageError("DigestMismatch", f"{uri} is about {result.model.digest}, not about {model.name} {model.digest}")
    return result


def outcome(decision: Decision) -> GateOutcome:
    """Return a decision as the result has it."""
    return GateOutcome(
        outcome=decision.outcome,
        value=short(decision.tested.value) if decision.tested else None,
        stderr=_short(decision.tested.stderr) if decision.tested else None,
        baseline_value=short(decision.baseline.value) if decision.baseline else None,
        lower=_short(decision.lower),
        upper=_short(decision.upper),
        samples=decision.samples,
        needed=decision.needed,
    )


def _short(value: Measured | None) -> str | None:
    return None if value is None else short(value)


def results(stage: CompareInput, evaluations: dict[str, EvaluateResult]) -> list[Comparison]:
    """Return the tested model's metrics beside the baselines', the gate's first, then up to 20 more as the suites come."""
    gated = list(dict.fromkeys(criterion.metric for criterion in stage.gate))
    metrics = {metric.metric: metric for metric in evaluations[stage.tested.name].metrics}
    others = [name for name in metrics if name not in gated]
    baselines = {model.name: {metric.metric: metric.value for metric in evaluations[model.name].metrics} for model in stage.baselines}
    return [
        Comparison(
            metric=name,
            tested=short(metrics[name].value),
            stderr=_short(metrics[name].stderr),
            samples=metrics[name].samples,
            baselines={model: short(values[name]) for model, values in baselines.items() if name in values},
        )
        for name in [*gated, *others[:EXTRA_RESULTS]]
        if name in metrics
    ]


def document(whole: page.Comparison) -> dict[str, Any]:
    """Return what results.json holds: every figure of every model in full, the gate and its outcome."""
    stage = whole.stage
    return {
        "schemaVersion": 1,
        "object": stage.object.dump(),
        "verdict": whole.verdict,
        "gate": [
            criterion.dump() | outcome(decision).dump() | {"reason": decision.reason}
            for criterion, decision in zip(stage.gate, whole.decisions, strict=True)
        ],
        "models": [
            evaluation.model.dump()
            | {"versions": evaluation.versions, "environment": evaluation.environment, "metrics": [metric.dump() for metric in evaluation.metrics]}
            | {"items": [file.dump() for file in evaluation.items or ()], "tokenizer": evaluation.tokenizer, "warnings": evaluation.warnings or []}
            for evaluation in whole.evaluations.values()
        ],
        "overlap": None if whole.overlap is None else [found.dump() for found in whole.overlap],
        "suites": [suite.dump() for suite in stage.suites],
    }
