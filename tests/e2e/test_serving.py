"""Real vLLM under load: what a change, a failure and the loss of a pod or a node cost the clients.

make rollouts
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import pytest

from dev.cluster import tools
from dev.cluster.cluster import Cluster
from dev.cluster.processes import wait_until
from dev.demo import follow
from dev.demo.kube import Kube, ours
from dev.demo.stack import Stack, install_chart
from tests.e2e.conftest import say
from tests.e2e.rolling import (
    ROLLOUT,
    Rolling,
    deployment,
    evaluation,
    expect_lost_there_only,
    expect_no_failure,
    load_other_serving_image,
    told,
    unreachable_seconds,
    upload_models,
)

pytestmark = pytest.mark.long

HELD, STOPPED = 1, 2
"""Numbers of the nodes: the driver's, and the one that is stopped."""
KILLED_SECONDS, STOPPED_SECONDS = 5.0, 60.0
"""For so long a new connection may still be sent to a pod that was killed, and to one of a node that has stopped: until the node's lease is
too old. (A client that tries again reaches the other pod.)"""


@pytest.fixture(scope="module")
def rolling(stack: Stack, kube: Kube) -> Iterator[Rolling]:
    """A judged tiny model that serves, and a driver that sends requests to it all the time."""
    if not stack.ours:
        pytest.skip("KUBECONFIG names a cluster that is not the development cluster, whose nodes and images a test may change")
    upload_models(kube)
    runs = {"tiny-one": evaluation("one", "1e9"), "tiny-two": evaluation("two", "1e9"), "tiny-bad": evaluation("two", "1")}
    for name, spec in runs.items():
        kube.apply(ours("EvalRun", name, spec))
    made = Rolling(kube)
    made.apply(deployment("one"))
    for name in runs:
        kube.run("wait", f"evalrun/{name}", "--for=condition=Finished", "--timeout=400s")
    made.settle()
    made.start_driver(stack.images.trainer, f"n{HELD}")
    yield made
    kube.run("delete", "modeldeployment/rolling", "pod/driver", "configmap/driver", *(f"evalrun/{name}" for name in runs), "--ignore-not-found")
    kube.run("wait", "pods", "--selector=tunesmith.dev/name=rolling", "--for=delete", "--timeout=180s")


def served_model(rolling: Rolling) -> str:
    """`one` or `two`."""
    uri: str = rolling.served["model"]["uri"]
    return uri.rpartition("/")[2]


@pytest.fixture
def one(rolling: Rolling) -> Rolling:
    """One pod serves, whatever the test before has left."""
    rolling.apply(rolling.served | {"replicas": 1})
    rolling.settle()
    return rolling


def test_another_image_changes_nothing_until_the_settings_change_and_neither_fails_a_request(stack: Stack, one: Rolling) -> None:
    before = one.get()["status"]["revisions"]
    uids = [pod["metadata"]["uid"] for pod in one.pods()]
    length = 448 - one.served["engine"]["vllm"]["maxModelLen"]
    image = load_other_serving_image()
    helm = str(tools.binary("helm"))
    try:
        with one.watched() as got:
            install_chart(helm, stack.kube.kubeconfig, dataclasses.replace(stack.images, serving=image))
            assert one.get()["status"]["revisions"] == before
            one.apply(deployment(served_model(one), length))
            (new,) = one.settle()["status"]["revisions"]
            assert uids != [pod["metadata"]["uid"] for pod in one.pods()]
        expect_no_failure(got)
        assert (new["image"], new["inputs"]["engine"]["vllm"]["maxModelLen"]) == (image, length)
    finally:
        install_chart(helm, stack.kube.kubeconfig, stack.images)


def test_other_settings_alone_fail_no_request(one: Rolling) -> None:
    length = 448 - one.served["engine"]["vllm"]["maxModelLen"]
    before = set(one.revisions())
    with one.watched() as got:
        one.apply(deployment(served_model(one), length))
        (new,) = one.settle()["status"]["revisions"]
    expect_no_failure(got)
    assert new["name"] not in before
    assert new["inputs"]["engine"]["vllm"]["maxModelLen"] == length


