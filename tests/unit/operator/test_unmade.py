"""Pods that may not be made: their Job's Events say why, and the status says it within 15 s."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.unit.operator.edge import child, owner
from tests.unit.operator.finetunejobs import TWO_NODES, WORKING, Life, last
from tests.unit.operator.makers import START
from tests.unit.operator.test_waiting_for_nodes import QUARTER, place
from tunesmith.api.conditions import timestamp
from tunesmith.core.objects import Object
from tunesmith.runtime.client import Refused
from tunesmith.runtime.refusals import Refusals
from tunesmith.workload.unmade import refusal

NOW = datetime(2026, 1, 1, tzinfo=UTC)
QUOTA = 'Error creating: pods "tune-0-{}" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=8, used: 0, limited: 4'


def created(life: Life, stage: str) -> str:
    """The Job of the stage was made now; its uid."""
    job = life.job(stage)
    job["metadata"]["creationTimestamp"] = timestamp(life.now)
    return str(job["metadata"]["uid"])


def told(life: Life, refusals: dict[str, str]) -> Life:
    """A reconcile that knows of refusals."""
    life.refusals = refusals
    life.step()
    life.refusals = {}
    return life


def test_a_job_whose_pods_are_refused_says_so_and_is_looked_at_again() -> None:
    life = Life()
    life.step()
    uid = created(life, "Prepare")
    life.step()
    assert life.plan.wake_after == 5
    told(life.later(5), {uid: "exceeded quota: gpus"})
    assert (life.condition("Reconciling")["reason"], life.truths()) == ("PodsRefused", WORKING)
    assert "exceeded quota: gpus" in life.condition("Reconciling")["message"]
    assert life.plan.wake_after == 10
    life.run("Prepare").step()
    assert life.plan.wake_after is None


def test_the_refusal_of_one_pod_of_several_is_the_reason_why_the_others_are_released() -> None:
    life = Life(parallelism=TWO_NODES)
    life.step()
    life.succeed("Prepare").run("Train")
    uid = created(life, "Train")
    for pod in life.pods("Train"):
        place(pod, life)
    del life.children["Pod", life.pods("Train")[1]["metadata"]["name"]]
    told(life.later(5), {uid: "exceeded quota: gpus"})
    assert (life.states()["Train"], life.condition("Ready")["reason"]) == ("Pending", "PodsRefused")
    told(life.later(QUARTER), {uid: "exceeded quota: gpus"})
    life.vanish().step()
    assert last(life)["reason"] == "PodsMissing"
    assert "exceeded quota: gpus" in last(life)["message"]


def event(message: str, seconds: float) -> Object:
    return {"metadata": {"creationTimestamp": timestamp(START)}, "message": message, "lastTimestamp": timestamp(START + timedelta(seconds=seconds))}


def test_the_newest_word_counts_without_what_differs_at_each_try_and_none_of_an_earlier_start() -> None:
    events = [event(QUOTA.format("x7k2p"), 60), event("Error creating: old", 30)]
    assert refusal(events, START) == refusal([event(QUOTA.format("aaaaa"), 70)], START)
    assert refusal(events, START).startswith('pods "tune-0" is forbidden: exceeded quota: gpus')
    assert refusal(events, START + timedelta(seconds=61)) == ""
    webhook = "Error creating: admission webhook denied the request: no"
    assert refusal([{"metadata": {}, "message": webhook, "eventTime": "2026-01-02T03:05:00.123456Z"}], START).startswith("admission webhook denied")


class Asked:
    def __init__(self, answer: str | Exception) -> None:
        self.answer, self.times = answer, 0

    async def refusal(self, job: Object) -> str:
        self.times += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def test_the_events_are_asked_for_when_pods_are_late_and_every_ten_seconds_then() -> None:
    cluster: Any = Asked("quota")
    refusals, tune = Refusals(cluster), owner()
    job = child("Job", "job", tune, spec={"parallelism": 1}, status={"startTime": timestamp(NOW)})
    for second, times in ((0, 0), (4, 0), (5, 1), (6, 1), (14, 1), (15, 2)):
        found = await refusals.of([job], NOW + timedelta(seconds=second))
        assert (cluster.times, found) == (times, {"uid-Job-job": "quota"} if times else {}), second
    pod = child("Pod", "pod", tune)
    pod["metadata"]["ownerReferences"] = [{"uid": "uid-Job-job", "controller": True}]
    assert await refusals.of([job, pod], NOW + timedelta(seconds=30)) == {}
    for held in ({"spec": {"suspend": True}}, {"status": {"conditions": [{"type": "Failed", "status": "True"}], "startTime": timestamp(NOW)}}):
        assert await refusals.of([job | held], NOW + timedelta(seconds=30)) == {}
    assert cluster.times == 2


@pytest.mark.parametrize("error", [Refused(403, "Forbidden", "events is forbidden")])
async def test_that_they_may_not_be_read_stops_nothing(error: Exception) -> None:
    cluster: Any = Asked(error)
    job = child("Job", "job", owner(), spec={}, status={"startTime": timestamp(NOW)})
    assert await Refusals(cluster).of([job], NOW + timedelta(seconds=30)) == {}
