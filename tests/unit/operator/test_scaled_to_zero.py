"""At zero replicas nothing is promoted that no pod has proven, and what has served is not let go for it."""

from __future__ import annotations

from tests.unit.operator.deployments import GATED, UNGATED, World, job
from tests.unit.operator.test_modeldeployment_rollout import NEW_GATE, NEW_MODEL, serving_world

ENGINE = {"vllm": {"maxModelLen": 512}}


def asleep() -> tuple[World, str]:
    """A world that has served, and is scaled to zero."""
    world, old = serving_world()
    world.change(replicas=0)
    world.step()
    world.ready(old, 0)
    world.step()
    return world, old


def settled(world: World) -> World:
    """The Deployment controller has seen all Deployments; days pass."""
    for _ in range(4):
        for name in world.revisions():
            world.ready(name, world.owner["spec"]["replicas"])
        world.wait(86_400)
        world.step()
    return world


def test_a_change_at_zero_replicas_replaces_nothing_until_it_has_been_tried() -> None:
    world, old = asleep()
    world.change(engine=ENGINE)
    world.step()
    new = world.named("Candidate")
    settled(world)
    assert (world.revisions(), world.selected()) == ({new: "Candidate", old: "Active"}, old)
    assert world.told()["Ready"] == "True/ScaledToZero"
    assert f"revision {new} has not been tried" in world.message("Ready")
    world.change(replicas=1)
    world.step()
    world.ready(old)
    world.unready(new, restartCount=4, lastState={"terminated": {"exitCode": 1, "message": "no such option"}})
    world.step()
    assert (world.revisions(), world.selected()) == ({new: "Candidate", old: "Active"}, old)
    assert world.told()["Ready"] == "True/Serving"
    world.ready(new)
    world.step()
    assert (world.revisions(), world.selected()) == ({new: "Active", old: "Draining"}, new)


def test_a_change_that_is_taken_back_at_zero_leaves_the_one_that_served() -> None:
    world, old = asleep()
    before = dict(world.owner["spec"])
    world.change(model=NEW_MODEL, gate=NEW_GATE)
    world.step()
    settled(world)
    world.change(**before)
    settled(world)
    assert world.revisions() == {old: "Active"}
    assert "has not been tried" not in world.message("Ready")


def test_a_first_revision_at_zero_is_a_candidate_until_a_pod_has_served() -> None:
    world = World(UNGATED | {"replicas": 0}, job())
    world.step()
    new = world.named("Candidate")
    settled(world)
    assert (world.revisions(), world.told()["Ready"]) == ({new: "Candidate"}, "True/ScaledToZero")
    world.change(replicas=2)
    world.step()
    assert world.told()["Ready"] == "False/Starting"
    world.ready(new, 2)
    world.step()
    assert world.revisions() == {new: "Active"}


def test_what_has_been_proven_stays_so_at_zero() -> None:
    world, old = asleep()
    settled(world)
    assert (world.revisions(), world.told()["Ready"], GATED["replicas"]) == ({old: "Active"}, "True/ScaledToZero", 1)
