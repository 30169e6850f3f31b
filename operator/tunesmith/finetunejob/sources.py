"""What a FineTuneJob names and must find before its next attempt may begin."""

from __future__ import annotations

from tunesmith.core.errors import InvalidSpec
from tunesmith.core.objects import Observed
from tunesmith.finetunejob import defaults
from tunesmith.workload.podspec import claims
from tunesmith.workload.references import model_of, require_claims


def model_uri(observed: Observed) -> str:
    """Where the base model lies: pinned once it is known, since the FineTuneJob that made it may be deleted."""
    pinned = observed.recorded.get("resolved", {}).get("model", {}).get("uri")
    if not pinned and observed.reference("FineTuneJob", observed.owner["metadata"]["name"]):
        raise InvalidSpec("DependencyCycle", "the FineTuneJobs named by `model`, one after another, lead back to this one: none can begin")
    return str(pinned or model_of(observed, observed.spec["model"])["uri"])


def check_volumes(observed: Observed, model: str) -> None:
    """All claims are there, few enough, and shared where pods on several nodes mount them."""
    require_claims(observed, observed.spec)
    if defaults.parallelism(observed.spec)["nodes"] == 1:
        return
    # Datasets are read by Prepare alone, which is one pod.
    for claim in claims(model, observed.spec["output"]):
        volume = observed.reference("PersistentVolumeClaim", claim)
        # One that only the FineTuneJob of the model names is unknown once that is gone; it was looked at before.
        if volume and "ReadWriteMany" not in volume["spec"]["accessModes"]:
            has = ", ".join(volume["spec"]["accessModes"])
            raise InvalidSpec("VolumeNotShared", f"training on more than one node needs ReadWriteMany, but claim {claim} has {has}")
