"""Statuses of the three kinds as they are written on the way through their lives; for the tests of the schema."""

from __future__ import annotations

from collections.abc import Iterator

from tests.unit.operator import deployments, evalruns, makers
from tunesmith.core.objects import Object
from tunesmith.finetunejob.build import build
from tunesmith.finetunejob.status import status


def of_fine_tune_job() -> Iterator[Object]:
    """From the first look to the last artefact, with attempts that failed, a bad node and a report of progress on the way."""
    world = makers.World(status, build, makers.finetunejob(variants=[makers.variant("w8a8")], parallelism={"nodes": 2, "ddp": {}}))
    yield world.step()
    yield world.succeed("Prepare").status
    world.run("Train")
    world.progress = {"progressPercentage": 40, "estimatedRemainingSeconds": 9, "metrics": [{"name": "loss", "value": "1.5"}]}
    yield world.step()
    interrupted = makers.refusal("Train", 75, "Interrupted", outcome="Interrupted", checkpoint=makers.checkpoint(1, 20))
    yield world.end("Train", interrupted).step()
    world.vanish().later(600).step()
    yield from _faults(world)
    world.end("Train", makers.answer("Train") | {"devices": {"NVIDIA H200": 2}})
    yield world.step()
    for stage, part in (("Finalize", ""), ("Quantize", "w8a8")):
        yield world.succeed(stage, part).status
    assert world.truths()["Finished"] == "True"


def _faults(world: makers.World) -> Iterator[Object]:
    """A device fails, then the program, then a node does not end its pod."""
    for code, reason, *facts in ((69, "DeviceFailed", "failedOn", "avoidNodes"), (70, "InternalError", "retriesSpentStep")):
        world.run("Train").pods("Train")[0]["spec"] = {"nodeName": "gpu-7.example"}
        world.step()
        yield world.end("Train", makers.refusal("Train", code, reason)).step()
        assert all(fact in str(world.status) for fact in facts)
        world.later(600).step()
    world.run("Train").pods("Train")[0]["spec"] = {"nodeName": "gpu-8.example"}
    world.step()
    world.remove("Job", world.job("Train")["metadata"]["name"]).later(100)
    yield world.step()
    assert "suspectNodes" in str(world.status)
    world.vanish().later(600).step()


def of_eval_run() -> Iterator[Object]:
    """From waiting to the verdict, with a failed attempt on the way."""
    world = evalruns.Evaluation(evalruns.GATED, *evalruns.CLAIMS)
    yield world.step()
    world.references |= evalruns.Evaluation(evalruns.GATED, evalruns.READY_JOB).references
    yield world.rest()
    yield world.end("Evaluate", makers.refusal("Evaluate", 69, "StoreUnavailable"), "tested").step()
    world.later(600)
    yield world.rest()
    yield world.finish("Failed")
    assert world.status["verdict"] == "Failed"


def of_model_deployment() -> Iterator[Object]:
    """From waiting to the change from one revision to the next."""
    world = deployments.World(deployments.GATED)
    yield world.step()
    world.refer(deployments.job())
    world.refer(deployments.evaluation())
    world.serve()
    yield world.step()
    world.change(engine={"vllm": {"maxModelLen": 64}}, resources={"cpu": "1"}, scheduling={"nodeSelector": {"pool": "a"}})
    yield world.step()
    world.ready(world.named("Candidate"))
    yield world.step()
    assert len(world.owner["status"]["revisions"]) == 2


WALKS = {"FineTuneJob": of_fine_tune_job, "EvalRun": of_eval_run, "ModelDeployment": of_model_deployment}
