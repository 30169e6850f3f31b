"""A corpus of specs with the orders, names and digests that a release gave them, so that a later one can be held to them.

`recorded/contract-1.json` was written at 9dfedbe, the last release of contract version 1, by `python -m tests.unit.operator.corpus`:
every example, and for each kind the smallest spec, the fullest one, and each of them with one leaf changed. Of the examples and the two
whole specs it holds the orders as text, of the others their sha256.
"""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.integration.leaves import changed, leaves, schema_of
from tests.integration.schema_examples import FULL, MINIMAL
from tests.unit.operator import deployments, evalruns
from tests.unit.operator.makers import World, answer, claim, owner
from tunesmith.core.objects import Object
from tunesmith.evalrun.build import build as build_evalrun
from tunesmith.evalrun.status import status as evalrun_status
from tunesmith.finetunejob.build import build as build_finetunejob
from tunesmith.finetunejob.status import status as finetunejob_status
from tunesmith.workload.podspec import ANNOTATIONS, STAGE_FILE, claims

RECORDED = Path(__file__).parent / "recorded" / "contract-1.json"
EXAMPLES = Path(__file__).parents[3] / "examples"
KINDS = ("FineTuneJob", "EvalRun", "ModelDeployment")
MINE = {"uri": "pvc://models/mine", "digest": "sha256:" + "7" * 64}


def specs() -> Iterator[tuple[str, str, Object]]:
    """(name, kind, spec) of the corpus."""
    for path in sorted(EXAMPLES.glob("*/*.yaml")):
        for manifest in yaml.safe_load_all(path.read_text()):
            if manifest["kind"] in KINDS:
                yield f"example {path.parent.name} {manifest['kind']}", manifest["kind"], manifest["spec"]
    for kind in KINDS:
        schema = schema_of(kind)
        for size, spec in (("minimal", MINIMAL[kind]), ("full", FULL[kind])):
            yield f"{size} {kind}", kind, spec
            for path in leaves(schema):
                for other in changed(schema, spec, path)[:1]:
                    yield f"{size} {kind} {'.'.join(path)}", kind, other


def played(kind: str, spec: Object, answers: Object, before: Object | None) -> Object:
    """`{status, made}` of an object that goes through its life: what is pinned, and the orders by the name of the Job or Deployment.

    `before`: the status that a release before wrote; None: a new object.
    """
    world = deployment(spec) if kind == "ModelDeployment" else job(kind, spec)
    if before is not None:
        world.owner["status"] = copy.deepcopy(before)
    if isinstance(world, deployments.World):
        world.step()
        live = [child for (sort, _), child in sorted(world.children.items()) if sort == "Deployment"]
        return {"status": {"revisions": world.owner["status"]["revisions"]}, "made": made_of(live)}
    first = copy.deepcopy(world.step())
    for stage, part in stages(kind, spec):
        if (told := answers.get(f"{stage} {part}")) is None:
            told = answers[f"{stage} *"]
        # What was recorded has the world size of one process, whatever the spec: the world fills in the attempt's.
        world.end(stage, {name: fact for name, fact in told.items() if name != "worldSize"}, part).step()
    pinned = {name: first[name] for name in ("evaluated", "resolved") if name in first}
    return {"status": pinned, "made": made_of([child for (sort, _), child in sorted(world.children.items()) if sort == "Job"])}


def made_of(live: list[Object]) -> Object:
    """Orders by name, as text."""
    return {entry["metadata"]["name"]: entry["spec"]["template"]["metadata"]["annotations"][ANNOTATIONS[STAGE_FILE]] for entry in live}


def stages(kind: str, spec: Object) -> list[tuple[str, str]]:
    """Stage and part, in the order they run."""
    if kind == "FineTuneJob":
        variants = [("Quantize", variant["name"]) for variant in spec.get("variants", ())]
        return [("Prepare", ""), ("Train", ""), ("Finalize", ""), *variants]
    names = ("tested", *(baseline["name"] for baseline in spec.get("baselines", ())))
    return [*(("Evaluate", name) for name in names), ("Compare", "")]


def job(kind: str, spec: Object) -> World:
    """The world of a FineTuneJob or an EvalRun, with all that it may name."""
    artifacts = [evalruns.artifact(name, evalruns.MERGED) for name in ("Merged", "w8a8", "w4a16", "other", "3", "4")]
    sources = [spec["model"], *(each["model"] for each in spec.get("baselines", ()) if "model" in each)]
    found = [{**evalruns.job(*artifacts), "metadata": {"name": source["fineTuneJobRef"]["name"]}} for source in sources if "fineTuneJobRef" in source]
    serving = [source["modelDeploymentRef"]["name"] for source in sources if "modelDeploymentRef" in source]
    active = {"name": "00000000", "state": "Active", "verdict": "Passed", "image": "x", "inputs": {}, "createdTime": "2026-01-01T00:00:00Z"}
    found += [{"kind": "ModelDeployment", "metadata": {"name": name}, "spec": {}, "status": {"revisions": [active | MINE]}} for name in serving]
    named = [*(claim(name) for name in claims(spec, "pvc://models", "pvc://datasets")), *found]
    status, build = (finetunejob_status, build_finetunejob) if kind == "FineTuneJob" else (evalrun_status, build_evalrun)
    return World(status, build, owner(kind, "subject", spec), *named)


def deployment(spec: Object) -> deployments.World:
    """The world of a ModelDeployment, its gate passed."""
    name = spec["model"].get("fineTuneJobRef", {}).get("name", "bot")
    at = spec["model"].get("uri") or f"pvc://models/team-a/{name}"
    artifact = {"name": spec["model"].get("artifact", "Merged"), "uri": at, "digest": deployments.GOOD}
    found = [{**deployments.job(name), "status": {"artifacts": [artifact], "conditions": []}}]
    for reference in spec.get("gate", {}).get("evalRunRefs", ()):
        found.append(deployments.evaluation("Passed", deployments.GOOD, reference["name"], at))
    return deployments.World(spec, *found, *(deployments.claim(claim) for claim in claims(spec, at)))


def all_answers() -> Object:
    """A result of each stage that succeeded; `*`: of any part."""
    whole = {f"{stage} ": answer(stage) for stage in ("Prepare", "Train", "Finalize", "Compare")}
    return whole | {"Quantize *": answer("Quantize", "w8a8"), "Evaluate *": answer("Evaluate", "tested")}


def record() -> Object:
    """The corpus as this release writes it."""
    answers, entries = all_answers(), []
    for name, kind, spec in specs():
        try:
            found = played(kind, spec, answers, None)
        except (LookupError, ValueError):
            continue  # Nothing runs (`suspend`), or the API server would refuse it (a rule over several fields).
        whole = name.startswith("example") or name.count(" ") == 1
        made = found["made"] if whole else {child: hashlib.sha256(text.encode()).hexdigest() for child, text in found["made"].items()}
        entries.append({"name": name, "kind": kind, "spec": spec, "status": found["status"], "made": made})
    return {"answers": answers, "entries": entries}


def main() -> None:
    """Write the corpus to standard output, an entry a line."""
    corpus: dict[str, Any] = record()
    lines = ",\n".join(json.dumps(entry, sort_keys=True, separators=(",", ":")) for entry in corpus["entries"])
    sys.stdout.write(f'{{"answers":{json.dumps(corpus["answers"], sort_keys=True)},\n"entries":[\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
