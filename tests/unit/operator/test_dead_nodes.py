"""A node that does not answer: whose pods leave it when, whatever they tolerate."""

from __future__ import annotations

import pytest

from tests.unit.operator import deployments, evalruns
from tests.unit.operator.finetunejobs import TWO_NODES, Life, last, trained
from tests.unit.operator.makers import World
from tunesmith.api.conditions import timestamp
from tunesmith.core.objects import Object

ANY: Object = {"operator": "Exists"}
UNREACHABLE, NOT_READY = "node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"
MINUTE = 60


def tolerated(template: Object, taint: str) -> int | None:
    """For how many seconds a pod stays on a node with the taint: the first toleration that matches counts. None: for ever."""
    for each in template["spec"]["tolerations"]:
        if each.get("key") in (taint, None) and each.get("effect", "NoExecute") == "NoExecute":
            seconds: int | None = each.get("tolerationSeconds")
            return seconds
    return 0


def template(stage: str, **spec: object) -> Object:
    """The pod template of a stage's Job."""
    life = Life(variants=[], **spec)
    life.step()
    if stage != "Prepare":
        life.succeed("Prepare")
    found: Object = life.job(stage)["spec"]["template"]
    return found


GIVEN = {
    "nothing": ([], (10, 300)),
    "all taints": ([ANY], (10, 300)),
    "all taints for a day": ([ANY | {"effect": "NoExecute", "tolerationSeconds": 86400}], (10, 300)),
    "another taint": ([{"key": "gpu", "operator": "Exists"}], (10, 300)),
    "that taint, for scheduling": ([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoSchedule"}], (10, 300)),
    "that taint": ([{"key": UNREACHABLE, "operator": "Exists"}], (None, None)),
    "that taint for a minute": ([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}], (60, 60)),
    "that taint and all": ([ANY, {"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}], (60, 60)),
}


@pytest.mark.parametrize("name", GIVEN)
def test_ours_count_before_those_of_the_user_unless_he_names_that_very_taint(name: str) -> None:
    given, (training, other) = GIVEN[name]
    for stage, seconds in (("Train", training), ("Prepare", other)):
        made = template(stage, scheduling={"tolerations": given})
        assert tolerated(made, UNREACHABLE) == seconds
        assert all(each in made["spec"]["tolerations"] for each in given)
    world = deployments.World(deployments.UNGATED | {"scheduling": {"tolerations": given}}, deployments.job(), deployments.claim())
    world.step()
    (deployment,) = (child for (kind, _), child in world.children.items() if kind == "Deployment")
    assert tolerated(deployment["spec"]["template"], UNREACHABLE) == other
    assert tolerated(deployment["spec"]["template"], NOT_READY) == 300


def mark(pod: Object, world: World, **ready: str) -> None:
    """The node controller marks the pod of a node that is silent."""
    now = timestamp(world.now)
    conditions = [{"type": "Ready", "status": "False", "lastTransitionTime": now} | ready]
    conditions += [{"type": name, "status": "True", "lastTransitionTime": now} for name in ("ContainersReady", "PodScheduled")]
    running = {"name": "stage", "ready": True, "state": {"running": {"startedAt": now}}}
    pod["status"] = {"phase": "Running", "startTime": now, "conditions": conditions, "containerStatuses": [running]}
    pod["spec"] = {"nodeName": "dead"}


@pytest.mark.parametrize("parallelism", [{"nodes": 1, "ddp": {}}, TWO_NODES], ids=str)
def test_a_training_pod_that_nobody_deletes_is_lost_with_its_node(parallelism: Object) -> None:
    life = trained(parallelism=parallelism, scheduling={"tolerations": [ANY]})
    pod = life.pods("Train")[0]
    mark(pod, life)
    life.step()
    assert life.plan.wake_after == 6 * MINUTE
    life.later(6 * MINUTE - 1).step()
    assert life.plan.delete == ()
    # Asked for at first, as any deletion is; that its node will not carry it out is known, so by force the next time.
    life.later(1)
    life.step()
    assert [entry["metadata"]["name"] for entry in life.plan.delete] == [pod["metadata"]["name"]]
    life.children["Pod", pod["metadata"]["name"]] = pod
    pod["metadata"] |= {"deletionTimestamp": timestamp(life.later(120).now), "deletionGracePeriodSeconds": 120}
    life.later(-120).step()
    assert "deletionTimestamp" in life.plan.delete[0]["metadata"]
    assert "NodeLost" in life.status["stages"][1]["disruption"]
    life.job("Train")["status"] = {"conditions": [{"type": "Failed", "status": "True"}]}
    for other in life.pods("Train"):
        other["status"]["phase"] = "Failed"
    life.step()
    assert (last(life)["reason"], last(life)["free"]) == ("Disrupted", True)
    assert life.status["stages"][1]["avoidNodes"] == ["dead"], "a pod that tolerates all could be bound to it again"


def test_a_pod_whose_kubelet_answers_again_stays() -> None:
    life = trained()
    mark(life.pods("Train")[0], life)
    life.later(5 * MINUTE).step()
    mark(life.pods("Train")[0], life, status="True")
    life.later(60 * MINUTE).step()
    assert life.plan.delete == ()


def test_a_pod_that_was_bound_to_a_dead_node_is_lost_too() -> None:
    life = trained(scheduling={"tolerations": [ANY]})
    pod = life.pods("Train")[0]
    bound = {"type": "PodScheduled", "status": "True", "lastTransitionTime": timestamp(life.now)}
    pod["status"] = {"phase": "Pending", "conditions": [bound]}
    life.later(6 * MINUTE - 1).step()
    assert life.plan.delete == ()
    # Its image may take longer than that to come: then its kubelet knows of it.
    pod["status"]["startTime"] = timestamp(life.now)
    life.later(60 * MINUTE).step()
    assert life.plan.delete == ()
    del pod["status"]["startTime"]
    life.step()
    assert len(life.plan.delete) == 1


def test_a_user_who_gives_a_silent_node_more_time_gets_it() -> None:
    life = trained(scheduling={"tolerations": [{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3600}]})
    mark(life.pods("Train")[0], life)
    life.later(3600).step()
    assert life.plan.delete == ()
    life.later(15).step()
    assert len(life.plan.delete) == 1


def test_an_evaluation_on_a_dead_node_is_lost_too() -> None:
    world = evalruns.Evaluation(evalruns.BY_URI | {"scheduling": {"tolerations": [ANY]}}, *evalruns.CLAIMS)
    world.rest()
    world.run("Evaluate", "tested")
    mark(world.pods("Evaluate", "tested")[0], world)
    world.later(6 * MINUTE).step()
    assert [entry["kind"] for entry in world.plan.delete] == ["Pod"]


def test_a_serving_pod_on_a_dead_node_is_deleted_once_and_so_replaced() -> None:
    world = deployments.World(deployments.UNGATED | {"scheduling": {"tolerations": [ANY]}}, deployments.job(), deployments.claim())
    name = world.serve()
    world.unready(name)
    pod = world.pods[name]
    mark(pod, world)  # type: ignore[arg-type]
    world.step()
    assert world.plan.wake_after == 615
    world.wait(614)
    world.step()
    assert world.plan.delete == ()
    world.wait(1)
    world.step()
    assert [entry["metadata"]["name"] for entry in world.plan.delete] == [pod["metadata"]["name"]]
    pod["metadata"]["deletionTimestamp"] = timestamp(world.now)
    world.pods[name] = pod
    world.step()
    assert world.plan.delete == (), "its node is dead, or will end it: nothing waits for that"
