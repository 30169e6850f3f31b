"""Revisions of a ModelDeployment on a real API server, with the real Deployment controller; tests say what the pods are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dev.bench.life import DIGEST
from dev.cluster.controlplane import ControlPlane
from dev.cluster.processes import wait_until
from tests.integration import served
from tests.integration.operators import DRAIN_SECONDS, Namespace, OperatorProcess, Writes
from tunesmith.api.conditions import is_true
from tunesmith.core import drift
from tunesmith.core.objects import MANAGED_BY, Object
from tunesmith.modeldeployment.rendering import ANNOTATION
from tunesmith.modeldeployment.revision import LABEL_REVISION

SPEC: Object = {"model": {"uri": "pvc://models/base"}}
OTHER_ENGINE: Object = {"spec": {"engine": {"vllm": {"maxModelLen": 64}}}}
OTHER_DIGEST = "sha256:" + "1" * 64
GATED: Object = {**SPEC, "gate": {"evalRunRefs": [{"name": "first"}]}}
OTHER_MODEL: Object = {"spec": {"model": {"uri": "pvc://models/other"}, "gate": {"evalRunRefs": [{"name": "second"}]}}}


def test_a_change_is_rolled_out_beside_the_old_revision_which_is_drained_before_it_goes(operator: OperatorProcess, space: Namespace) -> None:
    old = served.serve(space, SPEC)
    space.patch("ModelDeployment", "serve", OTHER_ENGINE)
    new = served.wait_revision(space, "Candidate")
    served.wait_pod(space, new)
    assert (served.selected(space), served.revision(space, "Active")) == (old, old)
    assert is_true(served.status(space), "Ready")
    served.answer_requests(space, new)
    assert served.wait_revision(space, "Draining") == old
    space.wait(lambda: served.selected(space) == new, "the Service to be switched")
    assert served.pods(space, old), "the old pods answer what was sent to them before the switch"
    wait_until(lambda: not served.pods(space, old), "the old revision to go", DRAIN_SECONDS + 30)
    assert served.revision(space, "Active") == new
    assert len(space.all("Deployment")) == 1


# name -> (restarts, the end of the container, reason, part of the message)
FAILURES: dict[str, tuple[int, Object, str, str]] = {
    "changed weights": (
        1,
        {"exitCode": 65, "message": served.refusal("DigestMismatch", 65, "weights have changed")},
        "DigestMismatch",
        "have changed",
    ),
    "bad weights": (1, {"exitCode": 65, "message": served.refusal("InvalidModel", 65, "no config.json")}, "InvalidModel", "no config.json"),
    "out of memory": (3, {"exitCode": 137, "reason": "OOMKilled"}, "OutOfMemory", "more memory than its limit"),
    "crash loop": (3, {"exitCode": 70, "message": served.refusal("EngineFailed", 70, "CUDA error")}, "EngineFailed", "CUDA error"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_candidate_that_cannot_start_is_told_beside_the_old_revision_which_serves_on(
    operator: OperatorProcess, space: Namespace, name: str
) -> None:
    restarts, ended, reason, words = FAILURES[name]
    old = served.serve(space, SPEC)
    space.patch("ModelDeployment", "serve", OTHER_ENGINE)
    new = served.wait_revision(space, "Candidate")
    served.fail_to_start(space, new, restarts, **ended)
    served.wait_told(space, "Stalled", reason)
    assert (served.told(space, "Ready"), served.selected(space)) == (("True", "Serving"), old)
    for condition in ("Ready", "Stalled"):
        assert words in served.message(space, condition)
        assert f"revision {old} serves" in served.message(space, condition)
    space.patch("ModelDeployment", "serve", {"spec": {"engine": None}})
    space.wait(lambda: not served.pods(space, new), "the candidate to go")
    space.wait(lambda: served.told(space, "Stalled")[0] == "False", "it to serve as before")
    assert served.revision(space, "Active") == old


# name -> (path that the second EvalRun measures, its verdict, reason, part of the message)
CLOSED: dict[str, tuple[str, str, str, str]] = {
    "a failed verdict": ("pvc://models/other", "Failed", "GateFailed", "EvalRun second: heldOut/perplexity is 123.5, must have max 100"),
    "a verdict on another model": ("pvc://models/third", "Passed", "DigestNotEvaluated", f"evaluated {OTHER_DIGEST} at pvc://models/third"),
}


@pytest.mark.parametrize("name", CLOSED)
def test_a_gate_that_does_not_hold_starts_nothing_and_the_old_revision_serves_on(operator: OperatorProcess, space: Namespace, name: str) -> None:
    uri, verdict, reason, words = CLOSED[name]
    served.judge(space, "first", "pvc://models/base", DIGEST)
    old = served.serve(space, GATED)
    served.judge(space, "second", uri, OTHER_DIGEST, verdict)
    space.patch("ModelDeployment", "serve", OTHER_MODEL)
    served.wait_told(space, "Stalled", reason)
    assert (served.told(space, "GatePassed"), served.told(space, "Ready")) == (("False", reason), ("True", "Serving"))
    for condition in ("Ready", "Stalled"):
        assert words in served.message(space, condition)
        assert f"revision {old} serves" in served.message(space, condition)
    assert (served.selected(space), served.revision(space, "Candidate")) == (old, "")
    assert [entry["metadata"]["labels"][LABEL_REVISION] for entry in space.all("Deployment")] == [old]


def test_a_model_whose_gate_passed_takes_over(operator: OperatorProcess, space: Namespace) -> None:
    served.judge(space, "first", "pvc://models/base", DIGEST)
    served.serve(space, GATED)
    space.patch("ModelDeployment", "serve", OTHER_MODEL)
    served.wait_told(space, "Reconciling", "EvalRunNotFinished")
    served.judge(space, "second", "pvc://models/other", OTHER_DIGEST)
    new = served.wait_revision(space, "Candidate")
    served.answer_requests(space, new)
    space.wait(lambda: served.selected(space) == new, "the Service to be switched")
    revisions: list[Any] = served.status(space)["revisions"]
    assert {(entry["state"], entry["digest"], entry["verdict"]) for entry in revisions} == {
        ("Active", OTHER_DIGEST, "Passed"),
        ("Draining", DIGEST, "Passed"),
    }


def test_the_scale_subresource_reaches_the_pods(operator: OperatorProcess, space: Namespace) -> None:
    name = served.serve(space, SPEC)
    scale = space.patch("ModelDeployment", "serve", {"spec": {"replicas": 2}}, "scale").body
    assert scale["status"]["selector"].endswith(f"{LABEL_REVISION}={name}")
    space.wait(lambda: len(served.pods(space, name)) == 2, "the second pod")


LOST: dict[str, Object] = {
    "its record": {"annotations": {ANNOTATION: None}},
    "the label that it is watched by": {"labels": dict.fromkeys(MANAGED_BY)},
}


@pytest.fixture
def settings(operator: OperatorProcess) -> Iterator[dict[str, str]]:
    """The operator's environment, as it was again when the test is over."""
    before = dict(operator.environment)
    yield operator.environment
    operator.stop()
    operator.environment = before


