"""Examples that the development cluster cannot run to their end, as far as a control plane can: what the operator makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.integration.operators import RESULTS, Namespace, OperatorProcess
from tests.orders import orders
from tunesmith.core.objects import Object

ROOT = Path(__file__).resolve().parents[2]


def test_the_shared_clusters_example_is_queued_where_it_says(operator: OperatorProcess, space: Namespace) -> None:
    example = yaml.safe_load((ROOT / "examples/shared-cluster/finetunejob.yaml").read_text())
    space.claim("datasets")
    tune = space.create("FineTuneJob", "queued", example["spec"])

    def job(stage: str) -> Object:
        found = [each for each in space.all("Job") if each["metadata"]["labels"]["tunesmith.dev/stage"] == stage]
        return found[0] if found else {}

    space.wait(lambda: job("Prepare"), "Prepare's Job", lambda: space.status("FineTuneJob", "queued"))
    prepare = job("Prepare")
    assert prepare["spec"]["suspend"] is True
    assert prepare["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "cpus"
    assert prepare["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "batch"
    # The queue lets it go.
    space.patch("Job", prepare["metadata"]["name"], {"spec": {"suspend": False}})
    space.play(tune, "Prepare", RESULTS["Prepare"])
    space.wait(lambda: job("Train"), "Train's Job", lambda: space.status("FineTuneJob", "queued"))
    train = job("Train")
    assert (train["spec"]["suspend"], train["spec"]["parallelism"]) == (True, 4)
    assert train["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    (container,) = train["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"


@pytest.mark.parametrize(
    ("path", "pods", "processes", "told"),
    [
        ("examples/fsdp/finetunejob.yaml", 1, 2, {"parallelism": {"nodes": 1, "processesPerNode": 2, "fsdp": {}}}),
        ("examples/zero-3/finetunejob.yaml", 2, 1, {"parallelism": {"nodes": 2, "processesPerNode": 1, "deepSpeed": {"zeroStage": 3}}}),
        ("examples/qlora/finetunejob.yaml", 1, 1, {"parallelism": {"nodes": 1, "processesPerNode": 1, "ddp": {}}, "baseQuantization": "NF4"}),
    ],
    ids=["fsdp", "zero-3", "qlora"],
)
def test_the_strategy_of_an_example_reaches_its_training(
    operator: OperatorProcess, space: Namespace, path: str, pods: int, processes: int, told: Object
) -> None:
    """Trainings with each of them are run to their end, on a smaller model, in tests/trainer/test_strategies.py."""
    example = yaml.safe_load((ROOT / path).read_text())
    space.claim("datasets")
    tune = space.create("FineTuneJob", example["metadata"]["name"], example["spec"])
    space.play(tune, "Prepare", RESULTS["Prepare"])

    def trains() -> list[Object]:
        return [each for each in space.all("Job") if each["metadata"]["labels"]["tunesmith.dev/stage"] == "Train"]

    space.wait(trains, "Train's Job", lambda: space.status("FineTuneJob", tune["metadata"]["name"]))
    (train,) = trains()
    assert train["spec"]["parallelism"] == pods
    stage = orders(train)
    assert stage["rendezvous"] | {"nodes": pods, "processesPerNode": processes} == stage["rendezvous"]
    assert {name: stage[name] for name in told} == told
    assert ("baseQuantization" in stage) == ("baseQuantization" in told)
