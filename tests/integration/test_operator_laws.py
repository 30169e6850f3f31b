"""The promises of docs/DESIGN.md section 2, kept by the operator as a process on a real API server."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from dev.bench.life import CHILDREN, COMPARED, OURS
from dev.cluster.controlplane import ControlPlane
from tests.integration.operators import (
    EVAL_RUN,
    EVALUATED,
    FINE_TUNE_JOB,
    MODEL_DEPLOYMENT,
    RESULTS,
    Namespace,
    OperatorProcess,
    Writes,
    play_all,
    settle,
)
from tests.integration.schema_server import Server
from tunesmith.core.objects import Object
from tunesmith.workload.podspec import ANNOTATIONS, STAGE_FILE


def play_chain(space: Namespace, tune: Object, judge: Object, serve: Object) -> None:
    """Let the whole chain succeed, the Deployment's readiness included."""
    play_all(space, tune)
    space.play(judge, "Evaluate", EVALUATED, part="tested")
    space.play(judge, "Compare", COMPARED)
    space.wait(lambda: space.all("Deployment"), "the Deployment", lambda: space.status("ModelDeployment", "serve"))
    (deployment,) = space.all("Deployment")
    generation = deployment["metadata"]["generation"]
    ready = {"observedGeneration": generation, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1}
    conditions = [{"type": "Available", "status": "True", "reason": "Test", "message": ""}]
    space.patch("Deployment", deployment["metadata"]["name"], {"status": {**ready, "conditions": conditions}}, "status")


def test_the_chain_runs_to_its_end_and_then_nothing_is_written(operator: OperatorProcess, space: Namespace, control_plane: ControlPlane) -> None:
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    play_all(space, tune)
    status = space.wait_condition("FineTuneJob", "tune", "Finished")
    assert status["stage"] == "Succeeded"
    # Events come after the status that they tell of.
    operator.wait_resyncs(2)
    writes = Writes(control_plane, space.name)
    operator.wait_resyncs(3)
    assert writes.seen() == []
    (found,) = space.all("FineTuneJob")
    assert found["metadata"].keys().isdisjoint({"annotations", "finalizers"})


SPECS = {"FineTuneJob": ("tune", FINE_TUNE_JOB), "EvalRun": ("judge", EVAL_RUN), "ModelDeployment": ("serve", MODEL_DEPLOYMENT)}


def test_objects_may_be_applied_in_any_order(operator: OperatorProcess, api: Server, new_namespace: Callable[[], str]) -> None:
    def apply_and_play(order: tuple[str, ...]) -> None:
        space = Namespace(api, new_namespace())
        space.claim("models")
        made = {kind: space.create(kind, *SPECS[kind]) for kind in order}
        play_chain(space, made["FineTuneJob"], made["EvalRun"], made["ModelDeployment"])
        assert space.wait_condition("EvalRun", "judge", "Ready")["verdict"] == "Passed"
        space.wait_condition("ModelDeployment", "serve", "GatePassed")

    # At the same time: all that takes time is the Job controller, which answers each of them after a second.
    orders = list(itertools.permutations(SPECS))
    with ThreadPoolExecutor(len(orders)) as threads:
        runs = {order: threads.submit(apply_and_play, order) for order in orders}
    failed = {" ".join(order): repr(run.exception()) for order, run in runs.items() if run.exception()}
    assert not failed


@pytest.mark.parametrize("up", [True, False], ids=["with the operator up", "with the operator down"])
def test_deleting_the_objects_removes_their_children(operator: OperatorProcess, space: Namespace, up: bool) -> None:
    made = {kind: space.create(kind, *spec) for kind, spec in SPECS.items()}
    play_chain(space, made["FineTuneJob"], made["EvalRun"], made["ModelDeployment"])
    space.wait_condition("ModelDeployment", "serve", "GatePassed")
    if not up:
        operator.stop()
    for kind, (name, _) in SPECS.items():
        space.delete(kind, name)
    space.wait(lambda: not space.names(*OURS, *CHILDREN), "all to be gone", lambda: sorted(space.names(*OURS, *CHILDREN)))


def test_a_finished_stage_never_runs_again_even_if_its_job_is_deleted(operator: OperatorProcess, space: Namespace) -> None:
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    space.play(tune, "Prepare", RESULTS["Prepare"])
    space.wait_pods(tune, "Train")
    for job in space.all("Job"):
        if "-prepare-" in job["metadata"]["name"]:
            space.delete("Job", job["metadata"]["name"])
    operator.kill()
    operator.start()
    space.play(tune, "Train", RESULTS["Train"])
    space.play(tune, "Finalize", RESULTS["Finalize"])
    status = space.wait_condition("FineTuneJob", "tune", "Finished")
    assert [(entry["stage"], entry["attempt"]) for entry in status["attempts"]] == [("Prepare", 1), ("Train", 1), ("Finalize", 1)]
    for job in space.all("Job"):
        space.delete("Job", job["metadata"]["name"])
    operator.wait_resyncs(2)
    assert space.all("Job") == []


