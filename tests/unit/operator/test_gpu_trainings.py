"""A training counts if as many processes took part as were asked for; memory of the host and of devices is told apart."""

from __future__ import annotations

import pytest

from tests.unit.operator.finetunejobs import TWO_NODES, Life, avoided, last, placed, trained
from tests.unit.operator.makers import answer
from tests.unit.operator.test_failures import ended, over, told
from tunesmith.core.objects import Object
from tunesmith.stages.repeats import STANDSTILL

GPUS: Object = {"gpus": 4, "memory": "64Gi"}


def test_a_success_of_another_world_size_is_none() -> None:
    life = placed(trained(parallelism=TWO_NODES, resources=GPUS), "bad", "good")
    life.end("Train", answer("Train") | {"worldSize": 1, "devices": {"NVIDIA H200": 1}}).step()
    assert (last(life)["reason"], last(life)["outcome"], last(life)["free"]) == ("DeviceUnavailable", "Failed", True)
    assert "trained with 1 processes, 1 NVIDIA H200; 8 were asked for" in last(life)["message"]
    assert "lastCheckpoint" not in life.status and life.states()["Train"] == "Waiting"
    life.later(5).step()
    assert avoided(life) == ["bad"]


def test_a_success_with_fewer_devices_than_processes_is_none() -> None:
    life = placed(trained(parallelism=TWO_NODES, resources=GPUS), "bad", "good")
    life.end("Train", answer("Train") | {"worldSize": 8, "devices": {"NVIDIA H200": 4}}).step()
    assert (last(life)["reason"], last(life)["outcome"], last(life)["free"]) == ("DeviceUnavailable", "Failed", True)
    assert "trained with 8 processes, 4 NVIDIA H200; 8 were asked for" in last(life)["message"]


@pytest.mark.parametrize("parallelism", [{"nodes": 2, "ddp": {}}, {"nodes": 2, "processesPerNode": 2, "ddp": {}}, {"fsdp": {}}])
def test_a_success_of_the_world_size_asked_for_is_one(parallelism: Object) -> None:
    life = trained(parallelism=parallelism, resources=GPUS)
    size = parallelism.get("nodes", 1) * parallelism.get("processesPerNode", 4)
    life.end("Train", answer("Train") | {"worldSize": size, "devices": {"NVIDIA H200": size}}).step()
    assert life.states()["Train"] == "Succeeded"
    assert life.status["resolved"]["devices"] == life.status["stages"][1]["result"]["devices"] == {"NVIDIA H200": size}


def test_a_success_that_names_no_world_size_is_believed() -> None:
    life = trained(parallelism=TWO_NODES)
    result = answer("Train")
    life.end("Train", result | {"worldSize": None})
    life.step()
    assert life.states()["Train"] == "Succeeded"


def test_the_result_of_an_earlier_attempt_is_measured_by_the_size_of_that_one() -> None:
    life = trained(parallelism={"nodes": 4, "minNodes": 2, "ddp": {}})
    life.owner["status"]["stages"][1]["nodes"] = 3
    over(life, *[ended(137)] * 4)
    life.later(300).step()
    life.run("Train").step()
    life.end("Train", answer("Train", attempt=1) | {"worldSize": 3}).step()
    assert life.states()["Train"] == "Succeeded"


def test_a_training_in_the_store_that_is_none_ends_the_job_with_its_size() -> None:
    """An older image answers with it at each attempt."""
    life = trained(resources=GPUS)
    for _ in range(STANDSTILL["DeviceUnavailable"]):
        life.end("Train", answer("Train", attempt=1) | {"worldSize": 1}).step()
        if life.states()["Train"] == "Failed":
            break
        life.later(300).step()
        life.run("Train").step()
    assert life.condition("Stalled")["reason"] == "DeviceUnavailable"
    assert "trained with 1 processes; 4 were asked for" in life.condition("Stalled")["message"]


def halved(life: Life) -> bool:
    return bool(life.status["stages"][1]["perDeviceTrainBatchSize"] < 4)


@pytest.mark.parametrize(
    ("status", "gpus", "halves"),
    [
        (ended(137, why="OOMKilled"), True, False),
        (told(70, "OutOfMemory", memory="Host"), True, False),
        (told(70, "OutOfMemory", memory="Device"), True, True),
        (told(70, "OutOfMemory"), True, True),
        (told(70, "OutOfMemory", memory="SomethingNew"), True, True),
        (ended(137, why="OOMKilled"), False, True),
        (told(70, "OutOfMemory", memory="Host"), False, True),
    ],
)
def test_host_memory_of_a_stage_with_gpus_is_not_helped_by_a_smaller_batch(status: Object, gpus: bool, halves: bool) -> None:
    life = over(trained(**({"resources": GPUS} if gpus else {})), status)
    assert (last(life)["reason"], last(life)["free"]) == ("OutOfMemory", halves)
    assert (life.status["retriesSpent"], life.plan.wake_after) == ((0, None) if halves else (1, 5))
    assert ("raise `resources.memory` (it was 64Gi)" in last(life)["message"]) != halves
    life.later(5).step()
    assert halved(life) == halves


def test_host_memory_that_ends_one_attempt_after_another_ends_the_job_when_the_retries_are_spent() -> None:
    life = trained(resources=GPUS, retries=2)
    for number in range(3):
        assert life.states()["Train"] == "Running", number
        over(life, told(70, "OutOfMemory", memory="Host", fingerprint="a" * 12, step=7)).later(300).step()
        if number < 2:
            life.run("Train").step()
    assert (life.states()["Train"], life.condition("Stalled")["reason"]) == ("Failed", "OutOfMemory")
