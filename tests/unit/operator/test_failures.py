"""How an attempt ended and what comes of it: docs/contract.md, Failures, row by row, through the whole of `status`."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest

from tests.unit.operator.finetunejobs import TWO_NODES, Life, trained
from tests.unit.operator.makers import answer, checkpoint, refusal
from tunesmith.api.conditions import timestamp
from tunesmith.core.objects import Object
from tunesmith.stages.failures import classify
from tunesmith.stages.repeats import STANDSTILL


def ended(code: int, result: Object | None = None, why: str = "Error", message: str = "", **status: Any) -> Object:
    """The status of a pod whose container ended."""
    text = json.dumps(result) if result else message
    terminated = {"exitCode": code, "reason": why} | ({"message": text} if text else {})
    return {"phase": "Failed", "containerStatuses": [{"name": "stage", "state": {"terminated": terminated}}]} | status


def told(code: int, reason: str, **facts: Any) -> Object:
    """The status of a pod that told a result which is no success."""
    return ended(code, refusal("Train", code, reason, outcome="Interrupted" if code == 75 else "Failed", **facts))


def rejected(reason: str, *conditions: str, message: str = "x") -> Object:
    """The status of a pod without a container: its node ended it, or never began it."""
    disrupted = [{"type": "DisruptionTarget", "status": "True", "reason": condition, "message": "x"} for condition in conditions]
    return {"phase": "Failed", "reason": reason, "message": message, "conditions": disrupted}


# What containerd, runc and the kubelet say.
CREATE = "failed to create containerd task: failed to create shim task: OCI runtime create failed: "
NO_CDI = CREATE + "error modifying OCI spec: failed to inject CDI devices: unresolvable CDI devices management.nvidia.com/gpu=0: unknown"
NO_NVML = CREATE + "error running hook #0: exit status 1, stderr: nvidia-container-cli: initialization error: nvml error: driver not loaded: unknown"
NO_CGROUP = CREATE + "runc create failed: unable to start container process: unable to apply cgroup configuration: unknown"
NO_PYTHON = CREATE + 'runc create failed: unable to start container process: exec: "python": executable file not found in $PATH: unknown'
REJECTED = "Pod was rejected: Resources cannot be allocated with Topology locality"
PEER, SAVED = told(69, "PeerUnavailable"), told(75, "Interrupted", checkpoint=checkpoint(1, 20))


class Row(NamedTuple):
    """Two pods' ends, and what is to come of them. `pause`: seconds before the next attempt."""

    name: str
    first: Object
    second: Object
    reason: str
    spent: int = 0
    pause: float = 0
    failed: bool = False
    changed: bool = False


