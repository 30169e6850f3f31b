"""The examples beside the chain, each run to its end.

make drills
"""

from __future__ import annotations

from typing import Any

import pytest

from dev.demo import chat, follow
from dev.demo.kube import Kube
from dev.demo.stack import ROOT
from tests.e2e.conftest import say

pytestmark = pytest.mark.long


def test_full_fine_tuning_with_two_processes_ends_in_a_merged_and_a_four_bit_model(kube: Kube, chain: Any) -> None:
    kube.run("apply", f"--filename={ROOT / 'examples/full-fine-tuning'}")
    job = follow.follow(kube, [("FineTuneJob", "full")], say, 900)["FineTuneJob", "full"]
    assert job["status"]["resolved"]["worldSize"] == 2
    formats = {entry["name"]: entry["format"] for entry in job["status"]["artifacts"]}
    assert formats == {"Merged": "Safetensors", "w4a16": "CompressedTensors"}


def test_deleting_a_finished_job_removes_its_children_and_keeps_its_artefacts(kube: Kube, chain: Any) -> None:
    kube.run("apply", f"--filename={ROOT / 'examples/full-fine-tuning'}")
    uri = follow.follow(kube, [("FineTuneJob", "full")], say, 900)["FineTuneJob", "full"]["status"]["artifacts"][0]["uri"]
    kube.run("delete", "finetunejob", "full", "--wait")
    kube.run("wait", "jobs,pods,services", "--selector=tunesmith.dev/name=full", "--for=delete", "--timeout=120s")
    kube.run("exec", "loader", "--", "test", "-e", "/mnt/pvc/" + uri.removeprefix("pvc://") + "/manifest.json")


def test_a_job_that_is_applied_again_when_all_of_it_is_gone_adopts_its_artefacts_and_trains_nothing(kube: Kube, chain: Any) -> None:
    def run_to_the_end() -> tuple[Any, str]:
        kube.run("apply", f"--filename={ROOT / 'examples/full-fine-tuning'}")
        status = follow.follow(kube, [("FineTuneJob", "full")], say, 900)["FineTuneJob", "full"]["status"]
        curve = "/mnt/pvc/" + status["resolved"]["runURI"].removeprefix("pvc://") + "/metrics.jsonl"
        return status, kube.run("exec", "loader", "--", "sh", "-c", 'stat -c %Y "$0"; cat "$0"', curve)

    first, curve = run_to_the_end()
    kube.run("delete", "finetunejob", "full", "--wait")
    kube.run("wait", "jobs,pods,services", "--selector=tunesmith.dev/name=full", "--for=delete", "--timeout=120s")
    again, untouched = run_to_the_end()
    assert again["artifacts"] == first["artifacts"]
    assert untouched == curve


def test_a_model_that_was_not_trained_here_is_measured_judged_and_served(kube: Kube, chain: Any) -> None:
    kube.run("apply", f"--filename={ROOT / 'examples/gate-existing-model'}")
    judge, model = ("EvalRun", "existing-eval"), ("ModelDeployment", "existing-gated")
    things = follow.follow(kube, [judge, model], say, 900)
    run, served = things[judge]["status"], things[model]["status"]
    assert run["verdict"] == "Passed"
    assert [revision["digest"] for revision in served["revisions"]] == [run["evaluated"]["digest"]]
    assert chat.ask_service(kube, "existing-gated").strip()
    kube.run("delete", "modeldeployment", "existing-gated", "--wait")


def test_a_model_on_a_volume_is_served_without_a_gate_and_says_so(kube: Kube, chain: Any) -> None:
    kube.run("apply", f"--filename={ROOT / 'examples/serve-existing-model'}")
    served = follow.follow(kube, [("ModelDeployment", "existing")], say, 600)["ModelDeployment", "existing"]
    assert follow.condition(served, "GatePassed")["reason"] == "NoGate"
    assert chat.ask_service(kube, "existing").strip()
    kube.run("delete", "modeldeployment", "existing", "--wait")