def test_a_job_deleted_by_hand_leads_to_the_next_attempt_once_its_pods_are_gone(operator: OperatorProcess, space: Namespace) -> None:
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    (pod,) = space.wait_pods(tune, "Prepare")
    space.run_pod(pod)
    (job,) = space.all("Job")
    space.delete("Job", job["metadata"]["name"])
    space.wait_pods(tune, "Prepare", attempt=2)
    assert space.status("FineTuneJob", "tune").get("retriesSpent", 0) == 0


def test_what_is_edited_by_hand_is_put_back(operator: OperatorProcess, space: Namespace) -> None:
    space.create("ModelDeployment", "serve", {"model": {"uri": "pvc://models/base"}})
    kinds = ("Deployment", "NetworkPolicy")
    space.wait(lambda: space.get("Service", "serve") and all(map(space.all, kinds)), "its children", lambda: space.status("ModelDeployment", "serve"))
    (deployment,) = space.all("Deployment")
    (policy,) = space.all("NetworkPolicy")
    space.patch("Service", "serve", {"spec": {"selector": {"app": "mine"}}})
    space.patch("Deployment", deployment["metadata"]["name"], {"spec": {"template": {"spec": {"automountServiceAccountToken": True}}}})
    space.patch("Deployment", deployment["metadata"]["name"], {"spec": {"template": {"metadata": {"annotations": {ANNOTATIONS[STAGE_FILE]: "{}"}}}}})
    space.patch("NetworkPolicy", policy["metadata"]["name"], {"spec": {"ingress": [*policy["spec"]["ingress"], {}]}})

    def restored() -> bool:
        service, edited = space.get("Service", "serve"), space.get("Deployment", deployment["metadata"]["name"])
        assert service and edited
        return (
            "app" not in service["spec"]["selector"]
            and edited["spec"]["template"] == deployment["spec"]["template"]
            and (space.get("NetworkPolicy", policy["metadata"]["name"]) or {}).get("spec") == policy["spec"]
        )

    space.wait(restored, "the edits to be put back")


def test_a_deleted_child_of_a_deployment_comes_back(operator: OperatorProcess, space: Namespace) -> None:
    space.create("ModelDeployment", "serve", {"model": {"uri": "pvc://models/base"}})
    space.wait(lambda: space.get("Service", "serve"), "the Service")
    kinds = ("Service", "Deployment", "NetworkPolicy")
    before = space.names(*kinds)
    assert {name.split("/")[0] for name in before} == set(kinds)
    for item in space.all(*kinds):
        space.delete(item["kind"], item["metadata"]["name"])
    space.wait(lambda: space.names(*kinds) == before, "all to be back")


def test_policies_go_when_the_charts_admin_does_without_them(operator: OperatorProcess, space: Namespace) -> None:
    space.create("ModelDeployment", "serve", {"model": {"uri": "pvc://models/base"}})
    space.wait(lambda: space.all("NetworkPolicy"), "the policy")
    operator.stop()
    operator.environment["TUNESMITH_NETWORK_POLICIES"] = "false"
    try:
        operator.start()
        space.wait(lambda: not space.all("NetworkPolicy"), "the policy to go")
        assert space.all("Deployment")
    finally:
        operator.stop()
        del operator.environment["TUNESMITH_NETWORK_POLICIES"]


def test_a_service_of_the_users_own_is_not_taken_over(operator: OperatorProcess, space: Namespace) -> None:
    body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "serve"}, "spec": {"ports": [{"port": 9}], "selector": {"app": "mine"}}}
    assert space.api.send("POST", space.path("Service"), body).code == 201
    space.create("ModelDeployment", "serve", {"model": {"uri": "pvc://models/base"}})
    space.wait(lambda: space.all("Deployment"), "the Deployment")
    assert settle(2, lambda: (space.get("Service", "serve") or {})["spec"]["selector"] == {"app": "mine"})
    # Nor does it keep a candidate that is given up, and its GPUs.
    before = space.names("Deployment")
    space.patch("ModelDeployment", "serve", {"spec": {"engine": {"vllm": {"maxModelLen": 4096}}}})
    space.wait(lambda: (now := space.names("Deployment")) and not now & before, "the next candidate alone to be there")


def test_of_two_operators_the_second_is_not_ready_until_the_first_has_ended(
    operator: OperatorProcess, space: Namespace, control_plane: ControlPlane
) -> None:
    second = OperatorProcess(control_plane, operator.log.parent, "second")
    second.start(ready=False)
    try:
        space.wait(lambda: second.probe("/healthz") == 200, "the second to live")
        assert settle(1, lambda: second.probe("/readyz") == 503)
        operator.stop()
        space.wait(second.is_ready, "the second to lead")
        tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
        space.wait_pods(tune, "Prepare")
    finally:
        second.stop()