TABLE = [
    Row("bad settings", told(64, "InvalidOverrides"), PEER, "InvalidOverrides", failed=True),
    Row("bad data, found by the other pod", PEER, told(65, "InvalidDataset"), "InvalidDataset", failed=True),
    Row("bad data outweighs a disruption", told(65, "InvalidDataset"), rejected("Shutdown"), "InvalidDataset", failed=True),
    Row("preempted by the scheduler", PEER, rejected("", "PreemptionByScheduler"), "Disrupted"),
    Row("evicted by the API, saved", SAVED, ended(75, why="Error") | rejected("", "EvictionByEvictionAPI"), "Disrupted"),
    Row("evicted to make room on the node", PEER, rejected("Evicted", "TerminationByKubelet"), "Disrupted"),
    Row("node lost", PEER, rejected("NodeLost"), "Disrupted"),
    Row("node shut down", told(70, "InternalError"), rejected("Terminated", "TerminationByKubelet"), "Disrupted"),
    Row("a disruption outweighs memory", ended(137, why="OOMKilled"), rejected("", "DeletionByTaintManager"), "Disrupted"),
    Row("interrupted by SIGTERM to one pod", SAVED, told(75, "Interrupted"), "Interrupted"),
    Row("interrupted, and the peer only saw that", PEER, told(75, "Interrupted"), "Interrupted"),
    Row("cut off by a later attempt", told(75, "Superseded"), told(75, "Superseded"), "Superseded"),
    Row("killed for memory", ended(137, why="OOMKilled"), PEER, "OutOfMemory", changed=True),
    Row("killed for memory, as the other pod alone shows", PEER, ended(137, why="OOMKilled"), "OutOfMemory", changed=True),
    Row("memory of the device", PEER, told(70, "OutOfMemory"), "OutOfMemory", changed=True),
    Row("a bug", told(70, "InternalError"), PEER, "InternalError", spent=1, pause=5),
    Row("a bug that the other pod met", PEER, told(70, "InternalError"), "InternalError", spent=1, pause=5),
    Row("a bug, and what was left was ended by the Job controller", SAVED, told(70, "InternalError"), "InternalError", spent=1, pause=5),
    Row("a process killed", told(70, "ProcessLost"), PEER, "ProcessLost", spent=1, pause=5),
    Row("the launcher killed", ended(137), PEER, "NoResult", spent=1, pause=5),
    Row("no result", ended(1), PEER, "NoResult", spent=1, pause=5),
    Row("more than its own limits", PEER, rejected("Evicted"), "Evicted", spent=1, pause=5),
    Row("store out of reach", told(69, "StoreUnavailable"), PEER, "StoreUnavailable", pause=5),
    Row("volume full", told(69, "StorageFull"), PEER, "StorageFull", pause=5),
    Row("store out of reach, and what was left was ended", SAVED, told(69, "StoreUnavailable"), "StoreUnavailable", pause=5),
    Row("collective failed", PEER, PEER, "PeerUnavailable", pause=5),
    Row("collective hung", told(69, "Hung"), told(69, "Hung"), "Hung", pause=5),
    Row("a process hung, and its peer only saw that it went", PEER, told(69, "Hung"), "Hung", pause=5),
    Row("a device failed", PEER, told(69, "DeviceFailed"), "DeviceFailed", pause=5),
    Row("a device was not there", told(69, "DeviceUnavailable"), told(75, "Interrupted"), "DeviceUnavailable", pause=5),
    Row("a device failed, and the others could not reach it", told(69, "CommunicationFailed"), told(69, "DeviceFailed"), "DeviceFailed", pause=5),
    Row("a device failed, of which another process fell over", told(70, "InternalError"), told(69, "DeviceFailed"), "DeviceFailed", pause=5),
    Row("a device failed, and the other pod ran out of memory", told(70, "OutOfMemory"), told(69, "DeviceFailed"), "DeviceFailed", pause=5),
    Row("a device failed as its node was shut down", told(69, "DeviceFailed"), rejected("Terminated", "TerminationByKubelet"), "Disrupted"),
    Row("bad data outweighs a device", told(65, "InvalidDataset"), told(69, "DeviceFailed"), "InvalidDataset", failed=True),
    Row("collectives broke, and the peer only saw that", PEER, told(69, "CommunicationFailed"), "CommunicationFailed", pause=5),
    Row("collectives broke of a process that hung", told(69, "CommunicationFailed"), told(69, "Hung"), "Hung", pause=5),
    Row("collectives broke of a bug", told(69, "CommunicationFailed"), told(70, "InternalError"), "InternalError", spent=1, pause=5),
    Row("collectives broke of memory", told(69, "CommunicationFailed"), told(70, "OutOfMemory"), "OutOfMemory", changed=True),
    Row("collectives broke of a process killed", told(69, "CommunicationFailed"), ended(137), "NoResult", spent=1, pause=5),
    Row("the runtime has no device for it", SAVED, ended(128, why="StartError", message=NO_CDI), "DeviceUnavailable", pause=5),
    Row("the runtime's hook failed", SAVED, ended(128, why="StartError", message=NO_NVML), "DeviceUnavailable", pause=5),
    Row("the runtime could not start it", SAVED, ended(128, why="StartError", message=NO_CGROUP), "StartError", pause=5),
    Row("the image has no such program", SAVED, ended(128, why="StartError", message=NO_PYTHON), "NoResult", spent=1, pause=5),
    Row("refused by its node", PEER, rejected("UnexpectedAdmissionError"), "PodRejected", pause=5),
    Row("refused by its node's topology", SAVED, rejected("TopologyAffinityError", message=REJECTED), "PodRejected", pause=5),
    Row(
        "refused by its node, which was short of disk",
        SAVED,
        rejected("Evicted", message="The node had condition: [DiskPressure]. "),
        "PodRejected",
        pause=5,
    ),
    Row("no room on its node after all", PEER, rejected("OutOfnvidia.com/gpu"), "PodRejected", pause=5),
    Row("forgotten by its node", PEER, ended(137, why="ContainerStatusUnknown"), "ContainerLost", pause=5),
    Row("its node was restarted", PEER, ended(255, why="Unknown"), "ContainerLost", pause=5),
    Row("its node was restarted just after it told why", PEER, ended(255, refusal("Train", 65, "NoEffect"), "Unknown"), "NoEffect", failed=True),
]


