"""The two questions before anything is served: which model is meant, and did the EvalRuns of the gate pass that very model?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.api.conditions import Condition, find, is_true
from tunesmith.core.errors import TunesmithError
from tunesmith.core.objects import Object, Observed
from tunesmith.modeldeployment.revision import in_state, recorded_revisions
from tunesmith.workload.references import model_of, require_claims, status_of

Outcome = Literal["Open", "Waiting", "Closed"]


@dataclass(frozen=True)
class Model:
    """The model to serve, pinned: `source` tells what it was read from."""

    source: str
    uri: str
    digest: str | None

    def to_json(self) -> Object:
        """As it stands in `status.model`."""
        return {"source": self.source, "uri": self.uri} | ({"digest": self.digest} if self.digest else {})


@dataclass(frozen=True)
class Judgement:
    """The gate's answer: Open (serve), Waiting (goes on by itself) or Closed (a person must act)."""

    outcome: Outcome
    condition: Condition
    """GatePassed."""
    eval_runs: tuple[str, ...] = ()
    """Those that passed the model."""


def gate_names(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the EvalRuns that the spec asks for."""
    return tuple(ref["name"] for ref in (spec.get("gate") or {}).get("evalRunRefs", ()))


def source_of(spec: Mapping[str, Any]) -> str:
    """What determines the model, in words. A plain URI takes its digest from the gate, so the gate is a part of it."""
    model = spec["model"]
    if "uri" in model:
        gate = ",".join(gate_names(spec))
        return f"{model['uri']} as evaluated by {gate}" if gate else str(model["uri"])
    return f"FineTuneJob {model['fineTuneJobRef']['name']} artifact {model['artifact']}"


def resolve(observed: Observed, in_use: bool) -> Model:
    """The model that the spec means.

    `in_use`: a revision has been made from the recorded model. It then stays pinned, whatever becomes of the FineTuneJob, until the
    gate has passed another one under the same name. Before that what was made again under its name is read again: its first model
    may have failed the gate.
    """
    source = source_of(observed.spec)
    recorded = observed.recorded.get("model") or {}
    pinned = Model(source, recorded["uri"], recorded.get("digest")) if recorded.get("source") == source else None
    try:
        now = _resolve_now(observed, source)
    except TunesmithError:
        if pinned:
            return pinned
        raise
    # Without a gate nothing says that the other one is any good.
    kept = pinned and in_use and not (gate_names(observed.spec) and judge(observed, now, ()).outcome == "Open")
    return pinned if pinned and kept else now


def _resolve_now(observed: Observed, source: str) -> Model:
    given = observed.spec["model"]
    require_claims(observed, given)
    model = model_of(observed, given)
    return Model(source, model["uri"], model.get("digest") or _evaluated_digest(observed, model["uri"]))


def _evaluated_digest(observed: Observed, uri: str) -> str | None:
    for name in gate_names(observed.spec):
        evaluated = status_of(observed.reference("EvalRun", name) or {}).get("evaluated") or {}
        if evaluated.get("uri") == uri and evaluated.get("digest"):
            return str(evaluated["digest"])
    return None


def judge(observed: Observed, model: Model | None, passed: tuple[str, ...]) -> Judgement:
    """Ask the gate about `model` (None: not known yet). `passed`: EvalRuns recorded to have passed it, never asked again."""
    names = gate_names(observed.spec)
    if not names:
        return Judgement("Open", Condition("GatePassed", "Unknown", "NoGate", "the spec has no gate: served unjudged"))
    answers = [_passed(name) if name in passed else _ask(observed, name, model) for name in names]
    # What a person must mend is told before what is merely awaited.
    worst = max(answers, key=lambda answer: ("Open", "Waiting", "Closed").index(answer.outcome))
    if worst.outcome != "Open":
        return worst
    message = "passed by EvalRun " + ", ".join(names)
    return Judgement("Open", Condition("GatePassed", "True", "Passed", message), names)


def _passed(name: str) -> Judgement:
    return Judgement("Open", Condition("GatePassed", "True", "Passed"), (name,))


def _waiting(message: str) -> Judgement:
    return Judgement("Waiting", Condition("GatePassed", "Unknown", "EvalRunNotFinished", message))


def _ask(observed: Observed, name: str, model: Model | None) -> Judgement:
    run = observed.reference("EvalRun", name)
    if run is None:
        return _waiting(f"EvalRun {name} does not exist")
    status = status_of(run)
    if _waits_for_us(observed, name):
        message = f"EvalRun {name} waits for this ModelDeployment to serve, which it does not before {name} has passed"
        return Judgement("Closed", Condition("GatePassed", "Unknown", "GateCycle", message))
    if "verdict" not in status:
        if is_true(status, "Stalled"):
            cause = (find(status, "Stalled") or {}).get("message", "")
            return Judgement("Closed", Condition("GatePassed", "Unknown", "DependencyFailed", f"EvalRun {name} failed: {cause}"))
        return _waiting(f"EvalRun {name} has not finished")
    if model is None:
        return _waiting(f"EvalRun {name} waits to be compared with the model")
    evaluated = status.get("evaluated") or {}
    if model.digest is None or evaluated.get("digest") != model.digest:
        told = f"{evaluated.get('digest')} at {evaluated.get('uri')}"
        message = f"EvalRun {name} evaluated {told}; the model is {model.digest or 'another one'} at {model.uri}"
        return Judgement("Closed", Condition("GatePassed", "False", "DigestNotEvaluated", message))
    # One of a release before says Passed where nothing was asked.
    verdict = status["verdict"] if run["spec"].get("gate") else "NoCriteria"
    return _passed(name) if verdict == "Passed" else Judgement("Closed", _refusal(name, run, verdict))


def _refusal(name: str, run: Object, verdict: str) -> Condition:
    """Why a verdict opens no gate, and what to do."""
    if verdict == "NoCriteria":
        message = f"EvalRun {name} measured the model and asked nothing of it: name one with a `gate`, or leave this one out to serve unjudged"
        return Condition("GatePassed", "False", "NoCriteria", message)
    if verdict == "Inconclusive":
        advice = "measure more items (more rows, a larger `limit`), or ask for what they can decide, in a new EvalRun"
        # The advice first: a long list of criteria is cut.
        return Condition("GatePassed", "False", "Inconclusive", f"EvalRun {name} could not decide: {advice}. {_failures(run)}")
    return Condition("GatePassed", "False", "GateFailed", f"EvalRun {name}: {_failures(run)}")


def _waits_for_us(observed: Observed, name: str) -> bool:
    """Whether the EvalRun waits for a first revision of this ModelDeployment, itself or by others that wait for one another."""
    seen, runs = set[str](), [name]
    while runs:
        run = runs.pop()
        seen.add(run)
        for deployment in _awaited(observed.reference("EvalRun", run)):
            other = observed.owner if deployment == observed.owner["metadata"]["name"] else observed.reference("ModelDeployment", deployment)
            # One that serves already may be measured and compared with.
            if other is None or in_state(recorded_revisions(status_of(other)), "Active"):
                continue
            if other is observed.owner:
                return True
            runs += [each for each in gate_names(other["spec"]) if each not in seen]
    return False


def _awaited(run: Object | None) -> list[str]:
    """Names of the ModelDeployments that an EvalRun has yet to find a model at."""
    if run is None or "evaluated" in status_of(run):
        return []
    sources = [run["spec"]["model"], *(each.get("model", {}) for each in run["spec"].get("baselines", ()))]
    return [source["modelDeploymentRef"]["name"] for source in sources if "modelDeploymentRef" in source]


def _failures(run: Object) -> str:
    """The criteria that did not hold, with their numbers."""
    criteria = run["spec"].get("gate", [])
    outcomes = [{**criterion, **outcome} for criterion, outcome in zip(criteria, status_of(run).get("gate", ()), strict=False)]
    lines = [_failure(outcome) for outcome in outcomes if outcome["outcome"] != "Passed"]
    return "; ".join(lines) or f"verdict {status_of(run)['verdict']}"


def _failure(outcome: Mapping[str, Any]) -> str:
    asked = " ".join(f"{name} {outcome[name]}" for name in ("min", "max", "maxDrop", "maxRatio", "minRatio") if name in outcome)
    baseline = f" of {outcome['baseline']} ({outcome.get('baselineValue', 'missing')})" if "baseline" in outcome else ""
    line = f"{outcome['metric']} is {outcome.get('value', 'missing')}, must have {asked}{baseline}"
    if "lower" not in outcome or "upper" not in outcome:
        return line
    needed = f", about {outcome['needed']} would decide" if "needed" in outcome else ""
    return f"{line}: between {outcome['lower']} and {outcome['upper']} by {outcome.get('samples')} items{needed}"
