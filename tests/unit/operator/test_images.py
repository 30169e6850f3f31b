"""The image of the Job whose result came first is the object's; until then the configured one is, also while another cannot be pulled."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.operator import evalruns
from tests.unit.operator.finetunejobs import WORKING, Life, last
from tests.unit.operator.makers import World, claim, refusal
from tests.unit.operator.test_waiting_for_nodes import place
from tunesmith.core.objects import Images, Object
from tunesmith_contract.stages import CONTRACT_VERSION

OTHER = "registry.example/trainer:2"


def configure(world: World, image: str = OTHER) -> World:
    """The chart is upgraded."""
    world.config = replace(world.config, images=Images(image, "registry.example/serving:1"))
    return world


def image(world: World, stage: str, part: str = "") -> str:
    found: str = world.job(stage, part)["spec"]["template"]["spec"]["containers"][0]["image"]
    return found


def pinned(world: World) -> str:
    found: str = world.status["resolved"]["images"]["trainer"]
    return found


def unpullable(world: World, stage: str, part: str = "", reason: str = "ImagePullBackOff") -> None:
    world.run(stage, part)
    for pod in world.pods(stage, part):
        place(pod, world, {"waiting": {"reason": reason, "message": "not found"}})  # type: ignore[arg-type]
    world.step()


def test_an_object_that_waits_begins_with_the_image_of_then() -> None:
    life = Life(claim("models"))
    life.step()
    configure(life).step()
    assert pinned(life) == OTHER
    life.references |= Life().references
    life.step()
    assert image(life, "Prepare") == pinned(life) == OTHER


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"])
def test_an_attempt_whose_image_cannot_be_pulled_is_made_again_with_the_one_that_is_configured_by_now(reason: str) -> None:
    life = Life(retries=0)
    life.step()
    unpullable(life, "Prepare", reason=reason)
    life.later(60).step()
    assert life.created == ["support-bot-prepare-1-5f0c1"], "no other image is configured"
    configure(life).step()
    life.vanish().step()
    assert (image(life, "Prepare"), pinned(life), life.truths()) == (OTHER, OTHER, WORKING)
    assert (last(life)["reason"], last(life)["free"], life.status["retriesSpent"]) == ("ImageChanged", True, 0)
    life.succeed("Prepare")
    assert image(life, "Train") == OTHER


def test_an_upgrade_changes_nothing_for_what_runs_or_has_a_result() -> None:
    life = Life()
    life.step()
    first = pinned(life)
    configure(life).step()
    assert pinned(life) == first, "its pods may be pulling it"
    life.run("Prepare").step()
    life.succeed("Prepare")
    assert image(life, "Train") == pinned(life) == first
    unpullable(life, "Train")
    assert (image(life, "Train"), life.condition("Reconciling")["reason"]) == (first, "ImagePullBackOff"), "the run rests on it"


def test_an_attempt_after_a_failure_has_the_present_image_until_one_has_succeeded() -> None:
    life = Life()
    life.step()
    configure(life)
    life.end("Prepare", refusal("Prepare", 70, "InternalError")).step()
    life.later(5).step()
    assert image(life, "Prepare") == pinned(life) == OTHER


def test_the_image_of_the_very_job_that_succeeded_is_pinned_where_the_status_was_lost() -> None:
    life = Life()
    life.step()
    first = pinned(life)
    life.run("Prepare").step()
    life.owner["status"] = {}
    configure(life).step()
    assert pinned(life) == OTHER
    life.succeed("Prepare")
    assert (pinned(life), image(life, "Train")) == (first, first)
    assert "contractVersion" not in life.status["resolved"], "not known, so the first, which every image understands"


def test_an_object_that_an_older_release_pinned_keeps_its_image_unless_that_cannot_be_pulled() -> None:
    life = Life(suspend=True)
    life.step()
    life.owner["status"]["resolved"] |= {"images": {"trainer": "registry.example/trainer:0"}}
    del life.owner["status"]["resolved"]["contractVersion"]
    life.edit(suspend=False).step()
    assert image(life, "Prepare") == "registry.example/trainer:0"
    unpullable(life, "Prepare")
    life.vanish().step()
    assert (image(life, "Prepare"), life.status["resolved"]["contractVersion"]) == ("registry.example/trainer:1", CONTRACT_VERSION)


def test_the_models_of_an_eval_run_are_evaluated_by_one_image() -> None:
    run = evalruns.Evaluation(evalruns.GATED, evalruns.READY_JOB, *evalruns.CLAIMS)
    run.step()
    folder = run.status["resolved"]["runURI"]
    unpullable(run, "Evaluate", "base")
    for part in ("tested", "unquantized"):
        run.run("Evaluate", part, phase="Pending")
    configure(run).step()
    gone = [key for key, child in run.children.items() if "deletionTimestamp" in child["metadata"]]
    assert len(gone) == 3
    del run.children[gone[0]]
    run.step()
    assert run.created == [name for name in run.created if "-1-" in name], "none begins before all have ended"
    run.vanish().step()
    made: Object = {part: image(run, "Evaluate", part) for part in ("tested", "base", "unquantized")}
    assert set(made.values()) == {OTHER}
    assert (pinned(run), run.status["resolved"]["runURI"] != folder) == (OTHER, True)
