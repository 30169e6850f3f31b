"""FineTuneJob and EvalRun tell the same states in the same words."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.operator.evalruns import CLAIMS, GATED, READY_JOB, Evaluation
from tests.unit.operator.finetunejobs import Life
from tests.unit.operator.makers import refusal, variant


def fine_tune_job() -> Life:
    life = Life(variants=[variant("w8a8"), variant("w4a16", "W4A16")])
    life.step()
    return life


def eval_run() -> Evaluation:
    world = Evaluation(GATED, READY_JOB, *CLAIMS)
    world.rest()
    return world


KINDS = pytest.mark.parametrize(("make", "stage", "part"), [(fine_tune_job, "Prepare", ""), (eval_run, "Evaluate", "tested")])


@KINDS
def test_ready_succeeded_and_finished_have_one_reason(make: Any, stage: str, part: str) -> None:
    world = make()
    for suspend in (False, True, False):
        world.edit(suspend=suspend)
        for _ in range(3):
            world.step()
            assert len({world.condition(kind)["reason"] for kind in ("Ready", "Succeeded", "Finished")}) == 1
        world.children.clear()
    world.problem = {"reason": "Forbidden", "message": "no"}
    world.step()
    assert (world.condition("Stalled")["status"], world.condition("Finished")["reason"]) == ("True", "Forbidden")


@KINDS
def test_what_keeps_it_from_ending_is_told_while_it_is_to_be_suspended_and_no_longer(make: Any, stage: str, part: str) -> None:
    world = make()
    world.run(stage, part)
    world.problem = {"reason": "Forbidden", "message": "Jobs cannot be deleted"}
    world.edit(suspend=True)
    world.step()
    assert (world.condition("Stalled")["status"], world.condition("Ready")["reason"]) == ("True", "Forbidden")
    world.children.clear()
    world.step()
    world.step()
    assert (world.condition("Suspended")["status"], world.condition("Stalled")["status"]) == ("True", "False")


def test_a_failure_names_the_variant() -> None:
    life = fine_tune_job()
    life.succeed("Prepare").succeed("Train").succeed("Finalize").succeed("Quantize", "w8a8")
    life.end("Quantize", refusal("Quantize", 64, "GroupSizeMismatch", "no"), "w4a16").step()
    assert life.condition("Stalled")["message"] == "Quantize w4a16 failed: no"
    assert life.condition("Stalled")["message"] == life.condition("Ready")["message"] == life.condition("Finished")["message"]
