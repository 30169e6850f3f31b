"""Revisions of a ModelDeployment on a real API server, with the real Deployment controller; tests say what the pods are."""

from __future__ import annotations

import json

from dev.cluster.controlplane import ControlPlane
from dev.cluster.processes import wait_until
from tests.integration.operators import Namespace, OperatorProcess, Writes
from tunesmith.conditions import is_true
from tunesmith.modeldeployment.revision import DRAIN_SECONDS, LABEL_REVISION
from tunesmith.values import Object

SPEC: Object = {"model": {"uri": "pvc://models/base"}}
OTHER_ENGINE: Object = {"spec": {"engine": {"vllm": {"maxModelLen": 64}}}}
MISMATCH = {
    "schemaVersion": 1,
    "stage": "Serve",
    "outcome": "Failed",
    "startTime": "2026-01-01T00:00:00Z",
    "completionTime": "2026-01-01T00:00:01Z",
    "exitCode": 65,
    "reason": "DigestMismatch",
    "message": "weights have changed",
}


def revision(space: Namespace, state: str) -> str:
    """Name of the revision in that state; empty if there is none."""
    entries = space.status("ModelDeployment", "serve").get("revisions", ())
    return next((entry["name"] for entry in entries if entry["state"] == state), "")


def wait_revision(space: Namespace, state: str) -> str:
    """Wait for a revision in that state."""
    space.wait(lambda: revision(space, state), f"a revision to be {state}", lambda: space.status("ModelDeployment", "serve"))
    return revision(space, state)


def pods(space: Namespace, name: str) -> list[Object]:
    """The revision's pods."""
    return [pod for pod in space.all("Pod") if pod["metadata"]["labels"].get(LABEL_REVISION) == name]


def wait_pod(space: Namespace, name: str) -> Object:
    """Wait for the revision's pod."""
    space.wait(lambda: pods(space, name), f"a pod of revision {name}", lambda: sorted(space.names("Deployment", "Pod")))
    return pods(space, name)[0]


def answer_requests(space: Namespace, name: str) -> None:
    """Say that the revision's pods are ready, as their kubelet would."""
    wait_pod(space, name)
    for pod in pods(space, name):
        ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        space.patch("Pod", pod["metadata"]["name"], {"status": ready}, "status")


def serve(space: Namespace) -> str:
    """Have the first revision serve."""
    space.create("ModelDeployment", "serve", SPEC)
    answer_requests(space, wait_revision(space, "Candidate"))
    space.wait_condition("ModelDeployment", "serve", "Ready")
    return wait_revision(space, "Active")


def selected(space: Namespace) -> str:
    """The revision that the Service selects."""
    service = space.get("Service", "serve")
    return str(service["spec"]["selector"][LABEL_REVISION]) if service else ""


def test_a_change_is_rolled_out_beside_the_old_revision_which_is_drained_before_it_goes(operator: OperatorProcess, space: Namespace) -> None:
    old = serve(space)
    space.patch("ModelDeployment", "serve", OTHER_ENGINE)
    new = wait_revision(space, "Candidate")
    wait_pod(space, new)
    assert (selected(space), revision(space, "Active")) == (old, old)
    assert is_true(space.status("ModelDeployment", "serve"), "Ready")
    answer_requests(space, new)
    assert wait_revision(space, "Draining") == old
    space.wait(lambda: selected(space) == new, "the Service to be switched")
    assert pods(space, old), "the old pods answer what was sent to them before the switch"
    wait_until(lambda: not pods(space, old), "the old revision to go", DRAIN_SECONDS + 30)
    assert revision(space, "Active") == new
    assert len(space.all("Deployment")) == 1


def test_a_candidate_whose_weights_were_changed_is_told_and_goes_when_the_spec_changes_back(operator: OperatorProcess, space: Namespace) -> None:
    old = serve(space)
    space.patch("ModelDeployment", "serve", OTHER_ENGINE)
    new = wait_revision(space, "Candidate")
    ended = {"exitCode": 65, "reason": "Error", "message": json.dumps(MISMATCH)}
    container = {"name": "stage", "ready": False, "restartCount": 1, "image": "", "imageID": "", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    status = {"phase": "Running", "containerStatuses": [{**container, "lastState": {"terminated": ended}}]}
    space.patch("Pod", wait_pod(space, new)["metadata"]["name"], {"status": status}, "status")
    told = space.wait_condition("ModelDeployment", "serve", "Stalled")
    stalled = next(entry for entry in told["conditions"] if entry["type"] == "Stalled")
    assert (stalled["reason"], is_true(told, "Ready"), selected(space)) == ("DigestMismatch", True, old)
    space.patch("ModelDeployment", "serve", {"spec": {"engine": None}})
    space.wait(lambda: not pods(space, new), "the candidate to go")
    space.wait(lambda: not is_true(space.status("ModelDeployment", "serve"), "Stalled"), "it to serve as before")
    assert revision(space, "Active") == old


def test_the_scale_subresource_reaches_the_pods(operator: OperatorProcess, space: Namespace) -> None:
    name = serve(space)
    scale = space.patch("ModelDeployment", "serve", {"spec": {"replicas": 2}}, "scale").body
    assert scale["status"]["selector"].endswith(f"{LABEL_REVISION}={name}")
    space.wait(lambda: len(pods(space, name)) == 2, "the second pod")


def test_a_deployment_that_serves_is_written_no_more(operator: OperatorProcess, space: Namespace, control_plane: ControlPlane) -> None:
    serve(space)
    operator.wait_resyncs(2)
    writes = Writes(control_plane)
    operator.wait_resyncs(3)
    assert writes.seen() == []
