"""Laws that hold whatever happens to a ModelDeployment, in whatever order."""

import copy
import json
import random
from collections import Counter
from collections.abc import Callable

import pytest

from tests.unit.operator.deployments import GATED, GOOD, OTHER, World, evaluation, job
from tunesmith.core.objects import Object
from tunesmith.modeldeployment.build import REVISION_KINDS

MISMATCH = json.dumps({"reason": "DigestMismatch", "message": "changed"})
MODELS = [("bot", "bot-eval"), ("bot2", "bot2-eval")]


def a_world() -> World:
    """Two models; one EvalRun has passed, the other has not finished."""
    return World(GATED, job(), evaluation(), job("bot2", OTHER), evaluation(None, OTHER, "bot2-eval"))


def choose_model(world: World, chance: random.Random) -> None:
    name, gate = chance.choice(MODELS)
    world.change(model={"fineTuneJobRef": {"name": name}, "artifact": "Merged"}, gate={"evalRunRefs": [{"name": gate}]})


def change_engine(world: World, chance: random.Random) -> None:
    world.change(engine={"vllm": {"maxModelLen": chance.choice([64, 128])}})


def change_replicas(world: World, chance: random.Random) -> None:
    world.change(replicas=chance.choice([0, 1, 2]))


def judge(world: World, chance: random.Random) -> None:
    world.refer(evaluation(chance.choice([None, "Passed", "Failed"]), OTHER, "bot2-eval"))


def forget(world: World, chance: random.Random) -> None:
    for key in [key for key in world.references if chance.random() < 0.3]:
        del world.references[key]


def remake(world: World, _: random.Random) -> None:
    for entry in (job(), evaluation(), job("bot2", OTHER)):
        world.refer(entry)


def become_ready(world: World, chance: random.Random) -> None:
    for name in world.revisions():
        if ("Deployment", world.child(name)) in world.children and chance.random() < 0.7:
            world.ready(name, world.owner["spec"]["replicas"])


def become_unready(world: World, chance: random.Random) -> None:
    for name in world.revisions():
        if ("Deployment", world.child(name)) in world.children and chance.random() < 0.3:
            world.unready(name, lastState={"terminated": {"exitCode": 65, "message": MISMATCH}})


def upgrade(world: World, chance: random.Random) -> None:
    world.image = f"registry.example/serving:{chance.choice('12')}"
    world.settings = {"image_pull_policy": chance.choice(["Always", "Never"]), "image_pull_secrets": chance.choice([(), ("mirror",)])}


def lose_a_child(world: World, chance: random.Random) -> None:
    if world.children:
        del world.children[chance.choice(sorted(world.children))]


def pass_time(world: World, chance: random.Random) -> None:
    world.wait(chance.choice([1, 15, 40]))


EVENTS: list[Callable[[World, random.Random], None]] = [
    choose_model,
    change_engine,
    change_replicas,
    judge,
    forget,
    remake,
    become_ready,
    become_ready,
    become_unready,
    upgrade,
    lose_a_child,
    pass_time,
    pass_time,
]


def rendered(world: World) -> dict[str, Object]:
    """What the pods of each Deployment are made from."""
    return {name: entry["spec"]["template"] for (kind, name), entry in world.children.items() if kind == "Deployment"}


def check(world: World, served: bool) -> None:
    """The laws, after any one step."""
    states = Counter(world.revisions().values())
    assert all(number == 1 for number in states.values()), states
    assert not served or states["Active"] == 1, "what served once is never taken away without a successor"
    # Exactly the children of the recorded revisions exist, and the Service selects one of them.
    wanted = {(kind, world.child(name)) for name in world.revisions() for kind in REVISION_KINDS}
    shared = {("Service", "support-bot"), ("NetworkPolicy", "support-bot-5f0c1")}
    assert set(world.children) == wanted | (shared if world.revisions() else set())
    if world.revisions():
        assert world.selected() == world.named("Active" if "Active" in states else "Candidate")
    assert all(entry["verdict"] == "Passed" for entry in world.owner["status"]["revisions"])
    told = {kind: text.split("/")[0] for kind, text in world.told().items()}
    assert not (told["Stalled"] == told["Reconciling"] == "True")
    assert "GatePassed" in told


@pytest.mark.parametrize("seed", range(40))
def test_the_laws_hold_in_any_order_of_events(seed: int) -> None:
    chance, world, served = random.Random(seed), a_world(), False
    world.step()
    for _ in range(40):
        chance.choice(EVENTS)(world, chance)
        before = rendered(world)
        world.step()
        assert all(before.get(name, template) == template for name, template in rendered(world).items()), "else its pods would restart"
        served = served or "Active" in world.revisions().values()
        check(world, served)


@pytest.mark.parametrize("seed", range(30))
def test_it_settles_and_then_writes_nothing(seed: int) -> None:
    chance, world = random.Random(seed), a_world()
    world.step()
    for _ in range(15):
        chance.choice(EVENTS)(world, chance)
        world.step()
    for _ in range(6):
        world.wait(40)
        world.step()
    before = copy.deepcopy((world.owner["status"], world.children))
    world.wait(1000)
    world.step()
    assert (world.owner["status"], world.children) == before
    assert world.plan.delete == () and world.plan.wake_after is None


@pytest.mark.parametrize("seed", range(40))
def test_a_crash_between_the_status_and_the_writes_changes_nothing_in_the_end(seed: int) -> None:
    """The status of a step is written, its plan is not carried out; the next step mends it, and nothing is served unjudged meanwhile."""
    chance, world = random.Random(seed), a_world()
    world.step()
    for _ in range(25):
        chance.choice(EVENTS)(world, chance)
        children = copy.deepcopy(world.children)
        world.step()
        if chance.random() < 0.4:
            world.children = children
            world.wait(chance.choice([1, 100]))
            world.step()
        check(world, False)


def test_the_pinned_digests_are_those_of_the_models_that_passed() -> None:
    world = a_world()
    world.serve()
    assert {entry["digest"] for entry in world.owner["status"]["revisions"]} == {GOOD}
