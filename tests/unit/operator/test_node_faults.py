"""Faults of devices and nodes: what they cost, which nodes the next attempt avoids, and when they are no node's fault after all."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.operator import evalruns
from tests.unit.operator.finetunejobs import TWO_NODES, Life, avoided, last, placed, trained
from tests.unit.operator.makers import checkpoint, refusal
from tests.unit.operator.test_failures import NO_CDI, NO_CGROUP, PEER, SAVED, ended, over, rejected, told
from tunesmith.api.conditions import timestamp
from tunesmith.core.objects import Object
from tunesmith.stages.repeats import PATIENCE, STANDSTILL

GPUS: Object = {"gpus": 4, "memory": "64Gi"}


def again(life: Life, *nodes: str) -> Life:
    """The pause is over, and the next attempt runs on these nodes."""
    life.later(300).step()
    life.run("Train")
    placed(life, *nodes).step()
    return life


def named(status: Object) -> str:
    """What a pod's status is called in a test's name."""
    states = [container["state"]["terminated"] for container in status.get("containerStatuses", ())]
    text = [state.get("message", "") for state in states]
    told_as = [json.loads(each)["reason"] for each in text if each.startswith("{")]
    return str((told_as or [state["reason"] for state in states] or [status["reason"] or "preempted"])[0])


FAULTY = [
    told(69, "DeviceUnavailable"),
    told(69, "DeviceFailed", fingerprint="a" * 12, step=7),
    told(69, "CommunicationFailed"),
    ended(128, why="StartError", message=NO_CDI),
    ended(128, why="StartError", message=NO_CGROUP),
    rejected("UnexpectedAdmissionError"),
    rejected("TopologyAffinityError", message="Pod was rejected: x"),
    rejected("OutOfnvidia.com/gpu"),
    ended(255, why="Unknown"),
]


@pytest.mark.parametrize("status", FAULTY, ids=named)
def test_a_node_at_fault_is_free_on_record_and_avoided_and_only_it(status: Object) -> None:
    life = placed(trained(parallelism=TWO_NODES, retries=0), "good", "bad")
    over(life, PEER, status)
    assert (last(life)["free"], last(life)["failedOn"], life.status["retriesSpent"]) == (True, ["bad"], 0)
    assert life.plan.wake_after == 5
    assert "bad" in last(life)["message"]
    assert "avoids node bad" in life.condition("Reconciling")["message"]
    life.later(5).step()
    assert avoided(life) == ["bad"]
    assert "podAntiAffinity" in life.job("Train")["spec"]["template"]["spec"]["affinity"]


@pytest.mark.parametrize(
    "status",
    [
        rejected("OutOfcpu"),
        rejected("OutOfmemory"),
        rejected("NodeAffinity"),
        rejected("Evicted", message="The node had condition: [MemoryPressure]. "),
        told(69, "StoreUnavailable"),
        told(70, "InternalError"),
        told(69, "Hung"),
        ended(137, why="OOMKilled"),
        rejected("", "PreemptionByScheduler"),
        rejected("Terminated", "TerminationByKubelet"),
        SAVED,
    ],
    ids=named,
)
def test_what_is_no_fault_of_the_node_leaves_it_a_choice(status: Object) -> None:
    life = placed(trained(parallelism=TWO_NODES), "one", "two")
    over(life, PEER, status).later(300).step()
    assert avoided(life) == []
    assert "avoidNodes" not in life.status["stages"][1]


def test_the_last_two_bad_nodes_are_avoided_by_all_attempts_after() -> None:
    life = placed(trained(), "first")
    for node in ("second", "third"):
        again(over(life, told(69, "DeviceFailed")), node)
    over(life, told(69, "DeviceFailed")).later(300).step()
    assert (avoided(life), life.status["stages"][1]["avoidNodes"]) == (["third", "second"], ["third", "second"])
    life.run("Train")
    placed(life, "fourth").step()
    over(life, told(75, "Interrupted")).step()
    assert avoided(life) == ["third", "second"]
    life.run("Train")
    placed(life, "second").step()
    over(life, told(69, "DeviceFailed")).later(300).step()
    assert avoided(life) == ["second", "third"]


def test_of_many_pods_that_blame_one_another_the_first_that_ended_are_avoided() -> None:
    life = placed(trained(parallelism={"nodes": 4, "ddp": {}}), "a", "b", "c", "d")
    statuses = [told(69, "CommunicationFailed") for _ in range(4)]
    for status, second in zip(statuses, (4, 2, 1, 3), strict=True):
        status["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = f"2026-01-02T03:05:0{second}Z"
    over(life, *statuses)
    assert last(life)["failedOn"] == ["c", "b"]


def test_the_bad_nodes_of_one_stage_or_part_are_its_own_and_other_kinds_have_them_too() -> None:
    world = evalruns.Evaluation(evalruns.GATED | {"resources": {"gpus": 1}}, *evalruns.CLAIMS, evalruns.READY_JOB)
    world.rest()
    world.run("Evaluate", "tested")
    (pod,) = world.pods("Evaluate", "tested")
    pod["spec"] = {"nodeName": "bad"}
    world.end("Evaluate", refusal("Evaluate", 69, "DeviceUnavailable"), "tested").step()
    world.later(5)
    world.rest()
    assert avoided(world, "Evaluate", "tested") == ["bad"]
    assert avoided(world, "Evaluate", "base") == []


def test_a_job_that_is_made_after_a_restart_of_the_operator_avoids_the_same_nodes() -> None:
    life = over(placed(trained(), "bad"), told(69, "DeviceFailed")).later(5)
    life.owner["status"] = json.loads(json.dumps(life._status(life.observed())))
    life.step()
    assert avoided(life) == ["bad"]


def test_a_job_that_waits_in_a_queue_carries_what_it_avoids_from_its_creation() -> None:
    """It is never written again: Kueue would take it for another."""
    life = over(placed(trained(scheduling={"queueName": "gpus"}), "bad"), told(69, "DeviceFailed")).later(5)
    life.step()
    assert (life.job("Train")["spec"]["suspend"], avoided(life)) == (True, ["bad"])


@pytest.mark.parametrize(("least", "nodes"), [({"minNodes": 2}, 3), ({}, 4)], ids=["it may be smaller", "it may not"])
def test_a_bad_node_that_is_taken_again_is_done_without_where_the_training_may_be_smaller(least: Object, nodes: int) -> None:
    batch = {"perDeviceTrainBatchSize": 3, "gradientAccumulationSteps": 1}
    life = trained(parallelism={"nodes": 4, "ddp": {}} | least, training=batch)
    faults = [SAVED, SAVED, SAVED, told(69, "DeviceUnavailable")]
    over(placed(life, "a", "b", "c", "bad"), *faults)
    again(life, "a", "b", "c", "bad")
    over(life, *faults).later(300).step()
    assert (life.job("Train")["spec"]["parallelism"], avoided(life)) == (nodes, ["bad"])
    life.run("Train").step()
    # What ends that attempt is another matter: the one after it asks for all nodes again.
    over(life, *[told(75, "Interrupted")] * nodes).step()
    assert life.job("Train")["spec"]["parallelism"] == 4


def test_a_stage_without_checkpoints_does_not_meet_the_same_fault_for_ever() -> None:
    world = evalruns.Evaluation(evalruns.GATED | {"resources": {"gpus": 1}}, *evalruns.CLAIMS, evalruns.READY_JOB)
    world.rest()
    for number in itertools.count(1):
        world.run("Evaluate", "tested").step()
        world.later(1200).end("Evaluate", refusal("Evaluate", 69, "DeviceFailed"), "tested").step()
        if world.states()["Evaluate tested"] == "Failed":
            break
        assert number <= PATIENCE
        world.later(300)
        world.rest()


# Fingerprints


def device(step: int | None = 7, reason: str = "DeviceFailed", letter: str = "a") -> Object:
    """A device's fault with a fingerprint."""
    return told(69, reason, fingerprint=letter * 12, **({} if step is None else {"step": step}))


