"""What an EvalRun's names mean, read once: whatever becomes of the FineTuneJob afterwards changes nothing here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from tunesmith.api.conditions import is_true
from tunesmith.core.errors import InvalidSpec, NotReadyYet
from tunesmith.core.objects import Object, Observed
from tunesmith.evalrun.api import PRECISION, TESTED
from tunesmith.stages.attempt import StageKey, key_of
from tunesmith.workload.references import artifact_of, model_of, named_job, require_claims, require_hope, status_of

EVALUATE, COMPARE = "Evaluate", "Compare"


def waves(spec: Mapping[str, Any]) -> tuple[tuple[StageKey, ...], ...]:
    """All models are evaluated side by side, then compared."""
    names = (TESTED, *(baseline["name"] for baseline in spec.get("baselines", ())))
    return tuple(StageKey(EVALUATE, name) for name in names), (StageKey(COMPARE),)


def pin(observed: Observed) -> Object:
    """`{evaluated, resolved}` as recorded, or read now. Raises what it waits for."""
    recorded = {name: observed.recorded[name] for name in ("evaluated", "resolved") if name in observed.recorded}
    return recorded if len(recorded) == 2 else _read(observed)


def _read(observed: Observed) -> Object:
    spec = observed.spec
    require_claims(observed, spec)
    tested = model_of(observed, spec["model"])
    baselines = [{"name": each["name"], **_baseline(observed, each)} for each in spec.get("baselines", ())]
    output, lineage = _output_uri(observed), _lineage(observed)
    require_claims(observed, spec, output, *(model for source, model in _sources(spec, tested, baselines) if "modelDeploymentRef" not in source))
    resolved = {"outputURI": output, "baselines": baselines} | ({"lineage": lineage} if lineage else {})
    return {"evaluated": tested, "resolved": resolved}


def with_images(observed: Observed, pins: Object, pinned: Mapping[str, Any]) -> Object:
    """`pins` with those images, and with the folder of the run, whose name depends on them."""
    resolved, image = pins["resolved"], pinned["images"]["trainer"]
    if resolved.get("images", {}).get("trainer") == image:
        return pins
    folder = _run_uri(observed, image, resolved["outputURI"], pins["evaluated"], resolved["baselines"])
    return pins | {"resolved": {name: value for name, value in resolved.items() if name != "contractVersion"} | {**pinned, "runURI": folder}}


def _sources(spec: Mapping[str, Any], tested: Object, baselines: list[Object]) -> list[tuple[Mapping[str, Any], Object]]:
    """Each model with how the spec names it. The claim of one that a ModelDeployment serves is there: its pods have it mounted."""
    sources = [spec["model"], *(each.get("model", {}) for each in spec.get("baselines", ()))]
    return list(zip(sources, [tested, *baselines], strict=True))


def _baseline(observed: Observed, baseline: Mapping[str, Any]) -> Object:
    if "model" in baseline:
        return model_of(observed, baseline["model"])
    job = _job(observed)
    return _base(job) if baseline["name"] == "base" else _unquantized(job)


def _base(job: Object) -> Object:
    model = (status_of(job).get("resolved") or {}).get("model") or {}
    if "digest" not in model:
        require_hope(job, "its base model was resolved")
        raise NotReadyYet("DependencyNotReady", f"FineTuneJob {job['metadata']['name']} has not resolved its base model")
    return {"uri": model["uri"], "digest": model["digest"]}


def _unquantized(job: Object) -> Object:
    status, name = status_of(job), job["metadata"]["name"]
    missing = all(entry["name"] != "Merged" for entry in status.get("artifacts", ()))
    if missing and is_true(status, "Succeeded"):
        message = f"baseline `unquantized` is the Merged artefact, which FineTuneJob {name} does not make: ask for it in its `output.artifacts`"
        raise InvalidSpec("NoUnquantizedModel", message)
    return artifact_of(job, "Merged")


def _job(observed: Observed) -> Object:
    return named_job(observed, observed.spec["model"]["fineTuneJobRef"]["name"])


def _output_uri(observed: Observed) -> str:
    source = observed.spec if "output" in observed.spec else _job(observed)["spec"]
    return str(source["output"]["uri"])


def _lineage(observed: Observed) -> Object | None:
    """The run that made the model under test and when its stages ran, for the report."""
    if "fineTuneJobRef" not in observed.spec["model"]:
        return None
    status = status_of(_job(observed))
    times = [
        {"name": str(key_of(entry)), "startTime": entry["startTime"], "completionTime": entry["completionTime"]}
        for entry in status.get("stages", ())
        if entry["state"] == "Succeeded"
    ]
    run_uri = (status.get("resolved") or {}).get("runURI")
    return {"runURI": run_uri, "stages": times} if run_uri else None


def _run_uri(observed: Observed, image: str, output: str, tested: Object, baselines: list[Object]) -> str:
    """The folder of this run: another model, suite, gate or image is another run."""
    spec, meta = observed.spec, observed.owner["metadata"]
    inputs = {
        "models": {TESTED: tested, **{each["name"]: each for each in baselines}},
        "suites": spec["suites"],
        "gate": spec.get("gate", []),
        "precision": spec.get("precision", PRECISION),
        "images": {"trainer": image},
    }
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"{output}/{meta['namespace']}/{meta['name']}/{hashlib.sha256(text.encode()).hexdigest()[:12]}"