def over(life: Life, *statuses: Object) -> Life:
    """The pods of Train end so, and the operator sees it."""
    for pod, status in zip(life.pods("Train"), statuses, strict=True):
        pod["status"] = status
    life.job("Train")["status"] = {"conditions": [{"type": "Failed", "status": "True"}]}
    life.step()
    return life


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_what_comes_of_an_attempt(row: Row) -> None:
    life = over(trained(parallelism=TWO_NODES), row.first, row.second)
    entry = next(entry for entry in life.status["stages"] if entry["name"] == "Train")
    attempt = life.status["attempts"][-1]
    assert (attempt["reason"], attempt["free"]) == (row.reason, not row.spent and not row.failed)
    assert life.status["retriesSpent"] == row.spent
    if row.failed:
        assert (entry["state"], life.condition("Stalled")["reason"]) == ("Failed", row.reason)
    elif row.pause:
        assert (entry["state"], life.plan.wake_after) == ("Waiting", row.pause)
    else:
        assert (entry["state"], entry["attempt"]) == ("Pending", 2)
        assert (entry["perDeviceTrainBatchSize"] < attempt["perDeviceTrainBatchSize"]) == row.changed


@pytest.mark.parametrize("loss", ["NaN", "-Infinity", "1e999"])
def test_a_figure_that_the_api_server_would_refuse_makes_a_result_none(loss: str) -> None:
    life = trained()
    text = json.dumps(answer("Train") | {"evalLoss": 1.5}).replace("1.5", loss)
    over(life, ended(0) | {"phase": "Succeeded", "containerStatuses": [{"name": "stage", "state": {"terminated": {"exitCode": 0, "message": text}}}]})
    assert (life.status["attempts"][-1]["reason"], life.status["retriesSpent"]) == ("NoResult", 1)


def test_what_was_saved_is_known_whatever_the_cause() -> None:
    assert over(trained(parallelism=TWO_NODES), SAVED, rejected("", "PreemptionByScheduler")).status["lastCheckpoint"]["step"] == 20


def test_of_several_failures_the_one_with_a_traceback_is_told() -> None:
    life = over(trained(parallelism=TWO_NODES), told(70, "ProcessLost"), told(70, "InternalError", fingerprint="0" * 12, step=7))
    assert (life.status["attempts"][-1]["fingerprint"], life.status["attempts"][-1]["step"]) == ("0" * 12, 7)


@pytest.mark.parametrize(
    ("failures", "tried"),
    [
        ([("a", 7), ("a", 7)], False),
        ([("a", 7), ("b", 7), ("a", 7)], False),
        ([("a", None), ("a", None)], False),
        ([("a", 7), ("a", 8)], True),
        ([("a", 7), ("b", 7)], True),
        ([(None, 7), (None, 7)], True),
    ],
)
def test_the_same_error_twice_at_the_same_step_is_not_tried_again(failures: list[tuple[str | None, int | None]], tried: bool) -> None:
    life = trained(retries=9)
    for letter, step in failures:
        facts = ({"fingerprint": letter * 12} if letter else {}) | ({"step": step} if step else {})
        over(life, told(70, "InternalError", **facts)).later(300).step()
        if life.states()["Train"] != "Failed":
            life.run("Train").step()
    assert (life.states()["Train"] != "Failed") == tried
    assert tried or "same error" in life.condition("Stalled")["message"]


