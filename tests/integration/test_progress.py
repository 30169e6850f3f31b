"""The progress endpoint: who may report, and what becomes of a report. Tokens are real ones of the API server."""

from __future__ import annotations

import json
import socket
import ssl
import urllib.error
import urllib.request
from contextlib import ExitStack
from typing import Any

import pytest

from tests.integration.operators import FINE_TUNE_JOB, RESULTS, Namespace, OperatorProcess, answer, settle
from tunesmith.core.objects import LABEL_UID, MANAGED_BY, Object
from tunesmith.servers.listener import CONNECTIONS
from tunesmith.workload.podspec import progress_path

REPORT = {
    "trainerStatus": {
        "progressPercentage": 40,
        "estimatedRemainingSeconds": 60,
        "metrics": [{"name": "loss", "value": "1.25"}],
        "lastUpdatedTime": "2026-01-01T00:00:00Z",
    }
}


def token(space: Namespace, pod: Object | None, audience: str = "tunesmith.dev") -> str:
    """A ServiceAccount token, bound to `pod` as the kubelet asks for it."""
    spec: Object = {"audiences": [audience], "expirationSeconds": 600}
    if pod:
        spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    answer = space.api.send("POST", f"/api/v1/namespaces/{space.name}/serviceaccounts/default/token", body)
    assert answer.code == 201, answer.body
    issued: str = answer.body["status"]["token"]
    return issued


def post(operator: OperatorProcess, tune: Object, bearer: str | None, body: Any = REPORT) -> int:
    """Report as a training pod does; return the status code, 0 if there is no answer."""
    context = ssl.create_default_context(cafile=str(operator.ca))
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {bearer}"} if bearer else {})
    request = urllib.request.Request(f"https://localhost:{operator.progress}{progress_path(tune)}", data, headers, method="POST")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code
    except (urllib.error.URLError, OSError):
        return 0


@pytest.fixture
def training(operator: OperatorProcess, space: Namespace, unscheduled: None) -> tuple[Object, Object]:
    """A FineTuneJob in training, and the pod that trains, as the operator has seen."""
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    space.play(tune, "Prepare", RESULTS["Prepare"])
    (pod,) = space.wait_pods(tune, "Train")
    space.run_pod(pod)
    space.wait_running(tune, "Train")
    return tune, pod


def test_a_report_of_the_training_pod_reaches_the_status(operator: OperatorProcess, space: Namespace, training: tuple[Object, Object]) -> None:
    tune, pod = training
    assert post(operator, tune, token(space, pod)) == 200
    space.wait(lambda: "progress" in space.status("FineTuneJob", "tune"), "the progress", lambda: space.status("FineTuneJob", "tune"))
    progress = space.status("FineTuneJob", "tune")["progress"]
    assert (progress["progressPercentage"], progress["metrics"]) == (40, [{"name": "loss", "value": "1.25"}])


def test_who_is_not_a_pod_of_that_job_is_refused(operator: OperatorProcess, space: Namespace, training: tuple[Object, Object]) -> None:
    tune, pod = training
    other = space.create("FineTuneJob", "other", FINE_TUNE_JOB)
    (stranger,) = space.wait_pods(other, "Prepare")
    labels = MANAGED_BY | {LABEL_UID: tune["metadata"]["uid"]}
    container = {"name": "c", "image": "i"}
    forged = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "forged", "labels": labels}, "spec": {"containers": [container]}}
    assert space.api.send("POST", space.path("Pod"), forged).code == 201
    refusals = {
        "no token": post(operator, tune, None),
        "a made-up token": post(operator, tune, "wrong"),
        "a token for another audience": post(operator, tune, token(space, pod, "elsewhere")),
        "a token of no pod": post(operator, tune, token(space, None)),
        "a token of another job's pod": post(operator, tune, token(space, stranger)),
        "a token of a pod that took on the job's label": post(operator, tune, token(space, space.get("Pod", "forged"))),
        "a job that is not there": post(operator, {**tune, "metadata": {**tune["metadata"], "name": "none"}}, token(space, pod)),
    }
    assert list(refusals.values()) == [401, 401, 401, 401, 403, 403, 403], refusals
    assert settle(1, lambda: "progress" not in space.status("FineTuneJob", "tune"))


def test_a_report_that_is_too_long_or_no_report_is_refused(operator: OperatorProcess, space: Namespace, training: tuple[Object, Object]) -> None:
    tune, pod = training
    bearer = token(space, pod)
    assert post(operator, tune, bearer, b" " * (64 * 1024 + 1)) == 413
    assert post(operator, tune, bearer, b"{") == 400
    assert post(operator, tune, bearer, {"trainerStatus": {"progressPercentage": 101}}) == 400
    assert post(operator, tune, bearer, {"trainerStatus": {"metrics": [{"name": "loss", "value": "x" * 65}]}}) == 400


def test_a_pod_that_is_gone_reports_no_more(operator: OperatorProcess, space: Namespace, training: tuple[Object, Object]) -> None:
    """The token's review is still remembered, the pod is not there."""
    tune, pod = training
    bearer = token(space, pod)
    assert post(operator, tune, bearer) == 200
    space.patch("FineTuneJob", "tune", {"spec": {"suspend": True}})
    space.wait(lambda: space.get("Pod", pod["metadata"]["name"]) is None, "the pod to be gone")
    space.wait(lambda: post(operator, tune, bearer) == 403, "the report to be refused")


def test_a_pod_that_has_ended_reports_no_more(operator: OperatorProcess, space: Namespace, training: tuple[Object, Object]) -> None:
    tune, pod = training
    bearer = token(space, pod)
    assert post(operator, tune, bearer) == 200
    space.end_pod(pod, answer("Train", 1, RESULTS["Train"]))
    space.wait(lambda: post(operator, tune, bearer) == 403, "the report to be refused")


def test_clients_that_say_nothing_keep_others_out_for_seconds_at_most(
    operator: OperatorProcess, space: Namespace, training: tuple[Object, Object]
) -> None:
    tune, pod = training
    bearer = token(space, pod)
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(("127.0.0.1", operator.progress), timeout=10)) for _ in range(2 * CONNECTIONS)]
        space.wait(lambda: post(operator, tune, bearer) == 200, "the report to be taken")
        assert not [each for each in held if each.recv(1)]