@pytest.mark.parametrize("lost", LOST)
def test_what_a_deployment_lost_is_given_back_by_the_next_operator_and_no_pod_restarts(
    operator: OperatorProcess, space: Namespace, settings: dict[str, str], lost: str
) -> None:
    name = served.serve(space, SPEC)
    operator.stop()
    (before,), pods = space.all("Deployment"), served.pods(space, name)
    space.patch("Deployment", before["metadata"]["name"], {"metadata": LOST[lost]})
    settings["TUNESMITH_IMAGE_PULL_POLICY"] = "Always"
    operator.start()

    def marks(obj: Object) -> Object:
        return {name: obj["metadata"][name].keys() for name in ("labels", "annotations")}

    space.wait(lambda: marks(space.all("Deployment")[0]) == marks(before), "what was lost to be back", lambda: space.all("Deployment"))
    operator.wait_resyncs(2)
    assert space.all("Deployment")[0]["spec"]["template"] == before["spec"]["template"]
    assert [pod["metadata"]["uid"] for pod in served.pods(space, name)] == [pod["metadata"]["uid"] for pod in pods]


def test_a_deployment_that_loses_both_annotations_takes_up_the_present_settings(
    operator: OperatorProcess, space: Namespace, settings: dict[str, str]
) -> None:
    served.serve(space, SPEC)
    operator.stop()
    settings["TUNESMITH_IMAGE_PULL_POLICY"] = "Always"
    operator.start()
    operator.wait_resyncs(1)
    (deployment,) = space.all("Deployment")

    def policy() -> Any:
        return space.all("Deployment")[0]["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"]

    assert policy() == "IfNotPresent"
    space.patch("Deployment", deployment["metadata"]["name"], {"metadata": {"annotations": {ANNOTATION: None, drift.ANNOTATION: None}}})
    space.wait(lambda: policy() == "Always", "it to be rendered anew")


def test_a_deployment_that_serves_is_written_no_more(operator: OperatorProcess, space: Namespace, control_plane: ControlPlane) -> None:
    served.serve(space, SPEC)
    operator.wait_resyncs(2)
    writes = Writes(control_plane, space.name)
    operator.wait_resyncs(3)
    assert writes.seen() == []
