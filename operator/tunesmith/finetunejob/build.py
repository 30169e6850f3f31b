"""What must exist for a FineTuneJob: the Jobs of the attempts under way, and the Services by which their pods meet."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from tunesmith.api.blocks import MEMORY
from tunesmith.core.objects import Observed, Plan
from tunesmith.finetunejob import defaults
from tunesmith.finetunejob.sizing import size
from tunesmith.stages.attempt import Attempt, StageKey, key_of
from tunesmith.stages.entries import SIZE
from tunesmith.stages.job import Stage, contract_version, plan
from tunesmith.workload.podspec import TRAINING_UNREACHABLE_SECONDS, UNREACHABLE_SECONDS, memory_bytes
from tunesmith_contract import stages as contract

TRAIN = StageKey("Train")


def build(observed: Observed, status: Mapping[str, Any]) -> Plan:
    """What to create, apply and delete now."""
    return plan(observed, status, partial(_stage, observed, status))


def _stage(observed: Observed, status: Mapping[str, Any], attempt: Attempt) -> Stage:
    spec = observed.spec
    training = attempt.key == TRAIN
    return Stage(
        input=stage_input(observed, status, attempt),
        image=status["resolved"]["images"]["trainer"],
        contract_version=contract_version(status["resolved"]),
        resources=defaults.resources(spec, attempt.key.name),
        scheduling=spec.get("scheduling", {}),
        nodes=_size(observed, status)["nodes"] if training else 0,
        grace_period_seconds=defaults.checkpoints(spec)["gracePeriodSeconds"] if training else 30,
        unreachable_seconds=TRAINING_UNREACHABLE_SECONDS if training else UNREACHABLE_SECONDS,
        reports=training,
    )


def stage_input(observed: Observed, status: Mapping[str, Any], attempt: Attempt) -> contract.JobInput:
    """What a stage is told, from the spec with its defaults and from what the stages before it told."""
    key = attempt.key
    common = attempt.common_input(defaults.resources(observed.spec, key.name))
    if key.name == "Prepare":
        return _prepare(observed.spec, status, common)
    common["run_uri"] = status["resolved"]["runURI"]
    if key.name == "Quantize":
        return _quantize(observed.spec, status, key.part, common)
    common["model"] = _pinned(status["resolved"]["model"])
    if key.name == "Train":
        return _train(observed, attempt, _size(observed, status), common)
    return _finalize(observed.spec, status, common)


def _prepare(spec: Mapping[str, Any], status: Mapping[str, Any], common: Mapping[str, Any]) -> contract.PrepareInput:
    run = contract.unchecked(
        contract.Run,
        images=contract.Images(trainer=status["resolved"]["images"]["trainer"]),
        model=contract.SourceModel(uri=status["resolved"]["model"]["uri"]),
        datasets=spec["datasets"],
        validation=spec.get("validation"),
        preparation=spec.get("preparation"),
        method=defaults.method(spec),
        adapter=defaults.adapter(spec),
        base_quantization=spec.get("baseQuantization"),
        training=defaults.training(spec),
        parallelism=defaults.parallelism(spec),
        output=defaults.output(spec),
        variants=defaults.variants(spec, contract_version(status["resolved"])) or None,
    )
    rooms = {stage.lower(): _room(defaults.resources(spec, stage)) for stage in ("Train", "Finalize", "Quantize")}
    return contract.unchecked(contract.PrepareInput, **common, output_uri=spec["output"]["uri"], run=run, pods=contract.Pods(**rooms))


def _room(resources: Mapping[str, Any]) -> contract.Room:
    each = resources.get("gpuMemory") if resources.get("gpus") else None
    return contract.Room(
        device="GPU" if resources.get("gpus") else "CPU",
        memory=memory_bytes(resources.get("memory", MEMORY)),
        gpu_memory=memory_bytes(each) if each else None,
    )


def _size(observed: Observed, status: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was decided for the newest attempt of Train when it began; what the spec says if a release began it that did not decide."""
    (entry,) = (entry for entry in status["stages"] if key_of(entry) == TRAIN)
    decided = {name: entry[name] for name in SIZE if name in entry}
    return decided or size(observed.spec, TRAIN, {}) or {}


def _train(observed: Observed, attempt: Attempt, given: Mapping[str, Any], common: Mapping[str, Any]) -> contract.TrainInput:
    spec, nodes = observed.spec, given["nodes"]
    spread = defaults.parallelism(spec) | {"nodes": nodes}
    return contract.unchecked(
        contract.TrainInput,
        **common,
        method=defaults.method(spec),
        adapter=defaults.adapter(spec),
        base_quantization=spec.get("baseQuantization"),
        training=defaults.training(spec) | {name: value for name, value in given.items() if name != "nodes"},
        checkpoints=defaults.checkpoints(spec),
        parallelism=spread,
        rendezvous=contract.Rendezvous(endpoint=attempt.endpoint(nodes), nodes=nodes, processes_per_node=spread["processesPerNode"]),
    )


def _finalize(spec: Mapping[str, Any], status: Mapping[str, Any], common: Mapping[str, Any]) -> contract.FinalizeInput:
    checkpoint = contract.Checkpoint.model_validate(status["lastCheckpoint"])
    return contract.unchecked(
        contract.FinalizeInput, **common, adapter=defaults.adapter(spec), checkpoint=checkpoint, artifacts=defaults.artifacts(spec)
    )


def _quantize(spec: Mapping[str, Any], status: Mapping[str, Any], name: str, common: Mapping[str, Any]) -> contract.QuantizeInput:
    merged = next(artifact for artifact in status["artifacts"] if artifact["name"] == "Merged")
    variant = next(variant for variant in defaults.variants(spec, contract_version(status["resolved"])) if variant["name"] == name)
    length = contract.QuantizeTraining(max_length=defaults.training(spec)["maxLength"])
    return contract.unchecked(contract.QuantizeInput, **common, model=_pinned(merged), variant=variant, training=length)


def _pinned(model: Mapping[str, Any]) -> contract.Model:
    return contract.Model(uri=model["uri"], digest=model["digest"])
