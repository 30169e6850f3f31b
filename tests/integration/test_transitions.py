"""Every field that may be changed is changed and changed back; what is there then is what a new object would have."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from dev.bench.life import CHILDREN
from dev.bench.mask import snapshot
from tests.integration.leaves import Path, changed, leaves, schema_of
from tests.integration.operators import FINE_TUNE_JOB, RESULTS, Namespace, OperatorProcess
from tests.integration.schema_server import JSON_PATCH, Server
from tests.integration.served import answer_requests, wait_revision
from tunesmith.core.objects import Object
from tunesmith.evalrun import api as evalrun
from tunesmith.finetunejob import api as finetunejob

pytestmark = pytest.mark.timeout(1200)

NAME = "serve"
TRAINING = "running FineTuneJob in training"
EVAL_RUN: Object = {
    "model": {"uri": "pvc://models/base"},
    "output": {"uri": "pvc://models/out"},
    "suites": [{"name": "heldOut", "perplexity": {"dataset": {"uri": "pvc://models/test.jsonl", "format": "Messages"}}}],
}
MODEL_DEPLOYMENT: Object = {"model": {"uri": "pvc://models/base"}, "replicas": 1}
BASES: dict[str, tuple[str, Object]] = {
    "running FineTuneJob": ("FineTuneJob", FINE_TUNE_JOB),
    TRAINING: ("FineTuneJob", FINE_TUNE_JOB),
    "suspended FineTuneJob": ("FineTuneJob", {**FINE_TUNE_JOB, "suspend": True}),
    "running EvalRun": ("EvalRun", EVAL_RUN),
    "suspended EvalRun": ("EvalRun", {**EVAL_RUN, "suspend": True}),
    "ModelDeployment": ("ModelDeployment", MODEL_DEPLOYMENT),
}
SUSPENDED = [name for name in BASES if name.startswith("suspended")]
FIRST = {"FineTuneJob": "Prepare", "EvalRun": "Evaluate"}
"""The stage that begins."""
IMMUTABLE = {"FineTuneJob": finetunejob.IMMUTABLE, "EvalRun": evalrun.IMMUTABLE, "ModelDeployment": ()}
# A model is named in one way: these go with `fineTuneJobRef`, not with the `uri` that the bases have.
OTHER_WAY = {("model", "artifact"), ("model", "fineTuneJobRef", "name")}


@dataclass
class Found:
    """What came of one base's leaves."""

    back: list[Path] = field(default_factory=list)
    refused: list[Path] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def put(space: Namespace, kind: str, spec: Object) -> int:
    """Replace the spec; the status code of the answer."""
    body: list[Object] = [{"op": "replace", "path": "/spec", "value": spec}]
    return space.api.send("PATCH", space.path(kind, NAME), body, JSON_PATCH).code


def settled(space: Namespace, kind: str) -> bool:
    """Whether the operator has seen the present spec."""
    found = space.get(kind, NAME) or {"metadata": {"generation": 0}}
    return bool((found.get("status") or {}).get("observedGeneration") == found["metadata"]["generation"])


def state(space: Namespace, kind: str) -> Object:
    """The object and its children, masked; without what counts how often they were changed."""
    found = space.all(kind, *CHILDREN)
    uids = {obj["metadata"]["uid"]: f"{kind}/{NAME}" for obj in found if obj["kind"] == kind}
    for obj in found:
        obj["metadata"].pop("generation", None)
        obj.get("status", {}).pop("observedGeneration", None)
        for condition in obj.get("status", {}).get("conditions", ()):
            condition.pop("observedGeneration", None)
    return snapshot(found, uids, space.name)


def begin(space: Namespace, name: str) -> Object:
    """Make the object of that base and wait until nothing more happens by itself."""
    kind, spec = BASES[name]
    made = space.create(kind, NAME, spec)
    if kind == "ModelDeployment":
        answer_requests(space, wait_revision(space, "Candidate"))
        space.wait_condition(kind, NAME, "Ready")
    elif spec.get("suspend"):
        space.wait_condition(kind, NAME, "Suspended")
    elif name == TRAINING:
        space.play(made, "Prepare", RESULTS["Prepare"])
        run(space, made, "Train")
    else:
        run(space, made, FIRST[kind])
    space.wait(lambda: settled(space, kind), "it to settle")
    return made


