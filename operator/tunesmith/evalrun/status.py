"""An EvalRun's status, computed from what is observed and what was recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.api.conditions import merge
from tunesmith.core.errors import TunesmithError
from tunesmith.core.objects import Object, Observed
from tunesmith.evalrun.api import TESTED
from tunesmith.evalrun.resolve import COMPARE, EVALUATE, pin, waves, with_images
from tunesmith.stages import images
from tunesmith.stages.gpu_seconds import account
from tunesmith.stages.job import result_of
from tunesmith.stages.summary import End, summarize
from tunesmith.stages.tracker import track

RESULTS_KEPT = 64


def status(observed: Observed) -> Object:
    """The whole status; written if it differs from the recorded one."""
    pins, error = _pins(observed)
    tracked = track(observed, waves(observed.spec), hold=error is not None or bool(observed.spec.get("suspend")))
    generation = observed.owner["metadata"]["generation"]
    facts = {"stages": list(tracked.entries), "attempts": list(tracked.attempts), "retriesSpent": tracked.retries.spent}
    facts |= {"gpuSeconds": used} if (used := account(observed.recorded, tracked.attempts, None)) else {}
    pins = with_images(observed, pins, images.pinned(observed, pins["resolved"], tracked.entries, tracked.attempts)) if pins else {}
    outcome = _outcome(observed.spec, facts)
    word, conditions = summarize(observed, tracked, error, End("Finished", "Evaluated", _summary(outcome)) if outcome else None)
    return {
        "observedGeneration": generation,
        "stage": word,
        "conditions": merge(observed.recorded.get("conditions", ()), conditions, generation, observed.now),
        **facts,
        **tracked.times,
        **tracked.activity,
        **_with_digests(pins, facts),
        **outcome,
    }


def _pins(observed: Observed) -> tuple[Object, TunesmithError | None]:
    try:
        return pin(observed), None
    except TunesmithError as error:
        return {}, error


def _with_digests(pins: Object, facts: Object) -> Object:
    """The pinned models with the digests that Evaluate found for those named by a plain URI."""
    if not pins:
        return {}
    baselines = [each | _digest(facts, each["name"]) for each in pins["resolved"]["baselines"]]
    return {"evaluated": pins["evaluated"] | _digest(facts, TESTED), "resolved": pins["resolved"] | {"baselines": baselines}}


def _digest(facts: Object, name: str) -> Object:
    told = result_of(facts, EVALUATE, name)
    return {"digest": told["model"]["digest"]} if told else {}


def _outcome(spec: Mapping[str, Any], facts: Object) -> Object:
    """What Compare found: the verdict, and each criterion of the gate with what came of it."""
    told = result_of(facts, COMPARE)
    if told is None:
        return {}
    judged = zip(spec.get("gate", ()), told.get("gate", ()), strict=False)
    places = {name: told[name] for name in ("resultsURI", "reportURI") if name in told}
    return {
        "verdict": told["verdict"],
        "gate": [criterion | answer for criterion, answer in judged],
        "results": told.get("results", [])[:RESULTS_KEPT],
        **({"overlap": told["overlap"]} if told.get("overlap") else {}),
        **places,
    }


def _summary(outcome: Object) -> str:
    verdict, gate = f"verdict {outcome['verdict']}", outcome["gate"]
    if not gate:
        return f"{verdict}: no gate"
    failed = [f"{entry['metric']} {entry['outcome'].lower()}{_needed(entry)}" for entry in gate if entry["outcome"] != "Passed"]
    return "; ".join((f"{verdict}: {len(gate) - len(failed)} of {len(gate)} criteria hold", *failed))


def _needed(entry: Mapping[str, Any]) -> str:
    """Of one that could not be decided how many items would."""
    if entry["outcome"] != "Inconclusive" or "samples" not in entry:
        return ""
    return f" ({entry['samples']} items, about {entry['needed']} would decide)" if "needed" in entry else f" ({entry['samples']} items, at its limit)"
