"""What the pods of a revision are made from stays as it was when the revision was made, whatever operator renders it later."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest

from tests.unit.operator.deployments import UNGATED, World, job
from tunesmith.core import drift
from tunesmith.core.objects import Object
from tunesmith.modeldeployment import build
from tunesmith.modeldeployment.rendering import ANNOTATION
from tunesmith.workload import podspec

LONGEST: Object = {
    **UNGATED,
    # The longest in JSON, and again when that is a value in JSON.
    "engine": {"vllm": {"overrides": {f"x{number:02}".ljust(64, "x"): "\U0001f600" * 512 for number in range(32)}}},
    "scheduling": {
        "nodeSelector": {f"{'d' * 250}.{number:02}/{'n' * 63}": "v" * 63 for number in range(16)},
        "tolerations": [{"key": f"{'d' * 250}.{number:02}/{'n' * 63}", "operator": "Equal", "value": "v" * 63} for number in range(16)],
    },
}


def rendered(world: World, revision: str) -> Object:
    """What the revision's pods are made from: the template as it is applied now."""
    name = world.child(revision)
    applied = {entry["kind"]: entry for entry in world.plan.apply if entry["metadata"]["name"] == name}
    template: Object = copy.deepcopy(applied["Deployment"]["spec"]["template"])
    return template


def live(world: World, revision: str) -> Object:
    """The revision's Deployment."""
    return world.children["Deployment", world.child(revision)]


def a_render_that_fails(*_: object) -> Object:
    raise AssertionError("what is recorded is not rendered")


def other_settings(world: World, _: pytest.MonkeyPatch) -> None:
    world.settings = {"image_pull_policy": "Always", "image_pull_secrets": ("mirror",), "network_policies": False, "progress_ca": "PEM\n"}
    world.image = "registry.example/serving:2"


