"""What counts as drift, and what the server's own additions do not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from tunesmith.core.drift import ANNOTATION, differences, stamp
from tunesmith.core.objects import Object

DESIRED: Object = {
    "kind": "Deployment",
    "metadata": {"name": "web", "labels": {"app": "web"}},
    "spec": {
        "replicas": 0,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "spec": {
                "containers": [
                    {
                        "name": "engine",
                        "args": ["--port", "8000"],
                        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": ""}],
                        "resources": {"requests": {"cpu": "1000m", "memory": "1024Mi"}},
                        "securityContext": {"privileged": False},
                        "ports": [{"containerPort": 8000}],
                    }
                ],
                "nodeSelector": {"node-role.kubernetes.io/gpu": ""},
                "tolerations": [{"key": "", "operator": "Exists"}],
                "volumes": [{"name": "tmp", "emptyDir": {}}],
            }
        },
    },
}


def served(desired: Object) -> Object:
    """`desired` as an API server would hold it: with defaults, normalised, empty fields left out."""
    live = copy.deepcopy(stamp(desired))
    live["metadata"] |= {"uid": "u", "resourceVersion": "7"}
    live["status"] = {"replicas": 0}
    container = live["spec"]["template"]["spec"]["containers"][0]
    container["resources"]["requests"] = {"cpu": "1", "memory": "1Gi"}
    container["terminationMessagePath"] = "/dev/termination-log"
    del container["env"][1]["value"], live["spec"]["template"]["spec"]["tolerations"][0]["key"]
    container["ports"][0]["protocol"] = "TCP"
    live["spec"]["strategy"] = {"type": "RollingUpdate"}
    return live


def container(live: Object) -> Object:
    found: Object = live["spec"]["template"]["spec"]["containers"][0]
    return found


def test_what_the_server_added_normalised_or_left_out_is_no_drift() -> None:
    assert not differences(stamp(DESIRED), served(DESIRED))


@pytest.mark.parametrize(
    "edit",
    [
        lambda live: live["metadata"]["labels"].clear(),
        lambda live: live["spec"].update(replicas=3),
        lambda live: live["spec"]["selector"]["matchLabels"].update(more="x"),
        lambda live: container(live)["args"].append("--debug"),
        lambda live: container(live)["args"].reverse(),
        lambda live: container(live)["env"].pop(0),
        lambda live: container(live)["env"][0].update(value="2"),
        lambda live: container(live)["resources"]["requests"].update(cpu="2"),
        lambda live: container(live)["resources"]["requests"].update(memory="1G"),
        lambda live: container(live).update(ports=[]),
        lambda live: live["spec"]["template"]["spec"].pop("volumes"),
        lambda live: live["spec"]["template"]["spec"].update(volumes=[{"name": "tmp", "hostPath": {"path": "/"}}]),
        lambda live: live["spec"]["template"]["spec"]["tolerations"].append({"operator": "Exists", "effect": "NoExecute"}),
        lambda live: live["spec"]["template"]["spec"]["nodeSelector"].clear(),
        lambda live: live["spec"].pop("replicas"),
        lambda live: container(live)["securityContext"].pop("privileged"),
        lambda live: live["metadata"]["annotations"].update({ANNOTATION: "other"}),
    ],
)
def test_an_edit_by_hand_is_drift(edit: Callable[[Object], None]) -> None:
    live = served(DESIRED)
    edit(live)
    assert differences(stamp(DESIRED), live)


@pytest.mark.parametrize(
    "edit",
    [
        lambda live: live["metadata"].update(annotations=live["metadata"]["annotations"] | {"team": "x"}),
        lambda live: container(live)["env"].append({"name": "INJECTED", "value": "1"}),
        lambda live: live["spec"]["template"]["spec"]["containers"].append({"name": "sidecar"}),
    ],
)
def test_what_an_apply_would_not_take_away_is_no_drift(edit: Callable[[Object], None]) -> None:
    """Else every reconcile would write."""
    live = served(DESIRED)
    edit(live)
    assert not differences(stamp(DESIRED), live)


def test_a_difference_is_told_by_its_path() -> None:
    live = served(DESIRED)
    container(live)["env"][0]["value"] = "2"
    live["spec"]["replicas"] = 3
    live["spec"]["template"]["spec"]["containers"].insert(0, {"name": "sidecar"})
    assert differences(stamp(DESIRED), live) == {".spec.replicas", ".spec.template.spec.containers[0].env[0].value"}


def test_a_rule_more_in_a_network_policy_is_drift() -> None:
    policy = {"kind": "NetworkPolicy", "metadata": {"name": "web"}, "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}}
    live = copy.deepcopy(stamp(policy))
    assert not differences(stamp(policy), live)
    live["spec"]["ingress"].append({})
    assert differences(stamp(policy), live) == {".spec.ingress"}


def test_a_network_policy_that_protects_fewer_pods_is_drift() -> None:
    policy = {"kind": "NetworkPolicy", "metadata": {"name": "web"}, "spec": {"podSelector": {"matchLabels": {"app": "web"}}}}
    live = copy.deepcopy(stamp(policy))
    live["spec"]["podSelector"]["matchExpressions"] = [{"key": "app", "operator": "NotIn", "values": ["web"]}]
    assert differences(stamp(policy), live) == {".spec.podSelector"}


def test_a_field_no_longer_asked_for_is_drift() -> None:
    less = copy.deepcopy(DESIRED)
    del less["metadata"]["labels"]["app"]
    assert differences(stamp(less), served(DESIRED))


def test_the_stamp_does_not_touch_what_it_stamps_and_depends_on_it_alone() -> None:
    before = copy.deepcopy(DESIRED)
    assert stamp(DESIRED) == stamp(copy.deepcopy(DESIRED))
    assert before == DESIRED
