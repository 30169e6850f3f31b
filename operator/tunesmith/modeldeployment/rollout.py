"""How revisions replace one another: beside the old one, then in its place, then without it.

(wanted) -> Candidate --all pods ready--> Active --another takes over--> Draining --30 s--> (gone)

At zero replicas no pod proves anything: a Candidate stays one, and the Active revision is kept for it, until there are replicas again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tunesmith.api.conditions import timestamp
from tunesmith.core.objects import Observed
from tunesmith.modeldeployment.gate import Judgement, Model
from tunesmith.modeldeployment.readiness import failure_of, is_complete
from tunesmith.modeldeployment.revision import LABEL_REVISION, Revision, in_state, inputs_of, name_of
from tunesmith.modeldeployment.scaling import replicas_of
from tunesmith.workload.podstatus import moment
from tunesmith_contract.stages import CONTRACT_VERSION


def find(observed: Observed, revisions: list[Revision], model: Model) -> Revision | None:
    """The revision that has the spec's inputs already. The image is not asked about: an operator upgrade rolls nothing."""
    inputs = inputs_of(observed.spec)
    same = (r for r in revisions if (r.uri, r.digest, dict(r.inputs)) == (model.uri, model.digest, inputs))
    return next((r for r in same if not _waits_for_new_image(observed, r)), None)


def _waits_for_new_image(observed: Observed, revision: Revision) -> bool:
    """A candidate that fails never served; a new image may be what mends it."""
    return revision.state == "Candidate" and revision.image != observed.config.images.serving and failure_of(observed, revision) is not None


def want(observed: Observed, revisions: list[Revision], model: Model, judgement: Judgement) -> Revision:
    """The revision that the spec asks for: a recorded one, or a new Candidate. Called with an open gate only."""
    verdict = "Passed" if judgement.eval_runs else "NoGate"
    found = find(observed, revisions, model)
    if found:
        return replace(found, verdict=verdict, eval_runs=judgement.eval_runs) if judgement.eval_runs else found
    inputs, image = inputs_of(observed.spec), observed.config.images.serving
    return Revision(
        name=name_of(model.uri, model.digest, image, inputs),
        state="Candidate",
        uri=model.uri,
        digest=model.digest,
        verdict=verdict,
        eval_runs=judgement.eval_runs,
        image=image,
        inputs=inputs,
        created_time=timestamp(observed.now),
        contract_version=CONTRACT_VERSION,
    )


def advance(observed: Observed, revisions: list[Revision], wanted: Revision | None) -> list[Revision]:
    """The revisions that should exist from now on: at most one Active, one Candidate, one Draining."""
    others = [r for r in revisions if r.state != "Candidate" and (wanted is None or r.name != wanted.name)]
    if wanted is None:
        return _drain(observed, others)
    # One that was on its way out and is wanted again is as good as a new one that is ready.
    kept = wanted if wanted.state == "Active" else replace(wanted, state="Candidate", switched_time=None)
    return _drain(observed, _promote(observed, [kept, *others]))


def _promote(observed: Observed, revisions: list[Revision]) -> list[Revision]:
    """Make the Candidate Active once all its pods are ready, of which there is one, and no older revision is still on its way out."""
    candidate, replicas = in_state(revisions, "Candidate"), replicas_of(observed.spec)
    if candidate is None or in_state(revisions, "Draining") or not replicas or not is_complete(observed, candidate, replicas):
        return revisions
    if in_state(revisions, "Active") is None and _selected(observed) != candidate.name:
        # Its Service is what clients ask, and Ready would be told before it is there: an operator may have died in between.
        return revisions
    return [replace(r, state="Active" if r is candidate else "Draining") for r in revisions]


def _drain(observed: Observed, revisions: list[Revision]) -> list[Revision]:
    """Let the draining revision go, `timing.drain` after the Service was seen (not only told) to select another one."""
    draining, active = in_state(revisions, "Draining"), in_state(revisions, "Active")
    if draining is None:
        return revisions
    if draining.switched_time is None and active and _selected(observed) == active.name:
        draining = replace(draining, switched_time=timestamp(observed.now))
    rest = [r for r in revisions if r.state != "Draining"]
    left = drain_left(observed, draining)
    return rest if left is not None and left <= 0 else [*rest, draining]


def _selected(observed: Observed) -> Any:
    service = observed.child("Service", observed.owner["metadata"]["name"])
    return ((service or {}).get("spec") or {}).get("selector", {}).get(LABEL_REVISION)


def drain_left(observed: Observed, revision: Revision) -> float | None:
    """Seconds until the draining revision goes; None: the Service has not been seen to be switched yet."""
    if revision.switched_time is None:
        return None
    return (observed.config.timing.drain - (observed.now - moment(revision.switched_time))).total_seconds()