def go_through(life: Life, *statuses: Object, seconds: float = 0) -> Life:
    """Train's attempts end so one after another, each after so many seconds; the last one's end is the last thing that happens."""
    for number, status in enumerate(statuses):
        if number:
            life.later(300).step()
            life.run("Train").step()
        over(life.later(seconds), *[status] * len(life.pods("Train")))
    return life


def test_the_same_hang_twice_at_the_same_step_is_a_bug_too() -> None:
    hung = told(69, "Hung", fingerprint="a" * 12, step=7, resumedFromStep=0)
    life = go_through(trained(), hung, hung)
    assert life.states()["Train"] == "Failed"
    assert "same error at the same step" in life.condition("Stalled")["message"]
    elsewhere = told(69, "Hung", fingerprint="a" * 12, step=8, resumedFromStep=0)
    assert go_through(trained(), hung, elsewhere).states()["Train"] == "Waiting"


@pytest.mark.parametrize(("reason", "enough"), STANDSTILL.items())
@pytest.mark.parametrize("place", [{}, {"resumedFromStep": 40, "step": 47}])
@pytest.mark.parametrize("seconds", [0, 900])
def test_what_a_bug_may_be_too_is_not_tried_again_for_ever_from_one_checkpoint(reason: str, enough: int, place: Object, seconds: float) -> None:
    ends = [told(69, reason, **place)] * enough
    assert go_through(trained(), *ends[1:], seconds=seconds).states()["Train"] == "Waiting"
    life = go_through(trained(), *ends, seconds=seconds)
    assert (life.states()["Train"], life.condition("Stalled")["reason"], life.status["retriesSpent"]) == ("Failed", reason, 0)
    assert f"{enough} attempts ended so without a new checkpoint" in life.condition("Stalled")["message"]


def test_a_new_checkpoint_is_progress_and_the_count_begins_anew() -> None:
    ends = [told(69, "Hung", resumedFromStep=step, step=step + 5) for step in (0, 0, 20, 20, 40, 40, 60, 60)]
    assert go_through(trained(), *ends).states()["Train"] == "Waiting"
    # What ended before it trained tells nothing of checkpoints: it counts with those that began where training last did.
    unknown = told(69, "Hung")
    assert go_through(trained(), ends[0], ends[1], ends[2], unknown).states()["Train"] == "Waiting"
    assert go_through(trained(), ends[0], ends[2], unknown, unknown).states()["Train"] == "Failed"


def test_preemption_is_free_however_often_it_comes_from_one_checkpoint() -> None:
    evicted = told(75, "Interrupted", resumedFromStep=20, checkpoint=checkpoint(1, 20))
    life = go_through(trained(retries=0), *[evicted, rejected("", "PreemptionByScheduler")] * 15)
    assert (life.states()["Train"], life.status["retriesSpent"]) == ("Waiting", 0)


def test_the_pauses_do_not_begin_anew_where_long_attempts_lead_nowhere() -> None:
    full = [told(69, "StorageFull", resumedFromStep=20, step=step) for step in (30, 31, 30)]
    assert go_through(trained(), *full, seconds=900).plan.wake_after == 20
    further = told(69, "StorageFull", resumedFromStep=40, step=50)
    assert go_through(trained(), *full, further, seconds=900).plan.wake_after == 5


def test_a_store_that_is_away_costs_no_retries_and_the_pauses_grow() -> None:
    life, pauses = trained(retries=0), []
    for _ in range(9):
        over(life, told(69, "StoreUnavailable"))
        pauses.append(life.plan.wake_after)
        life.later(300).step()
        life.run("Train").step()
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert life.status["retriesSpent"] == 0
    over(life.later(600), told(69, "StoreUnavailable"))
    assert life.plan.wake_after == 5


