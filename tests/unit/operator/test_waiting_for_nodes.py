"""A node that is not there yet is waited for: what is there is held for a while, then released and asked for again, and nothing of it counts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.operator.finetunejobs import WORKING, Life, last, trained
from tests.unit.operator.makers import unplace
from tests.unit.operator.test_failures import PEER, over
from tunesmith.api.conditions import timestamp
from tunesmith.core.objects import Object
from tunesmith.stages.repeats import PATIENCE

FOUR: Object = {"nodes": 4, "ddp": {}}
QUARTER = 15 * 60


def life_of(**spec: Any) -> Life:
    """A life in which Train has been made and has no pods."""
    life = Life(parallelism=FOUR, retries=0, **spec)
    life.step()
    life.succeed("Prepare")
    return life


def place(pod: Object, life: Life, state: Object | None = None) -> None:
    """The pod has a node, and its container that state."""
    bound = {"type": "PodScheduled", "status": "True", "lastTransitionTime": timestamp(life.now)}
    told = {"containerStatuses": [{"name": "stage", "state": state}]} if state else {}
    running = state is None or "running" in state
    pod["status"] = {"phase": "Running" if running else "Pending", "conditions": [bound]} | told
    pod["spec"] = {"nodeName": pod["metadata"]["name"]}


def tried(life: Life, without: int = 1) -> Life:
    """The pods of the newest attempt are made; the last ones find no node."""
    life.run("Train")
    for index, pod in enumerate(life.pods("Train")):
        if index < 4 - without:
            place(pod, life)
        else:
            unplace(pod, life.now)
    life.step()
    return life


def waits(life: Life) -> float:
    """How long until the next attempt begins."""
    assert life.plan.wake_after is not None
    return life.plan.wake_after


def released(life: Life) -> Life:
    """The quarter of an hour is over, and no pod is left."""
    life.later(QUARTER).step()
    life.vanish().step()
    return life


def test_what_is_there_is_held_for_a_quarter_of_an_hour_and_then_released() -> None:
    life = tried(life_of())
    life.later(120).step()
    assert life.plan.wake_after == QUARTER - 120
    life.later(QUARTER - 121).step()
    assert "support-bot-train-1-5f0c1" in life.names("Job")
    life.later(1).step()
    assert "support-bot-train-1-5f0c1" not in life.names("Job")
    life.vanish().step()
    assert (life.states()["Train"], life.status["retriesSpent"], life.truths()) == ("Waiting", 0, WORKING)
    assert (last(life)["reason"], last(life)["free"]) == ("PodsMissing", True)
    assert "1 of 4 pods" in last(life)["message"]
    assert "Insufficient nvidia.com/gpu" in life.condition("Reconciling")["message"]
    assert "failures" not in life.status["stages"][1]


def test_the_pauses_double_up_to_a_limit_and_differ_between_objects() -> None:
    life, pauses = life_of(), []
    for _ in range(12):
        released(tried(life))
        pauses.append(waits(life))
        life.later(waits(life)).step()
    least = [5 * 2**number for number in range(6)]
    assert all(low <= pause <= 2 * low for low, pause in zip(least, pauses, strict=False))
    assert all(300 <= pause <= 600 for pause in pauses[7:])
    others = []
    for number in range(5):
        other = life_of()
        other.owner["metadata"]["uid"] = f"{number}" + other.owner["metadata"]["uid"][1:]
        for job in other.children.values():
            job["metadata"]["labels"]["tunesmith.dev/uid"] = other.owner["metadata"]["uid"]
        others.append(waits(released(tried(other))))
    assert len(set(others)) > 1


def test_it_is_waited_for_without_end_and_the_history_of_failures_is_not_lost() -> None:
    life = over(trained(parallelism=FOUR), *[PEER] * 4)
    life.later(300).step()
    for _ in range(PATIENCE + 2):
        released(tried(life)).later(600).step()
    assert (life.truths(), life.status["retriesSpent"]) == (WORKING, 0)
    assert [each["reason"] for each in life.status["attempts"]] == ["Succeeded", "PeerUnavailable", "PodsMissing"]
    life.run("Train").step()
    assert life.states()["Train"] == "Running"
    assert not {"waits", "waitingSince"} & life.status["stages"][1].keys()


def test_where_nothing_is_held_nothing_is_released_so_that_an_autoscaler_sees_all_pods() -> None:
    life = tried(life_of(), without=4)
    life.later(10 * 86400).step()
    assert "support-bot-train-1-5f0c1" in life.names("Job")
    assert life.condition("Reconciling")["reason"] == "Unschedulable"


def test_a_pod_that_pulls_its_image_is_not_missing() -> None:
    life = tried(life_of(), without=0)
    place(life.pods("Train")[3], life, {"waiting": {"reason": "ContainerCreating"}})
    life.step()
    life.later(3600).step()
    assert "support-bot-train-1-5f0c1" in life.names("Job")


@pytest.mark.parametrize("parallelism", [FOUR, {"nodes": 1, "ddp": {}}], ids=str)
def test_gpus_are_not_held_for_an_image_that_cannot_be_pulled(parallelism: Object) -> None:
    life = Life(parallelism=parallelism)
    life.step()
    life.succeed("Prepare")
    life.run("Train")
    for pod in life.pods("Train"):
        place(pod, life, {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}})
    life.step()
    released(life)
    assert (last(life)["reason"], life.states()["Train"]) == ("PodsMissing", "Waiting")
    assert "not found" in life.condition("Reconciling")["message"]


@pytest.mark.parametrize("result", [PEER, "silent"], ids=["told", "silent"])
def test_pods_that_gave_up_waiting_for_one_that_never_began_cost_nothing(result: Any) -> None:
    """Images of older releases give up after five minutes, and any does where a peer's image takes too long."""
    life = life_of()
    for _ in range(PATIENCE + 2):
        tried(life)
        gone = life.pods("Train")[3]["metadata"]["name"]
        del life.children["Pod", gone]
        status = PEER if result == PEER else {"phase": "Failed", "containerStatuses": [{"name": "stage", "state": {"terminated": {"exitCode": 69}}}]}
        over(life.later(330), *[status] * 3).later(600).step()
    assert (life.truths(), life.status["retriesSpent"], last(life)["reason"]) == (WORKING, 0, "PodsMissing")


