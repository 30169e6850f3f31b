"""The examples beside the chain, each run to its end."""

from __future__ import annotations

from typing import Any

from dev.demo import follow
from dev.demo.kube import Kube
from dev.demo.stack import ROOT


def test_full_fine_tuning_with_two_processes_ends_in_a_merged_and_a_four_bit_model(kube: Kube, chain: Any) -> None:
    kube.run("apply", f"--filename={ROOT / 'examples/full-fine-tuning'}")
    job = follow.follow(kube, [("FineTuneJob", "full")], print, 900)["FineTuneJob", "full"]
    assert job["status"]["resolved"]["worldSize"] == 2
    formats = {entry["name"]: entry["format"] for entry in job["status"]["artifacts"]}
    assert formats == {"Merged": "Safetensors", "w4a16": "CompressedTensors"}


def test_deleting_a_finished_job_removes_its_children_and_keeps_its_artefacts(kube: Kube, chain: Any) -> None:
    kube.run("apply", f"--filename={ROOT / 'examples/full-fine-tuning'}")
    uri = follow.follow(kube, [("FineTuneJob", "full")], print, 900)["FineTuneJob", "full"]["status"]["artifacts"][0]["uri"]
    kube.run("delete", "finetunejob", "full", "--wait")
    kube.run("wait", "jobs,configmaps,pods,services", "--selector=tunesmith.dev/name=full", "--for=delete", "--timeout=120s")
    kube.run("exec", "loader", "--", "test", "-e", "/mnt/pvc/" + uri.removeprefix("pvc://") + "/manifest.json")
