"""Kueue's manners on a real API server, with the test in Kueue's part. A control plane of its own: in the shared one there is no Kueue."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.cluster.controlplane import ControlPlane
from tests.integration import kueue, rights
from tests.integration.kueue import Queued
from tests.integration.operators import FINE_TUNE_JOB, RESULTS, Namespace, OperatorProcess, Writes, answer
from tests.integration.schema_server import Server
from tunesmith.api.conditions import find
from tunesmith.core.objects import Object

QUEUED = {**FINE_TUNE_JOB, "scheduling": {"queueName": "gpus", "cpuQueueName": "cpus", "workloadPriorityClassName": "batch"}}
SAVED = {"outcome": "Interrupted", "exitCode": 75, "reason": "Interrupted", "message": "saved", "globalStep": 2}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    # Pods are bound to a node that is not there; after a while that would be noticed.
    flags = ("--controllers=*,-pod-garbage-collector-controller",)
    with ControlPlane(tmp_path_factory.mktemp("kueue"), controller_manager_flags=flags) as running:
        yield running


@pytest.fixture(scope="module")
def server(cluster: ControlPlane) -> Server:
    return Server.with_kinds(cluster)


@pytest.fixture
def tenant(server: Server, request: pytest.FixtureRequest) -> Namespace:
    """A namespace of the test's own with a claim `models`."""
    name = f"team-{abs(hash(request.node.name)) % 10**8}"
    assert server.send("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}).code == 201
    made = Namespace(server, name)
    made.claim("models")
    return made


@pytest.fixture
def starting(cluster: ControlPlane, tmp_path: Path) -> Iterator[OperatorProcess]:
    process = OperatorProcess(cluster, tmp_path)
    yield process
    process.kill()


def reason(space: Namespace) -> str:
    """Why the FineTuneJob does not go on, or what it does."""
    return str((find(space.status("FineTuneJob", "tune"), "Reconciling") or {}).get("reason"))


def queue(space: Namespace, stage: str) -> Object:
    """Where a stage's attempt stands in its queue."""
    entries = space.status("FineTuneJob", "tune").get("stages", ())
    found: Object = next((entry.get("queue", {}) for entry in entries if entry["name"] == stage), {})
    return found


def job_of(space: Namespace, stage: str) -> str:
    """Name of the stage's one Job, once it is there."""

    def named() -> list[str]:
        return [job["metadata"]["name"] for job in space.all("Job") if job["metadata"]["labels"]["tunesmith.dev/stage"] == stage]

    space.wait(named, f"the Job of {stage}", lambda: space.status("FineTuneJob", "tune"))
    (name,) = named()
    return name


def bind(space: Namespace, pod: Object) -> None:
    """Bind the pod to a node and let it run: from now on only its kubelet's word ends it."""
    name = pod["metadata"]["name"]
    body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"apiVersion": "v1", "kind": "Node", "name": "n1"}}
    assert space.api.send("POST", space.path("Pod", name, "binding"), body).code == 201
    space.run_pod(pod)


def test_an_operator_that_finds_kueue_installed_later_ends_once_and_then_watches_it(
    server: Server, tenant: Namespace, starting: OperatorProcess
) -> None:
    starting.start()
    tenant.create("FineTuneJob", "tune", QUEUED)
    prepare = Queued(tenant, job_of(tenant, "Prepare"))
    tenant.wait(lambda: reason(tenant) == "Queued", "the wait to be told")
    assert queue(tenant, "Prepare") == {"name": "cpus"}
    kueue.install(server)
    tenant.wait(lambda: not starting.running, "the operator to end by itself")
    assert starting.stop() == 0
    starting.start()
    prepare.enqueue("Inadmissible", "LocalQueue cpus doesn't exist")
    tenant.wait(lambda: reason(tenant) == "QueueInadmissible", "the inadmissible queue to be told", lambda: tenant.status("FineTuneJob", "tune"))
    starting.wait_resyncs(3)
    assert starting.running
    told = queue(tenant, "Prepare")
    assert (told["workload"], told["quotaReserved"], told["reason"]) == (prepare.workload, False, "Inadmissible")
    assert "doesn't exist" in told["message"]


def test_admitted_evicted_and_admitted_again_elsewhere_it_is_one_attempt_of_one_job(
    cluster: ControlPlane, server: Server, tenant: Namespace, starting: OperatorProcess
) -> None:
    kueue.install(server)
    starting.start()
    tune = tenant.create("FineTuneJob", "tune", QUEUED)
    prepare = Queued(tenant, job_of(tenant, "Prepare"))
    prepare.enqueue("Pending", "1 more needed")
    prepare.admit("cpu-nodes")
    tenant.play(tune, "Prepare", RESULTS["Prepare"])
    train = Queued(tenant, job_of(tenant, "Train"))
    train.enqueue("Pending", "8 more needed")
    tenant.wait(
        lambda: queue(tenant, "Train").get("message") == "8 more needed", "the queue to be told", lambda: tenant.status("FineTuneJob", "tune")
    )
    assert tenant.stage_pods(tune, "Train", 1) == []
    writes = Writes(cluster, tenant.name)
    train.admit("spot")
    (pod,) = tenant.wait_pods(tune, "Train")
    assert pod["spec"]["nodeSelector"] == {"flavor": "spot"}
    bind(tenant, pod)
    tenant.wait(lambda: queue(tenant, "Train").get("admitted"), "the admission to be told", lambda: tenant.status("FineTuneJob", "tune"))

    train.evict()
    tenant.wait(lambda: reason(tenant) == "Ending", "the pods to be ending", lambda: tenant.status("FineTuneJob", "tune"))
    (pod,) = tenant.stage_pods(tune, "Train", 1)
    tenant.end_pod(pod, answer("Train", 1, SAVED), 75)
    tenant.remove_pod(pod)
    tenant.wait(lambda: queue(tenant, "Train").get("evicted"), "the eviction to be told", lambda: tenant.status("FineTuneJob", "tune"))
    assert reason(tenant) == "Queued"
    # The operator may die meanwhile: what it knows is on record.
    starting.kill()
    starting.start()

    train.admit("on-demand")
    tenant.wait(lambda: tenant.stage_pods(tune, "Train", 1), "pods elsewhere")
    (pod,) = tenant.stage_pods(tune, "Train", 1)
    assert pod["spec"]["nodeSelector"] == {"flavor": "on-demand"}
    assert train.template()["spec"]["nodeSelector"] == {"flavor": "on-demand"}
    bind(tenant, pod)
    tenant.wait(lambda: queue(tenant, "Train").get("evicted") is False, "the second admission to be told")
    tenant.end_pod(pod, answer("Train", 1, RESULTS["Train"]))
    finalize = Queued(tenant, job_of(tenant, "Finalize"))
    finalize.enqueue("Pending", "1 more needed")
    finalize.admit("cpu-nodes")
    tenant.play(tune, "Finalize", RESULTS["Finalize"])
    status = tenant.wait_condition("FineTuneJob", "tune", "Finished")
    assert [(entry["stage"], entry["attempt"], entry["outcome"]) for entry in status["attempts"]] == [
        ("Prepare", 1, "Succeeded"),
        ("Train", 1, "Succeeded"),
        ("Finalize", 1, "Succeeded"),
    ]
    assert status.get("retriesSpent", 0) == 0
    jobs = [line for line in writes.seen() if "/jobs" in line]
    assert kueue.RIGHTS <= rights.used(cluster.audit_log)
    assert [line.split()[0] for line in jobs] == ["create"], f"the operator wrote to a Job that is Kueue's: {jobs}"