def test_pods_that_all_began_and_did_not_meet_are_counted_as_before() -> None:
    life = tried(life_of(), without=0)
    over(life, *[PEER] * 4)
    assert last(life)["reason"] == "PeerUnavailable"


def test_the_limit_on_waiting_counts_over_all_tries() -> None:
    life = life_of(pendingDeadlineSeconds=3 * QUARTER)
    begun = life.now
    for _ in range(2):
        released(tried(life))
        life.later(waits(life)).step()
    tried(life)
    life.later(3 * QUARTER - (life.now - begun).total_seconds() - 1).step()
    assert life.truths() == WORKING
    life.later(1).step()
    assert life.truths()["FailureTarget"] == "True"
    life.vanish().step()
    told = life.condition("Stalled")
    assert told["reason"] == "PendingDeadlineExceeded"
    assert "Insufficient nvidia.com/gpu" in told["message"]


def test_the_limit_is_met_in_a_pause_too() -> None:
    life = life_of(pendingDeadlineSeconds=QUARTER + 2)
    released(tried(life))
    assert life.plan.wake_after == 2
    life.later(2).step()
    assert life.condition("Stalled")["reason"] == "PendingDeadlineExceeded"


def test_a_restart_of_the_operator_changes_nothing() -> None:
    life = tried(life_of()).later(QUARTER)
    life.owner["status"] = json.loads(json.dumps(life._status(life.observed())))
    life.step()
    life.vanish().step()
    assert (last(life)["reason"], life.status["stages"][1]["waits"]) == ("PodsMissing", 1)


def test_a_pod_that_has_a_node_runs_though_a_scheduler_that_came_late_says_that_there_is_none() -> None:
    life = life_of()
    life.run("Train")
    for pod in life.pods("Train"):
        unplace(pod, life.now)
        pod["spec"] = {"nodeName": pod["metadata"]["name"]}
        pod["status"] |= {"phase": "Running"}
    life.later(QUARTER + 1).step()
    assert life.states()["Train"] == "Running"


def test_pods_of_which_one_is_not_made_do_not_run() -> None:
    life = tried(life_of(), without=0)
    del life.children["Pod", life.pods("Train")[3]["metadata"]["name"]]
    life.step()
    assert (life.states()["Train"], life.condition("Reconciling")["message"]) == ("Running", "Train: 3 of 4 pods run")
    fresh = life_of()
    fresh.run("Train")
    for pod in fresh.pods("Train"):
        place(pod, fresh)
    del fresh.children["Pod", fresh.pods("Train")[3]["metadata"]["name"]]
    fresh.step()
    assert (fresh.states()["Train"], fresh.plan.wake_after is not None) == ("Pending", True)
    released(fresh)
    assert last(fresh)["reason"] == "PodsMissing"
