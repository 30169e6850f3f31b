"""What a FineTuneJob names and must find before its next attempt may begin."""

from __future__ import annotations

from typing import Any

from tunesmith.conditions import find, is_true
from tunesmith.errors import InvalidSpec, NotReadyYet
from tunesmith.finetunejob import api, defaults
from tunesmith.pods import MAX_CLAIMS, claims
from tunesmith.values import Key, Object, Observed

CLAIM = "PersistentVolumeClaim"


def model_uri(observed: Observed) -> str:
    """Where the base model lies: pinned once it is known, since the FineTuneJob that made it may be deleted."""
    pinned = observed.recorded.get("resolved", {}).get("model", {}).get("uri")
    given = observed.spec["model"]
    return str(pinned or given.get("uri") or _artifact(observed, given["fineTuneJobRef"]["name"], given["artifact"])["uri"])


def check_volumes(observed: Observed) -> None:
    """All claims are there, few enough, and shared where pods on several nodes mount them."""
    named = claims(observed.spec)
    if len(named) > MAX_CLAIMS:
        raise InvalidSpec("TooManyVolumes", f"{len(named)} claims are named; at most {MAX_CLAIMS} can be: put datasets together")
    found = {claim: _reference(observed, CLAIM, claim) for claim in named}
    missing = [claim for claim in named if found[claim] is None]
    if missing:
        raise NotReadyYet("VolumeNotFound", f"waits for PersistentVolumeClaim {', '.join(missing)}")
    if defaults.parallelism(observed.spec)["nodes"] == 1:
        return
    # Datasets are read by Prepare alone, which is one pod.
    for claim in claims([observed.spec["model"], observed.spec["output"]]):
        modes = (found[claim] or {}).get("spec", {}).get("accessModes", [])
        if "ReadWriteMany" not in modes:
            raise InvalidSpec("VolumeNotShared", f"training on more than one node needs ReadWriteMany, but claim {claim} has {', '.join(modes)}")


def _artifact(observed: Observed, name: str, artifact: str) -> dict[str, Any]:
    job = _reference(observed, api.KIND, name)
    status: dict[str, Any] = (job or {}).get("status") or {}
    made = next((entry for entry in status.get("artifacts", ()) if entry["name"] == artifact), None)
    if made:
        return dict(made)
    if is_true(status, "Finished"):
        stalled = find(status, "Stalled")
        why = f": {stalled['reason']}" if stalled and stalled["status"] == "True" else ""
        raise InvalidSpec("DependencyFailed", f"FineTuneJob {name} finished without artifact {artifact}{why}")
    raise NotReadyYet("DependencyNotReady", f"waits for artifact {artifact} of FineTuneJob {name}")


def _reference(observed: Observed, kind: str, name: str) -> Object | None:
    return observed.references.get(Key(kind, observed.owner["metadata"]["namespace"], name))
