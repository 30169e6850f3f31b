"""The one ModelDeployment `serve` of a namespace, its revisions, and the part of the kubelet of its pods."""

from __future__ import annotations

import json
from typing import Any

from dev.bench.life import COMPARED
from tests.integration.operators import EVAL_RUN, Namespace
from tunesmith.api.conditions import find
from tunesmith.core.objects import Object
from tunesmith.modeldeployment.revision import LABEL_REVISION

NAME = "serve"


def status(space: Namespace) -> Object:
    """Its status."""
    return space.status("ModelDeployment", NAME)


def revision(space: Namespace, state: str) -> str:
    """Name of the revision in that state; empty if there is none."""
    return next((entry["name"] for entry in status(space).get("revisions", ()) if entry["state"] == state), "")


def wait_revision(space: Namespace, state: str) -> str:
    """Wait for a revision in that state."""
    space.wait(lambda: revision(space, state), f"a revision to be {state}", lambda: status(space))
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


def fail_to_start(space: Namespace, name: str, restarts: int, **ended: Any) -> None:
    """Say that the container of the revision's pod has ended and waits to be started again."""
    container = {"name": "stage", "ready": False, "restartCount": restarts, "image": "", "imageID": ""}
    states = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"reason": "Error", **ended}}}
    state = {"phase": "Running", "containerStatuses": [{**container, **states}]}
    space.patch("Pod", wait_pod(space, name)["metadata"]["name"], {"status": state}, "status")


def refusal(reason: str, code: int, message: str) -> str:
    """What a serving pod tells when it gives up."""
    times = {"startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:00:01Z"}
    told = {"schemaVersion": 2, "stage": "Serve", "outcome": "Failed", **times, "exitCode": code, "reason": reason, "message": message}
    return json.dumps(told)


def serve(space: Namespace, spec: Object) -> str:
    """Have a first revision serve."""
    space.create("ModelDeployment", NAME, spec)
    answer_requests(space, wait_revision(space, "Candidate"))
    space.wait_condition("ModelDeployment", NAME, "Ready")
    return wait_revision(space, "Active")


def selected(space: Namespace) -> str:
    """The revision that the Service selects."""
    service = space.get("Service", NAME)
    return str(service["spec"]["selector"][LABEL_REVISION]) if service else ""


def told(space: Namespace, condition: str) -> tuple[str, str]:
    """Status and reason of a condition."""
    found = find(status(space), condition) or {"status": "", "reason": ""}
    return found["status"], found["reason"]


def message(space: Namespace, condition: str) -> str:
    """Message of a condition."""
    return str((find(status(space), condition) or {"message": ""})["message"])


def wait_told(space: Namespace, condition: str, reason: str) -> None:
    """Wait until the condition is True for that reason."""
    space.wait(lambda: told(space, condition) == ("True", reason), f"{condition} to be True for {reason}", lambda: status(space))


def judge(space: Namespace, name: str, uri: str, digest: str, verdict: str = "Passed") -> None:
    """An EvalRun of a plain path, with its end."""
    made = space.create("EvalRun", name, {**EVAL_RUN, "model": {"uri": uri}, "output": {"uri": "pvc://models/out"}})
    result = {"model": {"name": "tested", "uri": uri, "digest": digest}, "resultURI": f"{uri}/evaluate.json"}
    space.play(made, "Evaluate", result, part="tested")
    space.play(made, "Compare", {**COMPARED, "verdict": verdict, "gate": [{"outcome": verdict, "value": "123.5"}]})
    space.wait_condition("EvalRun", name, "Finished")