def meetings(*each: tuple[str, Object], parallelism: Object | None = None) -> Life:
    """Attempts that end so, on these nodes, one after another."""
    life = trained(**({"parallelism": parallelism} if parallelism else {}))
    for number, (nodes, status) in enumerate(each):
        again(life, *nodes.split()) if number else placed(life, *nodes.split())
        over(life, *[status] * len(life.pods("Train")))
    return life


@pytest.mark.parametrize(
    ("each", "state"),
    [
        ([("x", device())], "Waiting"),
        ([("x", device()), ("x", device())], "Waiting"),
        ([("x", device()), ("y", device())], "Failed"),
        ([("x", device(None)), ("y", device(None))], "Failed"),
        ([("x", device()), ("y", device(8))], "Waiting"),
        ([("x", device()), ("y", device(letter="b"))], "Waiting"),
        ([("x", device()), ("x", device()), ("x", device())], "Failed"),
        ([("x", device()), ("y", device(8)), ("x", device()), ("x", device())], "Failed"),
        ([("x", device(8)), ("x", device()), ("x", device())], "Waiting"),
        # All processes of the training stop at one place when a network fails: before the first step that place proves nothing.
        ([("x", device(None, "CommunicationFailed"))] * 2 + [("y", device(None, "CommunicationFailed"))] * 2, "Waiting"),
        ([("x", device(7, "CommunicationFailed")), ("y", device(7, "CommunicationFailed"))], "Failed"),
        # Without a device's text it is the same error wherever it is met.
        ([("x", told(70, "InternalError", fingerprint="a" * 12, step=7))] * 2, "Failed"),
        ([("x", device()), ("y", told(70, "InternalError", fingerprint="a" * 12, step=7))], "Waiting"),
    ],
)
def test_a_fault_of_a_device_is_final_where_two_nodes_or_one_thrice_show_it_at_one_step(each: list[tuple[str, Object]], state: str) -> None:
    life = meetings(*each)
    assert life.states()["Train"] == state
    assert state == "Waiting" or "the same error at the same step" in life.condition("Stalled")["message"]


