"""Every field that we own of a child and somebody else edits is put back; nobody is fought."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from dev.cluster.controlplane import ControlPlane
from dev.cluster.errors import ClusterError
from dev.cluster.processes import wait_until
from tests.integration.fields import Field, edits, owned
from tests.integration.operators import FINE_TUNE_JOB, RESULTS, Namespace, OperatorProcess, Writes, settle
from tests.integration.schema_server import APPLY, JSON_PATCH
from tunesmith.core.objects import FIELD_MANAGER, Object

STRATEGIC = "application/strategic-merge-patch+json"
SOMEBODY = "?fieldManager=somebody"
APPLIED = ("Service", "Deployment", "NetworkPolicy")
PATIENCE = 20.0
"""Seconds that putting one field back may take."""
CHILDREN = 6
"""Of a ModelDeployment Deployment, NetworkPolicy and two Services; of a FineTuneJob a NetworkPolicy and a Service."""
LEAST = {"changed": 99, "taken away": 90, "taken away as a whole": 20}
"""How many edits must have been let in: else they would prove nothing."""


def shown(live: Object) -> Object:
    """What must be as before: all but what the server and the Deployment controller keep books in. Its type is known, and missing in a list."""
    metadata = {name: value for name, value in live["metadata"].items() if name not in ("managedFields", "resourceVersion", "generation")}
    annotations = {name: value for name, value in metadata.get("annotations", {}).items() if not name.startswith("deployment.kubernetes.io/")}
    rest = {name: value for name, value in live.items() if name not in ("apiVersion", "kind", "status")}
    return rest | {"metadata": metadata | {"annotations": annotations}}


class Vandal:
    """Edits one object, field by field, and waits each time until it is as before."""

    def __init__(self, space: Namespace, live: Object) -> None:
        self.space = space
        self.kind, self.name = live["kind"], live["metadata"]["name"]
        self.live = live
        self.counts: Counter[str] = Counter()
        self.refused: list[str] = []
        self.kept: list[str] = []

    def edit_all(self, how: str) -> None:
        for field in owned(self.live, FIELD_MANAGER):
            if field.item == (how == "taken away as a whole"):
                self.edit(field, how != "changed")

    def edit(self, field: Field, remove: bool) -> None:
        path = self.space.path(self.kind, self.name) + SOMEBODY
        for patch in edits(field, self.live, remove):
            answer = self.space.api.send("PATCH", path, patch, JSON_PATCH)
            if answer.code == 200:
                break
        else:
            self.refused.append(field.pointer)
            return
        if shown(answer.body) == shown(self.live):
            # Taken away, and filled in by the server with the same value.
            self.counts["same"] += 1
            return
        self.counts["edited"] += 1
        try:
            wait_until(self.restored, "it to be put back", PATIENCE, interval=0.1)
        except ClusterError:
            self.kept.append(f"{self.kind} {self.name} {field.pointer}: {self.difference()}")

    def restored(self) -> bool:
        found = self.space.get(self.kind, self.name)
        return found is not None and shown(found) == shown(self.live)

    def difference(self) -> Object:
        found = shown(self.space.get(self.kind, self.name) or {"metadata": {}})
        return {name: found.get(name) for name in found if found.get(name) != shown(self.live).get(name)}


@pytest.mark.parametrize("how", ["changed", "taken away", "taken away as a whole"])
def test_every_field_of_ours_that_is_edited_by_hand_is_put_back(operator: OperatorProcess, space: Namespace, how: str) -> None:
    # Without a pod, which each edit of the template would roll.
    space.create("ModelDeployment", "serve", {"model": {"uri": "pvc://models/base"}, "replicas": 0})
    tune = space.create("FineTuneJob", "tune", {**FINE_TUNE_JOB, "parallelism": {"nodes": 2, "ddp": {}}})
    space.play(tune, "Prepare", RESULTS["Prepare"])
    space.wait_pods(tune, "Train", count=2)
    space.wait(lambda: len(space.all(*APPLIED)) == CHILDREN, "the children", lambda: sorted(space.names(*APPLIED)))
    operator.wait_resyncs(1)
    vandals = [Vandal(space, child) for child in space.all(*APPLIED)]
    with ThreadPoolExecutor(len(vandals)) as threads:
        for done in [threads.submit(vandal.edit_all, how) for vandal in vandals]:
            done.result()
    for vandal in vandals:
        print(f"{vandal.kind} {vandal.name}: {dict(vandal.counts)}, fixed by the server: {', '.join(vandal.refused)}")
    assert not [text for vandal in vandals for text in vandal.kept]
    assert sum(vandal.counts["edited"] for vandal in vandals) >= LEAST[how]


INJECTED: Object = {
    "metadata": {"labels": {"mesh": "on"}, "annotations": {"mesh": "on"}},
    "spec": {"template": {"metadata": {"annotations": {"mesh": "on"}}, "spec": {"containers": [{"name": "mesh", "image": "mesh:1"}]}}},
}


def deployed(space: Namespace) -> Object:
    """The Deployment of a ModelDeployment that has settled."""
    # Empty texts are kept in a map, and left out in a toleration: neither must look like an edit.
    scheduling = {"nodeSelector": {"node-role.kubernetes.io/gpu": ""}, "tolerations": [{"key": "", "operator": "Exists"}]}
    space.create("ModelDeployment", "serve", {"model": {"uri": "pvc://models/base"}, "scheduling": scheduling})
    space.wait(lambda: space.all("Deployment"), "the Deployment", lambda: space.status("ModelDeployment", "serve"))
    (deployment,) = space.all("Deployment")
    return deployment


def applied(writes: Writes) -> list[str]:
    """The writes to Deployments; what the pods do in the meantime is told in the status."""
    return [write for write in writes.seen() if "/deployments/" in write]


def test_what_an_injector_adds_stays_and_costs_no_write(operator: OperatorProcess, space: Namespace, control_plane: ControlPlane) -> None:
    name = deployed(space)["metadata"]["name"]
    operator.wait_resyncs(1)
    writes = Writes(control_plane, space.name)
    body = {"apiVersion": "apps/v1", "kind": "Deployment", **INJECTED}
    assert space.api.send("PATCH", space.path("Deployment", name) + "?fieldManager=injector", body, APPLY).code == 200
    operator.wait_resyncs(3)
    assert applied(writes) == []
    found = space.get("Deployment", name)
    assert found and [each["name"] for each in found["spec"]["template"]["spec"]["containers"]] == ["stage", "mesh"]


@pytest.mark.parametrize(
    ("rival", "change"),
    [
        ("an autoscaler", {"spec": {"replicas": 3}}),
        ("a rewriter of images", {"spec": {"template": {"spec": {"containers": [{"name": "stage", "image": "mirror/serving:1"}]}}}}),
    ],
)
def test_a_rival_for_a_field_of_ours_is_answered_once_and_not_fought(
    operator: OperatorProcess, space: Namespace, control_plane: ControlPlane, rival: str, change: Object
) -> None:
    name = deployed(space)["metadata"]["name"]
    operator.wait_resyncs(1)
    writes = Writes(control_plane, space.name)

    def insist() -> bool:
        return space.api.send("PATCH", space.path("Deployment", name) + "?fieldManager=rival", change, STRATEGIC).code == 200

    assert insist()
    space.wait(lambda: (space.get("Deployment", name) or {})["metadata"]["generation"] == 3, "it to be put back")
    assert settle(4, insist)
    assert len(applied(writes)) == 1
