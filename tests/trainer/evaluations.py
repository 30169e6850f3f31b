"""Evaluations of made-up models in a store, with their items, as Evaluate would have written them."""

import json
import math

from tests.trainer.bench import GOLDEN
from tunesmith_contract.results import Metric
from tunesmith_trainer.suites import items
from tunesmith_trainer.suites.items import Figure, Item, Measured
from tunesmith_trainer.suites.overlap import marks_of

PERPLEXITY, ACCURACY = "heldOut/perplexity", "support/support_choice/acc"
TOKENS = 20
LN_V = math.log(49152)


def golden(name):
    return json.loads((GOLDEN / name).read_text())


def held_out(loss, rows=1000, units="tokens", wave=0.1):
    """A perplexity suite whose rows have about that loss a token."""
    parts = {f"{row}": ((loss + wave * math.sin(row)) * TOKENS, float(TOKENS)) for row in range(rows)}
    value = math.exp(sum(top for top, _ in parts.values()) / (TOKENS * rows))
    found = [Item(name, {PERPLEXITY: part}, marks_of({"text": f"row number {name}"})) for name, part in parts.items()]
    metric = Metric(metric=PERPLEXITY, value=repr(value), stderr="0.05", higher_is_better=False, samples=rows)
    return Measured([metric], {PERPLEXITY: Figure("Exp", (0.0, LN_V), units)}, found)


def support(right, documents=400, first=0, path=ACCURACY):
    """A task of which documents `first` to `first + right` are answered right."""
    found = [Item(f"support_choice/{number}", {path: (float(first <= number < first + right), 1.0)}) for number in range(documents)]
    metric = Metric(metric=path, value=repr(right / documents), stderr="0.02", higher_is_better=True, samples=documents)
    return Measured([metric], {path: Figure()}, found)


MODELS = {
    "tested": [held_out(2.52, wave=0.11), support(244, first=16)],
    "base": [held_out(3.46), support(208)],
    "unquantized": [held_out(2.51), support(240)],
}


def write(root, value, model, suites, **more):
    """Write the result of a model's Evaluate stage where Compare's input says that it lies."""
    files = []
    for suite in suites:
        digest = items.write(root / "items", suite)
        files.append(
            {"suite": suite.metrics[0].metric.partition("/")[0], "uri": f"pvc://items/{digest.removeprefix('sha256:')}.jsonl", "digest": digest}
        )
    metrics = [metric.dump() for suite in suites for metric in suite.metrics]
    found = golden("evaluate.result.json") | {"model": model, "metrics": metrics, "items": files} | more
    path = root / value["evaluations"][model["name"]].removeprefix("pvc://")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
