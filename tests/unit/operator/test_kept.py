"""Of each object the store keeps what is read, and nothing that a tenant could make large."""

from __future__ import annotations

import json

import pytest

from tests.unit.operator.edge import child, owner
from tunesmith.core.objects import Object
from tunesmith.runtime.resources import RESOURCES, trim

LARGE = "x" * 250_000
TUNE = owner()


def kept(obj: Object) -> Object:
    return trim(obj, RESOURCES[obj["kind"]])


def large(kind: str, controlled: bool = False, **fields: object) -> Object:
    """An object of that kind as large as it may be."""
    made = child(kind, "large", TUNE if controlled else None, **fields)
    made["metadata"] |= {"annotations": {"note": LARGE}, "managedFields": [LARGE], "finalizers": ["x"], "generateName": "large-"}
    return made


OTHERS = {
    "PersistentVolumeClaim": {"spec": {"accessModes": ["ReadWriteMany"], "volumeName": LARGE}, "status": {"phase": LARGE}},
    "Workload": {"spec": {"podSets": [LARGE]}, "status": {"conditions": [], "admission": LARGE}},
    "Job": {"spec": {"template": {"spec": {"containers": [{"name": LARGE}]}}}, "status": {"conditions": [LARGE]}},
    "Deployment": {"spec": {"template": LARGE}, "status": {"conditions": [LARGE]}},
    "Service": {"spec": {"externalName": LARGE}},
    "NetworkPolicy": {"spec": {"ingress": [LARGE]}},
    "Pod": {"spec": {"containers": [LARGE], "nodeName": "n"}, "status": {"phase": "Running", "podIPs": [LARGE], "hostIP": "x"}},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_others_make_is_small_whatever_they_put_into_it(kind: str) -> None:
    assert len(json.dumps(kept(large(kind, **OTHERS[kind])))) < 1000


def test_of_a_claim_its_modes_are_kept() -> None:
    claim = kept(large("PersistentVolumeClaim", **OTHERS["PersistentVolumeClaim"]))
    assert claim["spec"] == {"accessModes": ["ReadWriteMany"]}
    assert set(claim["metadata"]) == {"name", "namespace", "uid", "resourceVersion"}


def test_of_a_child_of_ours_all_is_kept_but_the_annotations_of_others() -> None:
    deployment = large("Deployment", controlled=True, spec={"replicas": 1, "template": {"spec": {}}}, status={"readyReplicas": 1})
    deployment["metadata"]["annotations"]["tunesmith.dev/rendered"] = "{}"
    found = kept(deployment)
    assert (found["spec"], found["status"]) == (deployment["spec"], deployment["status"])
    assert found["metadata"]["annotations"] == {"tunesmith.dev/rendered": "{}"}


def test_of_a_pods_containers_their_states_are_kept() -> None:
    state = {"name": "stage", "state": {"running": {}}, "lastState": {}, "ready": True, "restartCount": 1}
    found = kept(large("Pod", status={"phase": "Running", "containerStatuses": [state | {"image": LARGE, "volumeMounts": [LARGE]}]}))
    assert found["status"] == {"phase": "Running", "containerStatuses": [state]}


def test_an_object_of_ours_is_whole_for_its_status_is_written_with_it() -> None:
    tune = owner()
    tune["metadata"] |= {"annotations": {"note": "x"}, "managedFields": []}
    assert kept(tune)["metadata"]["annotations"] == {"note": "x"}
    assert "managedFields" not in kept(tune)["metadata"]