def other_pods(_: World, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(podspec, "USER", 1000)
    render = podspec.pod_template
    patch.setattr(build, "pod_template", lambda labels, workload, config, spec: render(labels, workload, config, {**spec, "hostNetwork": False}))


def other_probes_and_orders(_: World, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(build, "_container", lambda: {"ports": []})
    patch.setattr(build, "PAUSE_SECONDS", 20)


def a_stricter_render(_: World, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(build, "pod_template", a_render_that_fails)


UPGRADES = [other_settings, other_pods, other_probes_and_orders, a_stricter_render]


@pytest.mark.parametrize("upgrade", UPGRADES)
def test_an_upgrade_changes_nothing_that_the_pods_of_a_revision_are_made_from(
    monkeypatch: pytest.MonkeyPatch, upgrade: Callable[[World, pytest.MonkeyPatch], None]
) -> None:
    world = World(UNGATED, job())
    name = world.serve()
    before = rendered(world, name)
    upgrade(world, monkeypatch)
    for replicas in (1, 3):
        world.change(replicas=replicas)
        world.step()
        assert rendered(world, name) == before
        assert live(world, name)["spec"]["replicas"] == replicas
    assert world.revisions() == {name: "Active"}


def test_a_revision_made_after_an_upgrade_is_rendered_by_it_and_the_old_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(UNGATED, job())
    old = world.serve()
    before = rendered(world, old)
    other_settings(world, monkeypatch)
    world.change(engine={"vllm": {"maxModelLen": 64}})
    world.step()
    new = world.named("Candidate")
    pod = rendered(world, new)["spec"]
    assert (pod["imagePullSecrets"], pod["containers"][0]["imagePullPolicy"]) == ([{"name": "mirror"}], "Always")
    world.ready(new)
    world.step()
    assert world.revisions() == {new: "Active", old: "Draining"}
    assert rendered(world, old) == before


STATES: dict[str, tuple[Object, bool]] = {
    "no image": ({"state": {"waiting": {"reason": "ImagePullBackOff", "message": "unauthorized"}}}, True),
    "an engine that fails": ({"restartCount": 2, "lastState": {"terminated": {"exitCode": 70}}}, True),
    "an engine that loads the model": ({"state": {"running": {}}}, False),
}


@pytest.mark.parametrize("state", STATES)
def test_a_candidate_that_cannot_start_takes_up_new_settings_and_one_that_starts_does_not(state: str) -> None:
    container, mended = STATES[state]
    world = World(UNGATED, job())
    world.step()
    name = world.named("Candidate")
    world.unready(name, **container)
    world.step()
    before = rendered(world, name)
    world.settings = {"image_pull_secrets": ("mirror",)}
    for _ in range(2):
        world.step()
        assert ("imagePullSecrets" in rendered(world, name)["spec"]) == mended
    assert mended or rendered(world, name) == before


def test_a_candidate_whose_pods_may_not_be_made_takes_up_what_a_new_version_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(UNGATED, job())
    world.step()
    name = world.named("Candidate")
    live(world, name)["status"] = {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]}
    other_pods(world, monkeypatch)
    world.step()
    assert rendered(world, name)["spec"]["securityContext"]["runAsUser"] == 1000


def test_what_serves_and_cannot_start_a_pod_more_is_not_restarted_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(UNGATED, job())
    name = world.serve()
    before = rendered(world, name)
    world.unready(name, **STATES["no image"][0])
    other_settings(world, monkeypatch)
    world.step()
    assert rendered(world, name) == before


def test_what_is_edited_after_an_upgrade_is_put_back_as_it_was_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(UNGATED, job())
    name = world.serve()
    before = rendered(world, name)
    other_settings(world, monkeypatch)
    live(world, name)["spec"]["template"]["spec"]["containers"][0]["image"] = "other:1"
    live(world, name)["spec"]["template"]["metadata"]["annotations"][podspec.ANNOTATIONS[podspec.STAGE_FILE]] = "{}"
    world.step()
    assert rendered(world, name) == before


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"template":{},"digest":""}', '{"template":1}'])
def test_a_record_that_is_edited_or_taken_away_is_put_back_and_changes_nothing(text: str | None) -> None:
    world = World(UNGATED, job())
    name = world.serve()
    before, record = rendered(world, name), live(world, name)["metadata"]["annotations"].pop(ANNOTATION)
    if text is not None:
        live(world, name)["metadata"]["annotations"][ANNOTATION] = text
    # Edited beside it: the stamp tells that today's code made it, so what it was is known.
    live(world, name)["spec"]["template"]["spec"]["containers"][0]["image"] = "other:1"
    live(world, name)["spec"]["replicas"] = 7
    world.step()
    assert rendered(world, name) == before
    assert live(world, name)["metadata"]["annotations"][ANNOTATION] == record


def test_an_edited_template_in_the_record_is_not_believed() -> None:
    world = World(UNGATED, job())
    name = world.serve()
    before, notes = rendered(world, name), live(world, name)["metadata"]["annotations"]
    notes[ANNOTATION] = notes[ANNOTATION].replace("serving:1", "other:1")
    world.step()
    assert rendered(world, name) == before


@pytest.mark.parametrize("upgrade", UPGRADES[:3])
def test_what_an_older_operator_made_and_another_would_render_otherwise_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, upgrade: Callable[[World, pytest.MonkeyPatch], None]
) -> None:
    world = World(UNGATED, job())
    name = world.serve()
    del live(world, name)["metadata"]["annotations"][ANNOTATION]
    # What the server adds by itself: not to ask for it would be no change either.
    live(world, name)["spec"]["template"]["spec"]["dnsPolicy"] = "ClusterFirst"
    template = copy.deepcopy(live(world, name)["spec"]["template"])
    upgrade(world, monkeypatch)
    for _ in range(2):
        world.step()
        assert rendered(world, name) == template
    live(world, name)["spec"]["template"]["spec"].pop("dnsPolicy")
    world.step()
    assert rendered(world, name) == template


def test_what_an_older_operator_made_just_so_gets_its_record_and_no_new_stamp() -> None:
    world = World(UNGATED, job())
    name = world.serve()
    before, notes = rendered(world, name), live(world, name)["metadata"]["annotations"]
    stamped = notes[drift.ANNOTATION]
    del notes[ANNOTATION]
    live(world, name)["spec"]["template"]["spec"]["dnsPolicy"] = "ClusterFirst"
    world.step()
    assert rendered(world, name) == before
    assert live(world, name)["metadata"]["annotations"][drift.ANNOTATION] == stamped


def test_without_both_annotations_a_revision_is_rendered_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(UNGATED, job())
    name = world.serve()
    other_settings(world, monkeypatch)
    live(world, name)["metadata"]["annotations"].clear()
    world.step()
    assert rendered(world, name)["spec"]["containers"][0]["imagePullPolicy"] == "Always"
    assert world.revisions() == {name: "Active"}


def test_a_deployment_that_was_deleted_is_rendered_anew_with_the_image_of_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(UNGATED, job())
    name = world.serve()
    other_settings(world, monkeypatch)
    del world.children["Deployment", world.child(name)]
    world.step()
    container = rendered(world, name)["spec"]["containers"][0]
    assert (container["imagePullPolicy"], container["image"]) == ("Always", "registry.example/serving:1")


def test_the_record_of_the_longest_spec_fits_into_an_annotation() -> None:
    world = World(LONGEST, job())
    world.step()
    name = world.named("Candidate")
    notes = live(world, name)["metadata"]["annotations"]
    assert sum(len(key) + len(value.encode()) for key, value in notes.items()) <= 256 * 1024 - 1024, "the server's limit, and room for others'"
    assert json.loads(notes[ANNOTATION])["template"] == rendered(world, name)