def run(space: Namespace, made: Object, stage: str, attempt: int = 1) -> None:
    """Let the stage's pod run, and wait until the operator has told so."""
    (pod,) = space.wait_pods(made, stage, attempt)
    space.run_pod(pod)
    space.wait_running(made, stage)


def go_through(fresh: Namespace, space: Namespace, name: str, number: int) -> Found:
    """Change each leaf and back, one after another, to the `number`-th other value that it can have."""
    for each in (fresh, space):
        begin(each, name)
    kind, base = BASES[name]
    reference, schema, found = state(fresh, kind), schema_of(kind), Found()
    for path in leaves(schema):
        if path == ("suspend",):
            # A suspension is history: it has a test of its own.
            continue
        for spec in changed(schema, base, path, number):
            try_leaf(space, kind, base, path, spec, reference, found)
    return found


def try_leaf(space: Namespace, kind: str, base: Object, path: Path, spec: Object, reference: Object, found: Found) -> None:
    if put(space, kind, spec) != 200:
        found.refused.append(path)
        return
    try:
        space.wait(lambda: settled(space, kind), f"{path} to be seen", lambda: space.status(kind, NAME))
        assert put(space, kind, base) == 200, f"{path} cannot be changed back"
        space.wait(lambda: settled(space, kind) and state(space, kind) == reference, f"{path} to be back", lambda: different(space, kind, reference))
        found.back.append(path)
    except AssertionError as error:
        found.wrong.append(f"{kind} {'.'.join(path)}: {error}")


def different(space: Namespace, kind: str, reference: Object) -> Object:
    """What is not as it should be."""
    now = state(space, kind)
    return {name: [reference.get(name), now.get(name)] for name in reference | now if reference.get(name) != now.get(name)}


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.long)], ids=["to one value", "to another value"])
@pytest.mark.usefixtures("unscheduled")
def test_every_field_changed_and_changed_back_leaves_what_a_new_object_has(
    operator: OperatorProcess, api: Server, new_namespace: Callable[[], str], number: int
) -> None:
    # Six that look all the time would keep the machine from what they wait for.
    spaces = {name: [Namespace(api, new_namespace(), interval=0.15) for _ in range(2)] for name in BASES}
    for fresh, space in spaces.values():
        fresh.claim("models")
        space.claim("models")
    with ThreadPoolExecutor(len(BASES)) as threads:
        runs = {name: threads.submit(go_through, *spaces[name], name, number) for name in BASES}
        found = {name: run.result() for name, run in runs.items()}
    for name, each in found.items():
        total = len(each.back) + len(each.refused) + len(each.wrong)
        print(f"{name}: {total} values, {len(each.back)} changed and back, {len(each.refused)} refused, {len(each.wrong)} wrong")
    assert not [text for each in found.values() for text in each.wrong]
    for name, (kind, base) in BASES.items():
        expected = {path for path in leaves(schema_of(kind)) if path[0] in IMMUTABLE[kind] or path in OTHER_WAY}
        expected |= {path for path in leaves(schema_of(kind)) if path[0] == "scheduling" and name.startswith("running")}
        # The memory of GPUs goes with GPUs, which the bases have none of.
        expected |= {("resources", "gpus"), ("resources", "gpuMemory")} if kind == "FineTuneJob" else set()
        expected = {path for path in expected if changed(schema_of(kind), base, path, number)}
        assert set(found[name].refused) == expected, name


@pytest.mark.parametrize("name", SUSPENDED)
@pytest.mark.usefixtures("unscheduled")
def test_a_suspended_object_that_goes_on_and_is_suspended_again_is_as_it_was_but_for_its_history(
    operator: OperatorProcess, space: Namespace, name: str
) -> None:
    kind, base = BASES[name]
    made = begin(space, name)
    before = space.status(kind, NAME)
    for attempt in (1, 2, 3):
        assert put(space, kind, {**base, "suspend": False}) == 200
        run(space, made, FIRST[kind], attempt)
        assert put(space, kind, base) == 200
        status = space.wait_condition(kind, NAME, "Suspended")
        assert [(each["type"], each["status"]) for each in status["conditions"]] == [(each["type"], each["status"]) for each in before["conditions"]]
        assert [entry["free"] for entry in status["attempts"]] == [True] * attempt
        assert not space.all("Job", "Pod")