def test_the_pauses_begin_anew_after_an_attempt_that_ran_for_long_whatever_ended_it() -> None:
    life = trained()
    for status, seconds in ((told(69, "StoreUnavailable"), 0), (told(69, "StoreUnavailable"), 0), (SAVED, 600), (told(69, "StoreUnavailable"), 0)):
        over(life.later(seconds), status)
        pause = life.plan.wake_after
        life.later(300).step()
        life.run("Train").step()
    assert pause == 5


def test_an_attempt_that_only_waited_for_long_did_not_last() -> None:
    life, pauses = trained(), []
    for _ in range(2):
        over(life, told(69, "StoreUnavailable"))
        pauses.append(life.plan.wake_after)
        life.later(300).step()
        life.run("Train", phase="Pending").step()
        life.later(600).step()
    assert pauses == [5, 10]


def test_even_patience_with_the_surroundings_has_an_end() -> None:
    life = trained()
    life.status["stages"][1]["failures"] = 49
    over(life, told(69, "StoreUnavailable")).later(300).step()
    life.run("Train").step()
    assert life.condition("Stalled")["status"] == "False"
    over(life, told(69, "StoreUnavailable"))
    assert life.condition("Stalled")["reason"] == "StoreUnavailable"


def test_a_pod_that_the_job_made_again_counts_instead_of_the_older_one() -> None:
    metadata = {"annotations": {"batch.kubernetes.io/job-completion-index": "0"}}
    older, newer = ({"metadata": metadata | {"name": name, "creationTimestamp": f"2026-01-01T00:00:0{name}Z"}} for name in "12")
    verdict = classify("Train", [{**newer, "status": told(69, "StoreUnavailable")}, {**older, "status": told(70, "InternalError")}], "")
    assert verdict.reason == "StoreUnavailable"


@pytest.mark.parametrize("stage", ["Prepare", "Finalize"])
def test_a_stage_without_a_batch_spends_a_retry_when_it_runs_out_of_memory(stage: str) -> None:
    life = Life()
    life.step()
    if stage == "Finalize":
        life.succeed("Prepare").succeed("Train")
    life.end(stage, None, why="OOMKilled").step()
    assert (life.status["retriesSpent"], life.status["attempts"][-1]["reason"]) == (1, "OutOfMemory")


def test_a_node_that_is_lost_is_on_record_though_its_pod_told_nothing() -> None:
    life = trained(parallelism=TWO_NODES)
    first, second = life.pods("Train")
    second["metadata"] |= {"deletionTimestamp": timestamp(life.now), "deletionGracePeriodSeconds": 0}
    conditions = [{"type": "Ready", "status": "False", "lastTransitionTime": timestamp(life.now)}, {"type": "ContainersReady", "status": "True"}]
    second["status"] = {"phase": "Running", "conditions": conditions}
    first["status"] = PEER
    life.job("Train")["status"] = {"conditions": [{"type": "Failed", "status": "True"}]}
    life.step()
    life.vanish().step()
    assert (life.status["attempts"][-1]["reason"], life.status["attempts"][-1]["free"]) == ("Disrupted", True)
    assert "does not answer" in life.status["attempts"][-1]["message"]


def test_a_failed_job_whose_pods_are_all_gone_had_one_deleted_which_costs_nothing() -> None:
    life = trained(parallelism=TWO_NODES)
    life.run("Train").step()
    life.job("Train")["status"] = {"conditions": [{"type": "Failed", "status": "True"}]}
    for pod in life.pods("Train"):
        del life.children["Pod", pod["metadata"]["name"]]
    life.step()
    assert (life.status["attempts"][-1]["reason"], life.status["attempts"][-1]["free"]) == ("Disrupted", True)


def test_success_is_read_from_the_first_pod_alone() -> None:
    assert classify("Train", [], "").outcome == "Retry"
    pods = [{"metadata": {"name": "x"}, "status": ended(0, answer("Train"))}]
    assert classify("Train", pods, "PreemptionByScheduler").outcome == "Succeeded"