@pytest.mark.parametrize(
    ("each", "state"), [(["x y", "x z"], "Waiting"), (["x y", "x y"], "Waiting"), (["x y", "z w"], "Failed"), (["x y", "x z", "w x"], "Failed")]
)
def test_nodes_that_two_attempts_have_in_common_prove_nothing_until_the_third(each: list[str], state: str) -> None:
    assert meetings(*((nodes, device()) for nodes in each), parallelism=TWO_NODES).states()["Train"] == state


# Bounds


def hopeless(reason: str, nodes: Iterator[str], **facts: Any) -> tuple[Life, int]:
    """A life in which every attempt ends so, and how many it took until the object failed."""
    life = trained(retries=0)
    for number in itertools.count(1):
        over(placed(life, next(nodes)), told(69, reason, **facts))
        if life.states()["Train"] == "Failed":
            return life, number
        assert number <= PATIENCE
        life.later(life.plan.wake_after or 0).step()
        life.run("Train").step()
    raise AssertionError


@pytest.mark.parametrize("nodes", [["only"], ["a", "b", "c", "d"]], ids=["one node", "four nodes"])
def test_a_driver_that_is_too_old_everywhere_ends_the_job_within_the_hour_and_says_so(nodes: list[str]) -> None:
    life, number = hopeless("DeviceUnavailable", itertools.cycle(nodes), message="driver 535 of the node is older than 580")
    assert (number, life.status["retriesSpent"]) == (STANDSTILL["DeviceUnavailable"], 0)
    told_by = life.condition("Stalled")
    assert told_by["reason"] == "DeviceUnavailable"
    assert "driver 535 of the node is older than 580" in told_by["message"]
    assert all(node in told_by["message"] for node in nodes)


def test_the_pauses_before_that_take_more_than_ten_minutes_and_less_than_an_hour() -> None:
    life = trained()
    begun = life.now
    while True:
        over(placed(life, "only"), told(69, "DeviceUnavailable"))
        if life.states()["Train"] == "Failed":
            break
        life.later((life.plan.wake_after or 0) + 60).step()
        life.run("Train").step()
    assert 600 < (life.now - begun).total_seconds() <= 3600


