"""Objects that somebody means ill with: each is refused where it is written, or does no harm. Pod Security "restricted" is enforced."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath

import pytest

from dev.bench.life import CHILDREN
from tests.integration.hostile import HOSTILE, SECRET, SPECS, Hostile
from tests.integration.leaves import ITEM, placed, schema_of, strings
from tests.integration.operators import FINE_TUNE_JOB, RESULTS, Namespace, OperatorProcess, answer, settle
from tests.integration.schema_server import MERGE, Server
from tunesmith.api.conditions import is_true
from tunesmith.core.objects import LABEL_STAGE, Object
from tunesmith.runtime.resources import RESOURCES
from tunesmith.stages.attempt import Attempt, StageKey

REFUSED = [entry for entry in HOSTILE if entry.field]
UNKNOWN = [entry for entry in REFUSED if entry.unknown]
LET_IN = [entry for entry in HOSTILE if not entry.field]
CLAIM, UNNAMED = "models", "unnamed"
MOUNTS = ("/etc/tunesmith", "/tmp", "/home/tunesmith", "/dev/shm", f"/mnt/pvc/{CLAIM}", "/var/run/secrets/tunesmith.dev")
COMMANDS = (["python", "-m", "tunesmith_trainer"], ["python", "-m", "tunesmith_serving"])
VARIABLES = re.compile(
    r"^(HOME|HF_HUB_OFFLINE|TMPDIR|TORCH_EXTENSIONS_DIR|TRITON_CACHE_DIR|OMP_NUM_THREADS|TUNESMITH_NODE|KUBEFLOW_TRAINER_SERVER_[A-Z_]+|VLLM_[A-Z_]+)$"
)
NODE_NAME = {"fieldRef": {"apiVersion": "v1", "fieldPath": "spec.nodeName"}}
STRICT, LENIENT = "?fieldValidation=Strict", "?fieldValidation=Ignore"
CANARY = "canary-in-a-secret"
FREE = {
    "FineTuneJob": {"preparation.dropPatterns", "training.overrides"},
    "EvalRun": set[str](),
    "ModelDeployment": {"engine.vllm.overrides"},
}
"""Strings that may hold anything: of a pattern and of a setting only what reads them can say what is good."""
STATUS_LIMIT = 64 * 1024
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]")


def test_there_are_enough_of_them() -> None:
    assert len({entry.what for entry in HOSTILE}) == len(HOSTILE) >= 60


@pytest.mark.parametrize("entry", REFUSED, ids=lambda entry: entry.what)
def test_what_the_schema_can_tell_is_refused_with_its_place(api: Server, namespace: str, entry: Hostile) -> None:
    space = Namespace(api, namespace)
    for query in (STRICT,) if entry.unknown else (STRICT, LENIENT):
        answer = api.send("POST", space.path(entry.kind) + query, entry.manifest("hostile"))
        assert answer.code in (400, 422), answer.body
        assert entry.field in json.dumps(answer.body), answer.body
    assert not space.all(entry.kind)


@pytest.mark.parametrize("entry", LET_IN, ids=lambda entry: entry.what)
def test_what_is_let_in_does_no_harm(operator: OperatorProcess, api: Server, namespace: str, entry: Hostile) -> None:
    let_in(Namespace(api, namespace), entry, STRICT)


@pytest.mark.parametrize("entry", UNKNOWN, ids=lambda entry: entry.what)
def test_a_field_that_there_is_not_does_no_harm_where_nobody_asks_to_be_told(
    operator: OperatorProcess, api: Server, namespace: str, entry: Hostile
) -> None:
    let_in(Namespace(api, namespace), entry, LENIENT)


@pytest.mark.parametrize("mark", ["\n", "\x00", "\x1b[2J", "\u202e"], ids=ascii)
@pytest.mark.parametrize("kind", SPECS)
def test_no_string_takes_a_control_character_but_those_that_are_free(api: Server, namespace: str, kind: str, mark: str) -> None:
    space, schema, free = Namespace(api, namespace), schema_of(kind), set()
    found = list(strings(schema, mark))
    for path, value in found:
        body = Hostile("", kind, placed(schema, SPECS[kind], path, value)).manifest("hostile")
        answer = api.send("POST", space.path(kind) + "?dryRun=All", body)
        place = ".".join(("spec", *path)).replace(f".{ITEM}", "[0]")
        if answer.code == 201:
            free.add(".".join(path))
        else:
            assert answer.code == 422, answer.body
            assert [field for field in answer.refused if field.startswith(place)], (place, answer.body)
    print(f"{kind}: {len(found)} strings, {len(free)} free")
    # What is let in there is among the entries above: a pattern, a setting's value.
    assert free == FREE[kind]


def let_in(space: Namespace, entry: Hostile, query: str) -> None:
    """The object is let in; see that it does no harm."""
    api = space.api
    labels = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    api.send("PATCH", f"/api/v1/namespaces/{space.name}", labels, MERGE)
    space.claim(CLAIM)
    space.claim(UNNAMED)
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": {"token": CANARY}}
    assert api.send("POST", f"/api/v1/namespaces/{space.name}/secrets", secret).code == 201
    answer = api.send("POST", space.path(entry.kind) + query, entry.manifest("hostile"))
    assert answer.code == 201, answer.body
    space.wait(lambda: settled(space, entry), "an outcome", lambda: space.status(entry.kind, "hostile"))
    status = space.status(entry.kind, "hostile")
    reasons = {condition["type"]: condition.get("reason") for condition in status["conditions"]}
    assert not entry.stalled or reasons["Stalled"] == entry.stalled, status
    assert len(json.dumps(status)) < STATUS_LIMIT
    assert not [condition for condition in status["conditions"] if CONTROL.search(condition.get("message", ""))]
    for pod in space.all("Pod"):
        check(pod)
    assert CANARY not in json.dumps(space.all(entry.kind, *CHILDREN))
    # What it asked for is not what others get.
    if entry.kind == "FineTuneJob":
        sane = space.create("FineTuneJob", "sane", FINE_TUNE_JOB)
        space.wait_pods(sane, "Prepare")
    forget(space, entry)


def test_what_another_namespace_says_of_an_object_is_not_believed(
    operator: OperatorProcess, space: Namespace, new_namespace: Callable[[], str]
) -> None:
    """Anybody may write any uid into the labels and ownerReferences of what is their own."""
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    (pod,), (job,) = space.wait_pods(tune, "Prepare"), space.all("Job")
    neighbour = Namespace(space.api, new_namespace())
    born = datetime.fromisoformat(pod["metadata"]["creationTimestamp"])
    space.wait(lambda: datetime.now(UTC) > born + timedelta(seconds=1), "a second to pass: of two pods the newer would count")
    spec: Object = {"containers": [{"name": "stage", "image": "i"}], "restartPolicy": "Never"}
    made = copy(neighbour, job, {"suspend": True, "template": {"spec": spec}})
    lying = copy(neighbour, {**pod, "kind": "Pod"}, spec)
    neighbour.end_pod(lying, answer("Prepare", 1, RESULTS["Prepare"] | {"runURI": "pvc://models/evil"}))
    blocking = copy(neighbour, {**pod, "kind": "Pod"}, spec, {LABEL_STAGE: "Train"})
    operator.wait_resyncs(1)
    space.play(tune, "Prepare", RESULTS["Prepare"])
    space.wait_pods(tune, "Train")
    assert "evil" not in json.dumps(space.status("FineTuneJob", "tune"))
    for obj in (made, lying, blocking):
        neighbour.patch(obj["kind"], obj["metadata"]["name"], {"metadata": {"finalizers": None}})


def test_a_job_that_took_the_name_of_the_next_attempt_is_let_alone_and_waited_for(operator: OperatorProcess, space: Namespace) -> None:
    tune = space.create("FineTuneJob", "tune", {**FINE_TUNE_JOB, "suspend": True})
    space.wait_condition("FineTuneJob", "tune", "Suspended")
    name = Attempt(tune, StageKey("Prepare"), 1).name
    spec = {"suspend": True, "template": {"spec": {"containers": [{"name": "mine", "image": "i"}], "restartPolicy": "Never"}}}
    taken = space.api.send("POST", space.path("Job"), {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec})
    assert taken.code == 201, taken.body
    space.patch("FineTuneJob", "tune", {"spec": {"suspend": False}})
    space.wait(lambda: space.status("FineTuneJob", "tune")["stages"][0]["state"] == "Pending", "the attempt to be on record")
    assert settle(1, lambda: (space.get("Job", name) or {})["metadata"]["uid"] == taken.body["metadata"]["uid"])
    space.delete("Job", name)
    space.wait_pods(tune, "Prepare")


def copy(space: Namespace, obj: Object, spec: Object, labels: Object | None = None) -> Object:
    """An object that says of itself what `obj` does. Its owner is not there, so garbage collection has to be kept from it."""
    metadata = {name: obj["metadata"][name] for name in ("name", "labels", "ownerReferences")} | {"finalizers": ["example.com/stay"]}
    metadata |= {"name": f"{metadata['name']}-{(labels or {}).get(LABEL_STAGE, 'copy').lower()}", "labels": metadata["labels"] | (labels or {})}
    body = {"apiVersion": RESOURCES[obj["kind"]].api_version, "kind": obj["kind"], "metadata": metadata, "spec": spec}
    made = space.api.send("POST", space.path(obj["kind"]), body)
    assert made.code == 201, made.body
    return {**made.body, "kind": obj["kind"]}


def settled(space: Namespace, entry: Hostile) -> bool:
    """Whether its first pod is there, or its status tells why there is none."""
    status = space.status(entry.kind, "hostile")
    if entry.stalled:
        return is_true(status, "Stalled")
    obstacles = ("VolumeNotFound", "DependencyNotReady")
    waits = [condition for condition in status.get("conditions", ()) if condition["type"] == "Reconciling" and condition["reason"] in obstacles]
    return bool(space.all("Pod") or waits or is_true(status, "Stalled"))


def check(pod: Object) -> None:
    """The pod has what ours have, and nothing else."""
    spec = pod["spec"]
    for volume in spec["volumes"]:
        (kind,) = set(volume) - {"name"}
        assert kind in ("downwardAPI", "emptyDir", "projected", "persistentVolumeClaim"), volume
        assert kind != "persistentVolumeClaim" or volume[kind]["claimName"] == CLAIM, volume
        assert kind != "projected" or [set(source) for source in volume[kind]["sources"]] == [{"serviceAccountToken"}], volume
    (container,) = spec["containers"]
    assert [str(PurePosixPath(mount["mountPath"])) for mount in container["volumeMounts"] if mount["mountPath"] not in MOUNTS] == []
    assert not [mount for mount in container["volumeMounts"] if "subPath" in mount or "subPathExpr" in mount]
    assert container["command"] in COMMANDS and not container.get("args"), container
    assert [entry["name"] for entry in container["env"] if not VARIABLES.match(entry["name"])] == []
    sources = [entry["valueFrom"] for entry in container["env"] if "valueFrom" in entry]
    assert [source for source in sources if set(source) != {"resourceFieldRef"} and source != NODE_NAME] == []
    assert "envFrom" not in container and "initContainers" not in spec and "imagePullSecrets" not in spec
    assert (spec["serviceAccountName"], spec["automountServiceAccountToken"]) == ("default", False)
    assert not {"hostNetwork", "hostPID", "hostIPC"} & {name for name, value in spec.items() if value}
    assert spec["priority"] == 0


def forget(space: Namespace, entry: Hostile) -> None:
    """Delete it, so that a hundred of them do not go on waiting side by side."""
    space.patch(entry.kind, "hostile", {"metadata": {"finalizers": None}})
    space.delete(entry.kind, "hostile")
