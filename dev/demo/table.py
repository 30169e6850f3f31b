"""The demo's closing table: base, tuned and quantized model side by side, and the gate's verdict."""

from __future__ import annotations

from .kube import Object


def cell(value: str | None) -> str:
    """A decimal string shortened for reading."""
    return "" if value is None else f"{float(value):.4g}"


def columns(rows: list[list[str]]) -> str:
    """Rows as aligned text; the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(word.rjust(width) for word, width in zip(row[1:], widths[1:], strict=True))]) for row in rows
    )


def results(run: Object) -> str:
    """Table of an EvalRun's `status.results`: one row a metric; base / tuned (unquantized) / quantized (the model under test)."""
    rows = [["metric", "base", "tuned", "quantized", "± stderr"]]
    for entry in run["status"].get("results", []):
        baselines = entry.get("baselines", {})
        rows.append(
            [entry["metric"], cell(baselines.get("base")), cell(baselines.get("unquantized")), cell(entry.get("tested")), cell(entry.get("stderr"))]
        )
    return columns(rows)


def limit(criterion: Object) -> str:
    """A gate's criterion in words, such as "<= 0.9 x base"."""
    baseline = criterion.get("baseline", "")
    forms = {
        "min": ">= {}",
        "max": "<= {}",
        "maxDrop": f"worse than {baseline} by <= {{}}",
        "maxRatio": f"<= {{}} x {baseline}",
        "minRatio": f">= {{}} x {baseline}",
    }
    return next(form.format(criterion[key]) for key, form in forms.items() if key in criterion)


def gate(run: Object) -> str:
    """Table of an EvalRun's gate: criterion, value, baseline's value, the bounds of what is limited, the items they come from, outcome."""
    rows = [["gate", "limit", "value", "baseline", "between", "items", "outcome"]]
    for criterion, outcome in zip(run["spec"].get("gate", []), run["status"].get("gate", []), strict=True):
        bounds = f"{cell(outcome['lower'])} and {cell(outcome['upper'])}" if "lower" in outcome and "upper" in outcome else ""
        figures = [cell(outcome.get("value")), cell(outcome.get("baselineValue")), bounds, str(outcome.get("samples", ""))]
        rows.append([criterion["metric"], limit(criterion), *figures, outcome["outcome"]])
    return columns(rows)