def test_a_bad_node_among_good_ones_ends_no_job_however_often_it_is_met_on_the_way() -> None:
    life = trained(retries=0)
    for step in range(0, 40 * 20, 20):
        over(placed(life, "bad"), told(69, "DeviceUnavailable"))
        again(life, "good")
        # It was preempted, and the only node that was free was the bad one.
        over(life, told(75, "Interrupted", resumedFromStep=step, checkpoint=checkpoint(1, step + 20)))
        life.run("Train").step()
    assert life.condition("Stalled")["status"] == "False"


@pytest.mark.parametrize("reason", ["DeviceFailed"])
def test_faults_of_devices_in_the_work_are_borne_as_the_surroundings_are(reason: str) -> None:
    assert hopeless(reason, itertools.cycle("xy"))[1] == PATIENCE + 1


# Containers that cannot be created: their pods wait for ever


def waits(life: Life, message: str, reason: str = "CreateContainerError", pulled: float = 0) -> Life:
    """The last pod's node cannot create its container, after so many seconds of pulling its image."""
    pod = life.pods("Train")[-1]
    status = {"phase": "Pending", "startTime": timestamp(life.now)}
    life.later(pulled)
    pod["status"] = status | {"containerStatuses": [{"name": "stage", "state": {"waiting": {"reason": reason, "message": message}}}]}
    life.step()
    return life


CDI = "failed to create containerd container: CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=1"


@pytest.mark.parametrize("pulled", [0, 1800])
@pytest.mark.parametrize(("message", "told_as"), [(CDI, "DeviceUnavailable"), ("context deadline exceeded", "StartError")])
def test_a_pod_whose_node_cannot_create_its_container_is_given_up_after_two_minutes(message: str, told_as: str, pulled: float) -> None:
    """A large image that has been pulled for long is unpacked slowly, too: the first tries may end by their deadline, and a later one does not."""
    life = waits(placed(trained(parallelism=TWO_NODES), "good", "bad"), message, pulled=pulled)
    assert life.plan.wake_after == 120
    life.later(119).step()
    assert life.names("Job")[-1] == "support-bot-train-1-5f0c1"
    life.later(1).step()
    assert life.names("Job") == ["support-bot-prepare-1-5f0c1"]
    life.vanish().step()
    assert (last(life)["reason"], last(life)["free"], last(life)["failedOn"]) == (told_as, True, ["bad"])
    assert life.plan.wake_after == 5
    life.later(5).step()
    assert avoided(life) == ["bad"]


@pytest.mark.parametrize(
    ("message", "reason"),
    [('secret "x" not found', "CreateContainerConfigError"), ("no command specified", "CreateContainerError"), ("x", "ImagePullBackOff")],
)
def test_a_pod_that_waits_for_a_person_is_left_waiting(message: str, reason: str) -> None:
    life = waits(placed(trained(), "node"), message, reason).later(3600)
    life.step()
    assert life.names("Job")[-1] == "support-bot-train-1-5f0c1"
    assert life.condition("Reconciling")["reason"] == reason


def test_a_node_that_does_not_end_its_pod_is_avoided() -> None:
    """The container may still hold its devices there."""
    life = placed(trained(), "stuck")
    life.remove("Job", life.job("Train")["metadata"]["name"]).later(60).step()
    assert [entry["kind"] for entry in life.plan.delete] == ["Pod"]
    life.vanish().step()
    assert (last(life)["reason"], last(life)["failedOn"], avoided(life)) == ("JobDeleted", ["stuck"], ["stuck"])


def test_a_node_that_put_the_pod_out_to_make_room_is_avoided_and_the_pod_is_free() -> None:
    life = placed(trained(), "full")
    over(life, rejected("Evicted", "TerminationByKubelet", message="The node was low on resource: ephemeral-storage. "))
    assert (last(life)["reason"], last(life)["free"], avoided(life)) == ("Disrupted", True, ["full"])
