"""Examples that the development cluster cannot run to their end, as far as a control plane can: what the operator makes of them."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.integration.operators import RESULTS, Namespace, OperatorProcess
from tunesmith.values import Object

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
