"""What is made for a ModelDeployment. The golden file shows all of it; write it anew with UPDATE_GOLDEN=1."""

import json
import os
from pathlib import Path

import yaml

from tests.orders import orders
from tests.unit.operator.deployments import GATED, UNGATED, World, evaluation, job
from tunesmith.core.objects import Object
from tunesmith_contract.stages import ServeInput

GOLDEN = Path(__file__).parent / "golden" / "modeldeployment.yaml"
FULL: Object = {
    **GATED,
    "engine": {"vllm": {"maxModelLen": 4096, "overrides": {"enable_prefix_caching": "true"}}},
    "replicas": 2,
    "resources": {"gpus": 2, "cpu": "8", "memory": "32Gi", "sharedMemory": "2Gi"},
    "scheduling": {"nodeSelector": {"pool": "gpu"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]},
}


def deployment(world: World) -> Object:
    """The one Deployment that the last step applied."""
    return next(entry for entry in world.plan.apply if entry["kind"] == "Deployment")


def test_the_manifests_are_the_golden_ones() -> None:
    world = World(FULL, job(), evaluation())
    world.step()
    text = yaml.safe_dump_all(json.loads(json.dumps(world.plan.apply)), sort_keys=False, width=150)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_the_policy_comes_first_and_the_service_after_what_it_selects() -> None:
    world = World(UNGATED, job())
    world.step()
    assert [entry["kind"] for entry in world.plan.apply] == ["NetworkPolicy", "Service", "Deployment", "Service"]
    assert world.plan.apply[-1]["metadata"]["name"] == "support-bot"
    assert world.plan.delete == world.plan.create == ()


def test_the_launchers_orders_follow_the_contract() -> None:
    world = World(FULL, job(), evaluation())
    world.step()
    given = ServeInput.model_validate(orders(deployment(world)))
    assert (given.device, given.served_model_name, given.engine.vllm and given.engine.vllm.tensor_parallel_size) == ("GPU", "support-bot", 2)


def test_pods_are_reached_from_their_namespace_alone_and_reach_name_services_alone() -> None:
    world = World(UNGATED, job())
    world.step()
    policy = world.plan.apply[0]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= deployment(world)["spec"]["template"]["metadata"]["labels"].items()
    assert policy["ingress"] == [{"from": [{"podSelector": {}}], "ports": [{"port": "http", "protocol": "TCP"}]}]
    assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} == {53}


def test_the_charts_admin_may_do_without_policies() -> None:
    world = World(UNGATED, job())
    world.settings = {"network_policies": False}
    world.step()
    assert "NetworkPolicy" not in {entry["kind"] for entry in world.plan.apply}


def test_the_names_of_the_longest_object_fit() -> None:
    world = World(UNGATED, job())
    world.owner["metadata"]["name"] = "m" * 40
    world.step()
    assert all(len(entry["metadata"]["name"]) <= 63 for entry in world.plan.apply)


def test_a_pod_may_finish_what_it_has_begun() -> None:
    world = World(UNGATED, job())
    world.step()
    pod = deployment(world)["spec"]["template"]["spec"]
    given = orders(deployment(world))
    assert given["gracePeriodSeconds"] == pod["terminationGracePeriodSeconds"] >= given["pauseSeconds"] + 60
    assert 5 <= given["pauseSeconds"] <= 15
    assert "lifecycle" not in pod["containers"][0], "a sleep there would be taken from the time that the launcher was told"


def test_the_loss_of_a_node_takes_few_pods() -> None:
    world = World(UNGATED, job())
    world.step()
    template = deployment(world)["spec"]["template"]
    (rule,) = template["spec"]["topologySpreadConstraints"]
    assert rule["labelSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert (rule["topologyKey"], rule["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")


def test_the_model_is_mounted_read_only() -> None:
    world = World(UNGATED, job())
    world.step()
    mounts = deployment(world)["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert {"name": "claim-0", "mountPath": "/mnt/pvc/models", "readOnly": True} in mounts


def test_the_template_holds_nothing_that_changes_within_a_revision() -> None:
    world = World(UNGATED, job())
    world.step()
    before = deployment(world)["spec"]["template"]
    world.change(replicas=5)
    world.step()
    assert deployment(world)["spec"]["template"] == before
