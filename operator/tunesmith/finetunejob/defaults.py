"""FineTuneJob's spec with its defaults: those of the fields, and here those that depend on other fields. The spec is never written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith_contract import training as contract
from tunesmith_contract.adapters import LoRA
from tunesmith_contract.base import filled
from tunesmith_contract.methods import SFT
from tunesmith_contract.quantization import GROUP_SIZE, Calibration

Block = dict[str, Any]

CALIBRATION_SINCE = 2
"""The contract version that has `calibration`; images before it are given the number of rows that was their default."""


def training(spec: Mapping[str, Any]) -> Block:
    """`spec.training`."""
    return {"learningRate": "2e-4" if "adapter" in spec else "2e-5"} | filled(contract.Training, spec.get("training", {}))


def method(spec: Mapping[str, Any]) -> Block:
    """`spec.method`."""
    chats = all(dataset["format"] == "Messages" for dataset in spec["datasets"])
    return {"sft": {"assistantOnlyLoss": chats} | filled(SFT, spec["method"]["sft"])}


def adapter(spec: Mapping[str, Any]) -> Block | None:
    """`spec.adapter`; None: full fine-tuning."""
    if "adapter" not in spec:
        return None
    lora = filled(LoRA, spec["adapter"]["lora"])
    return {"lora": {"loraAlpha": 2 * lora["r"]} | lora}


def parallelism(spec: Mapping[str, Any]) -> Block:
    """`spec.parallelism` without `minNodes`, which does not determine the result."""
    given: Mapping[str, Any] = spec.get("parallelism", {"ddp": {}})
    spread = {name: value for name, value in given.items() if name != "minNodes"}
    return {"processesPerNode": resources(spec, "Train").get("gpus") or 1} | filled(contract.Parallelism, spread)


def min_nodes(spec: Mapping[str, Any]) -> int:
    """`spec.parallelism.minNodes`."""
    return int(spec.get("parallelism", {}).get("minNodes", parallelism(spec)["nodes"]))


def checkpoints(spec: Mapping[str, Any]) -> Block:
    """`spec.checkpoints`."""
    return filled(contract.Checkpoints, spec.get("checkpoints", {}))


def output(spec: Mapping[str, Any]) -> Block:
    """`spec.output`."""
    block: Block = {"artifacts": ["Adapter" if "adapter" in spec else "Merged"]} | spec["output"]
    return block


def artifacts(spec: Mapping[str, Any]) -> list[str]:
    """What Finalize writes: what is asked for, and what the variants are made from."""
    wanted: list[str] = output(spec)["artifacts"]
    return [*wanted, "Merged"] if spec.get("variants") and "Merged" not in wanted else wanted


def variants(spec: Mapping[str, Any], version: int) -> list[Block]:
    """`spec.variants` as images of a contract version take them."""
    return [variant | {"quantization": _quantization(variant["quantization"], version)} for variant in spec.get("variants", ())]


def _quantization(given: Mapping[str, Any], version: int) -> Block:
    block = ({"groupSize": GROUP_SIZE} if given["scheme"] == "W4A16" else {}) | dict(given)
    if "numCalibrationSamples" in given:
        return block
    if version < CALIBRATION_SINCE:
        return {name: value for name, value in block.items() if name != "calibration"} | {"numCalibrationSamples": 128}
    return block | {"calibration": filled(Calibration, given.get("calibration", {}))}


def resources(spec: Mapping[str, Any], stage: str) -> Block:
    """Resources of each pod of a stage: `resources`, without GPUs for Prepare and Finalize, and changed by `stageResources`."""
    given: Block = spec.get("resources", {})
    if stage == "Train":
        return given
    base = {name: value for name, value in given.items() if stage == "Quantize" or name != "gpus"}
    own: Mapping[str, Any] = next((entry for entry in spec.get("stageResources", ()) if entry["stage"] == stage), {})
    return base | {name: value for name, value in own.items() if name != "stage"}


def world_size(spec: Mapping[str, Any]) -> int:
    """Processes of the training."""
    spread = parallelism(spec)
    return int(spread["nodes"] * spread["processesPerNode"])
