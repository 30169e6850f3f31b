"""The manifests of a two-node FineTuneJob, against `golden/finetunejob-*.yaml` (rewritten with `UPDATE_GOLDEN=1`), and what no pod may have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.orders import orders
from tests.unit.operator.makers import World, as_yaml, finetunejob, variant
from tunesmith.core.objects import Object
from tunesmith.finetunejob import defaults
from tunesmith.finetunejob.api import Spec, references
from tunesmith.finetunejob.build import build
from tunesmith.finetunejob.status import status
from tunesmith.stages.attempt import Attempt, StageKey
from tunesmith.workload import podspec
from tunesmith_contract import stages as contract

GOLDEN = Path(__file__).parent / "golden"
SPEC: Object = {
    "validation": {"fraction": "0.05"},
    "parallelism": {"nodes": 2, "ddp": {}},
    "resources": {"gpus": 4, "cpu": "16", "memory": "128Gi", "sharedMemory": "16Gi"},
    "stageResources": [{"stage": "Finalize", "memory": "256Gi"}, {"stage": "Quantize", "gpus": 1}],
    "scheduling": {"priorityClassName": "low", "nodeSelector": {"pool": "a"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]},
    "checkpoints": {"gracePeriodSeconds": 90},
    "variants": [variant("w4a16", "W4A16")],
}


def whole_life(**spec: Any) -> dict[str, list[Object]]:
    """What each stage of the job was made of."""
    world = World(status, build, finetunejob(**SPEC | spec))
    made = {}
    for stage, part in (("Prepare", ""), ("Train", ""), ("Finalize", ""), ("Quantize", "w4a16")):
        if stage == "Prepare":
            world.step()
        made[stage] = [*world.plan.create, *world.plan.apply]
        world.succeed(stage, part)
    return made


def stage_json(manifests: list[Object]) -> Any:
    """The content of the stage.json among the manifests."""
    return orders(next(entry for entry in manifests if entry["kind"] == "Job"))


@pytest.mark.parametrize("stage", ["Prepare", "Train", "Finalize", "Quantize"])
def test_the_manifests_are_the_golden_ones(stage: str) -> None:
    text = as_yaml(whole_life()[stage])
    path = GOLDEN / f"finetunejob-{stage.lower()}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text


def test_every_stage_input_is_one_that_the_stage_takes() -> None:
    for stage, manifests in whole_life().items():
        getattr(contract, f"{stage}Input").model_validate(stage_json(manifests))


@pytest.mark.parametrize(
    "spec",
    [
        {"parallelism": {"nodes": 2, "fsdp": {}}},
        {"parallelism": {"nodes": 2, "minNodes": 1, "deepSpeed": {"zeroStage": 3}}},
        {"parallelism": {"nodes": 2, "ddp": {}}, "baseQuantization": "NF4"},
    ],
    ids=["fsdp", "zero-3", "qlora"],
)
def test_strategy_and_quantized_base_reach_prepare_and_train(spec: dict[str, Any]) -> None:
    made = whole_life(**spec)
    Spec.model_validate(finetunejob(**SPEC | spec)["spec"])
    wanted = {"nodes": 2, "processesPerNode": 4} | {name: value for name, value in spec["parallelism"].items() if name != "minNodes"}
    for given in (stage_json(made["Prepare"])["run"], stage_json(made["Train"])):
        assert given["parallelism"] == wanted
        assert given.get("baseQuantization") == spec.get("baseQuantization")


def test_prepare_gets_the_memory_of_the_later_stages_pods_which_is_no_part_of_the_run() -> None:
    gpus = {"gpus": 4, "memory": "128Gi"}
    plain, known = (stage_json(whole_life(resources=given)["Prepare"]) for given in (gpus, gpus | {"gpuMemory": "80Gi"}))
    assert known["run"] == plain["run"]
    assert known["pods"] == {
        "train": {"device": "GPU", "memory": 128 << 30, "gpuMemory": 80 << 30},
        "finalize": {"device": "CPU", "memory": 256 << 30},
        "quantize": {"device": "GPU", "memory": 128 << 30, "gpuMemory": 80 << 30},
    }
    assert "gpuMemory" not in plain["pods"]["train"]
    assert stage_json(whole_life(resources=None)["Prepare"])["pods"]["train"] == {"device": "CPU", "memory": 4 << 30}


@pytest.mark.parametrize(
    ("quantity", "count"), [("80Gi", 80 << 30), ("1.5G", 1_500_000_000), ("4294967296", 1 << 32), ("1Ki", 1024), ("1k", 1000), ("2000m", 2)]
)
def test_a_quantity_is_so_many_bytes(quantity: str, count: int) -> None:
    assert podspec.memory_bytes(quantity) == count


def test_no_pod_has_what_pod_security_restricted_forbids_nor_a_token_it_does_not_need() -> None:
    for stage, manifests in whole_life().items():
        spec = manifests[0]["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["automountServiceAccountToken"] is False
        container = spec["containers"][0]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert any("projected" in volume for volume in spec["volumes"]) == (stage == "Train")


def test_only_the_claim_of_the_output_is_writable() -> None:
    for manifests in whole_life().values():
        for mount in manifests[0]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]:
            if mount["mountPath"].startswith("/mnt/pvc/"):
                assert mount.get("readOnly", False) == (mount["mountPath"] != "/mnt/pvc/models")


def test_one_node_needs_no_service_and_no_affinity() -> None:
    world = World(status, build, finetunejob())
    world.step()
    world.succeed("Prepare")
    assert not world.names("Service")
    assert "affinity" not in world.job("Train")["spec"]["template"]["spec"]
    train = orders(world.job("Train"))
    assert train["rendezvous"] == {"endpoint": "localhost:29500", "nodes": 1, "processesPerNode": 1}
    assert train["device"] == "CPU"


def test_the_spec_of_the_makers_is_a_valid_spec() -> None:
    Spec.model_validate(finetunejob(**SPEC)["spec"])


def test_defaults_are_filled_in_as_the_descriptions_say() -> None:
    run = stage_json(whole_life()["Prepare"])["run"]
    assert run["training"]["learningRate"] == "2e-4"
    assert run["adapter"]["lora"] == {"r": 8, "loraAlpha": 16, "loraDropout": "0", "targetModules": ["all-linear"]}
    assert run["method"]["sft"] == {"packing": False, "assistantOnlyLoss": True}
    assert run["parallelism"]["processesPerNode"] == 4
    assert run["output"]["artifacts"] == ["Adapter"]
    assert stage_json(whole_life()["Finalize"])["artifacts"] == ["Adapter", "Merged"]
    assert stage_json(whole_life()["Quantize"])["variant"]["quantization"]["groupSize"] == 128


def test_references_are_the_named_job_and_every_claim() -> None:
    spec = finetunejob(
        model={"fineTuneJobRef": {"name": "first"}, "artifact": "Merged"}, validation={"dataset": {"uri": "pvc://held/x", "format": "Text"}}
    )["spec"]
    claims = {("PersistentVolumeClaim", name) for name in ("datasets", "held", "models")}
    assert references(spec) == claims | {("FineTuneJob", "first")}


def test_names_stay_within_a_host_name_with_their_index_and_differ_by_part() -> None:
    owner = finetunejob("a" * 40)
    names = {Attempt(owner, StageKey("Quantize", part), 999).name for part in ("b" * 40, "b" * 39 + "c", "")}
    assert len(names) == 3
    assert max(len(f"{name}-255") for name in names) <= 63


def test_claims_are_found_at_any_depth() -> None:
    assert podspec.claims({"a": [{"uri": "pvc://x/y"}, {"uri": "hf://z"}], "runURI": "pvc://w"}, "pvc://v/u") == ["v", "w", "x"]


@pytest.mark.parametrize(
    "block",
    [
        {"overrides": {"uri": "pvc://trick/x"}},
        {"dropPatterns": ["pvc://trick/x"]},
        {"nodeSelector": {"uri": "pvc://trick/x"}},
        {"tolerations": [{"value": "pvc://trick/x"}]},
    ],
)
def test_a_setting_that_looks_like_a_uri_mounts_no_volume(block: dict[str, Any]) -> None:
    assert podspec.claims({"uri": "pvc://models/base", "block": block}) == ["models"]


@pytest.mark.parametrize(
    ("given", "version", "made"),
    [
        ({}, 1, {"numCalibrationSamples": 128}),
        ({}, 2, {"calibration": {"maxTokens": 1048576}}),
        ({"calibration": {"maxTokens": 4096}}, 2, {"calibration": {"maxTokens": 4096}}),
        ({"numCalibrationSamples": 16}, 1, {"numCalibrationSamples": 16}),
        ({"numCalibrationSamples": 16}, 2, {"numCalibrationSamples": 16}),
    ],
)
def test_a_variant_is_calibrated_as_its_spec_says_and_by_default_as_its_image_can(given: Object, version: int, made: Object) -> None:
    block = {"scheme": "W8A8", "algorithm": "GPTQ"}
    (found,) = defaults.variants({"variants": [{"name": "small", "quantization": block | given}]}, version)
    assert found == {"name": "small", "quantization": block | made}
