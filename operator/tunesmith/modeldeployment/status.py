"""A ModelDeployment's status, computed from what is observed and what was recorded."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tunesmith.api.conditions import Condition, done, merge, stalled, working
from tunesmith.core.errors import NotReadyYet, TunesmithError
from tunesmith.core.objects import Object, Observed
from tunesmith.modeldeployment.gate import Judgement, Model, judge, resolve
from tunesmith.modeldeployment.readiness import count, deployment_of, failure_of, is_complete, obstacle_of, ready_pods
from tunesmith.modeldeployment.revision import Revision, in_state, recorded_revisions, selector
from tunesmith.modeldeployment.rollout import advance, find, want
from tunesmith.modeldeployment.scaling import replicas_of


@dataclass(frozen=True)
class _Wish:
    """What the spec asks for, as far as it is known and allowed now."""

    model: Model | None
    judgement: Judgement
    error: TunesmithError | None = None


@dataclass(frozen=True)
class _Told:
    """What a person reads first: the display word and the three conditions of kstatus."""

    stage: str
    conditions: tuple[Condition, ...]


def status(observed: Observed) -> Object:
    """The whole status; written if it differs from the recorded one."""
    before = recorded_revisions(observed.recorded)
    wish = _wish(observed, before)
    allowed = wish.model is not None and wish.judgement.outcome == "Open"
    wanted = want(observed, before, wish.model, wish.judgement) if wish.model and allowed else None
    revisions = advance(observed, before, wanted)
    told = _tell(observed, wish, revisions)
    generation = observed.owner["metadata"]["generation"]
    result: Object = {
        "observedGeneration": generation,
        "stage": told.stage,
        "conditions": merge(observed.recorded.get("conditions", ()), (*told.conditions, wish.judgement.condition), generation, observed.now),
        "revisions": [revision.to_json() for revision in revisions],
        **_scale(observed, revisions),
    }
    return result | ({"model": wish.model.to_json()} if wish.model else {}) | ({"url": _url(observed)} if revisions else {})


def _wish(observed: Observed, revisions: list[Revision]) -> _Wish:
    try:
        model = _model(observed, revisions)
    except TunesmithError as error:
        return _Wish(None, judge(observed, None, ()), error)
    found = find(observed, revisions, model)
    return _Wish(model, judge(observed, model, found.eval_runs if found else _passed_before(observed, revisions, model)))


def _passed_before(observed: Observed, revisions: list[Revision], model: Model) -> tuple[str, ...]:
    """EvalRuns that are gone, and are on record to have passed this very model: other settings for it need no new verdict."""
    same = [r for r in revisions if model.digest and (r.uri, r.digest) == (model.uri, model.digest)]
    return tuple(name for r in same for name in r.eval_runs if observed.reference("EvalRun", name) is None)


def _model(observed: Observed, revisions: list[Revision]) -> Model:
    recorded = observed.recorded.get("model") or {}
    in_use = any((r.uri, r.digest) == (recorded.get("uri"), recorded.get("digest")) for r in revisions)
    return resolve(observed, in_use)


def _scale(observed: Observed, revisions: list[Revision]) -> Object:
    """What the /scale subresource reads. The selector is never empty: an empty one would select every pod."""
    shown = in_state(revisions, "Active") or in_state(revisions, "Candidate")
    labels = selector(observed.owner, shown.name if shown else None)
    return {
        "replicas": count(deployment_of(observed, shown), "replicas") if shown else 0,
        "readyReplicas": ready_pods(observed, shown),
        "selector": ",".join(f"{name}={value}" for name, value in labels.items()),
    }


def _url(observed: Observed) -> str:
    metadata = observed.owner["metadata"]
    return f"http://{metadata['name']}.{metadata['namespace']}.svc.cluster.local/v1"


def _tell(observed: Observed, wish: _Wish, revisions: list[Revision]) -> _Told:
    active = in_state(revisions, "Active")
    serves = active if ready_pods(observed, active) > 0 else None
    if observed.problem:
        return _Told("Failed", stalled(observed.problem["reason"], observed.problem["message"], _serving(serves)))
    if wish.error and not isinstance(wish.error, NotReadyYet):
        return _Told("Failed", stalled(wish.error.reason, wish.error.message, _serving(serves)))
    gate = wish.judgement.condition
    # Ahead of the wait for the model: what a person must mend is told before what is merely awaited.
    if wish.judgement.outcome == "Closed":
        undecided = gate.reason in ("Inconclusive", "NoCriteria")
        return _Told(
            gate.reason if undecided else "GateFailed" if gate.status == "False" else "Failed", stalled(gate.reason, gate.message, _serving(serves))
        )
    if wish.error:
        return _Told("WaitingForModel", _moving(wish.error.reason, wish.error.message, serves))
    if wish.judgement.outcome == "Waiting":
        return _Told("WaitingForGate", _moving(gate.reason, gate.message, serves))
    # With an open gate the spec's revision exists, and `advance` puts it first.
    return _tell_of_pods(observed, revisions[0], serves)


def _tell_of_pods(observed: Observed, revision: Revision, serves: Revision | None) -> _Told:
    replicas, ready = replicas_of(observed.spec), ready_pods(observed, revision)
    if revision.state == "Active" and is_complete(observed, revision, replicas):
        reason = "Serving" if replicas else "ScaledToZero"
        return _Told(reason, done(reason, f"revision {revision.name} serves with {ready} of {replicas} pods"))
    if not replicas and is_complete(observed, revision, replicas):
        proof = f"revision {revision.name} has not been tried: it takes over once there are replicas and all of them are ready"
        return _Told("ScaledToZero", done("ScaledToZero", proof))
    failure = failure_of(observed, revision)
    if failure and (revision.state == "Candidate" or serves is None):
        return _Told("Failed", stalled(failure.reason, f"revision {revision.name}: {failure.message}", _serving(serves)))
    obstacle = obstacle_of(observed, revision)
    message = f"revision {revision.name}: {ready} of {replicas} pods are ready" + (f"; {obstacle}" if obstacle else "")
    word = "Starting" if revision.state == "Candidate" or serves is None else "Scaling"
    return _Told(word, _moving(word, message, serves))


def _moving(reason: str, message: str, serves: Revision | None) -> tuple[Condition, ...]:
    """Going on by itself (kstatus InProgress by Reconciling); Ready stays True while an active revision answers."""
    ready, *others = working(reason, message)
    if serves:
        ready = replace(ready, status="True", reason="Serving", message=_serving(serves))
    return (ready, *others)


def _serving(revision: Revision | None) -> str:
    return f"revision {revision.name} serves" if revision else ""