def test_another_model_whose_gate_passed_fails_no_request(one: Rolling) -> None:
    other = {"one": "two", "two": "one"}[served_model(one)]
    with one.watched() as got:
        one.apply(deployment(other))
        (new,) = one.settle()["status"]["revisions"]
    expect_no_failure(got)
    assert (new["uri"], new["evalRuns"], new["verdict"]) == (f"pvc://datasets/tiny/{other}", [f"tiny-{other}"], "Passed")


def test_neither_more_nor_fewer_replicas_fail_a_request(one: Rolling) -> None:
    (before,) = one.revisions()
    with one.watched() as got:
        one.apply(one.served | {"replicas": 2})
        one.settle(2)
        assert len({pod["spec"]["nodeName"] for pod in one.pods()}) == 2
        one.apply(one.served | {"replicas": 1})
        one.settle(1)
    expect_no_failure(got)
    assert list(one.revisions()) == [before]


def test_what_cannot_be_served_leaves_the_old_revision_serving_and_says_so(one: Rolling) -> None:
    (old,) = one.revisions()
    ungated = {name: {key: value for key, value in deployment(name).items() if key != "gate"} for name in ("broken", "changed", "two")}
    cases = {
        "GateFailed": deployment("two") | {"gate": {"evalRunRefs": [{"name": "tiny-bad"}]}},
        "DigestMismatch": ungated["changed"],
        "InvalidModel": ungated["broken"],
        "EngineFailed": ungated["two"] | {"engine": {"vllm": {"maxModelLen": 100_000}}},
        "OutOfMemory": deployment("two") | {"resources": {"cpu": "200m", "memory": "400Mi"}},
    }
    with one.watched() as got:
        for reason, spec in cases.items():
            one.apply(spec)
            wait_until(lambda reason=reason: follow.condition(one.get(), "Stalled").get("reason") == reason, f"Stalled for {reason}", ROLLOUT, 1)  # type: ignore[misc]
            thing = one.get()
            assert follow.is_true(thing, "Stalled") and follow.is_true(thing, "Ready")
            for kind in ("Ready", "Stalled"):
                assert f"revision {old} serves" in follow.condition(thing, kind)["message"]
            assert one.revisions()[old] == "Active"
            assert reason != "DigestMismatch" or "generation_config.json" in follow.condition(thing, "Stalled")["message"]
    expect_no_failure(got)


@pytest.fixture
def two(one: Rolling) -> Rolling:
    """Two pods on two nodes."""
    one.apply(one.served | {"replicas": 2})
    one.settle(2)
    assert len({pod["spec"]["nodeName"] for pod in one.pods()}) == 2
    return one


def test_a_killed_pod_costs_no_more_than_the_requests_in_flight_there(two: Rolling) -> None:
    pod = two.pods()[0]["metadata"]["name"]
    with two.watched() as got:
        two.kube.run("delete", "pod", pod, "--grace-period=0", "--force")
        killed = time.time()
        two.settle(2)
    say(f"a killed pod: {told(got)}")
    expect_lost_there_only(got, killed + KILLED_SECONDS)
    assert unreachable_seconds(got) <= KILLED_SECONDS, got["unconnected"]
    assert got["answered"] > 20


def test_a_stopped_node_costs_no_more_than_the_requests_in_flight_there_and_its_pod_is_replaced(two: Rolling) -> None:
    cluster = Cluster()
    with two.watched() as got:
        cluster.stop_node(STOPPED, print)
        stopped = time.time()
        try:
            wait_until(lambda: len(on_node(two, HELD)) == 2, "a second pod on the other node", 150, 1)
            two.kube.run("wait", *(f"pod/{name}" for name in on_node(two, HELD)), "--for=condition=Ready", "--timeout=180s")
            assert follow.is_true(two.get(), "Ready")
        finally:
            cluster.start_node(STOPPED, print)
        two.settle(2)
    say(f"a stopped node: {told(got)}")
    expect_lost_there_only(got, stopped)
    assert unreachable_seconds(got) <= STOPPED_SECONDS, got["unconnected"]
    assert got["answered"] > 20


def on_node(rolling: Rolling, number: int) -> list[str]:
    """Names of the pods on a node that are not on their way out."""
    return [
        pod["metadata"]["name"]
        for pod in rolling.pods()
        if pod["spec"].get("nodeName") == f"n{number}" and "deletionTimestamp" not in pod["metadata"]
    ]
