"""How many nodes an attempt of Train gets, how its global batch is cut for them, and whether so many trained. The global batch never changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.finetunejob import defaults
from tunesmith.stages.attempt import StageKey, stage_of
from tunesmith_contract.results import Result, TrainResult

Block = dict[str, Any]


def size(spec: Mapping[str, Any], key: StageKey, entry: Mapping[str, Any]) -> Block | None:
    """`{nodes, perDeviceTrainBatchSize, gradientAccumulationSteps}` of the next attempt; empty for stages other than Train.

    The most nodes, from all of them (or `nodesLimit` of the entry) down to `minNodes`, over which the global batch can be spread
    evenly; on them as many rows at a time as the spec says, or `batchSizeLimit` of the entry, or the next smaller number that
    divides a process' share. None: no number of nodes fits.
    """
    if key.name != "Train":
        return {}
    training, spread = defaults.training(spec), defaults.parallelism(spec)
    rows = training["perDeviceTrainBatchSize"] * training["gradientAccumulationSteps"] * spread["nodes"]
    most = min(training["perDeviceTrainBatchSize"], entry.get("batchSizeLimit", rows))
    for nodes in range(min(spread["nodes"], entry.get("nodesLimit", spread["nodes"])), defaults.min_nodes(spec) - 1, -1):
        share, left = divmod(rows, nodes)
        if not left:
            at_once = next(number for number in range(min(most, share), 0, -1) if share % number == 0)
            return {"nodes": nodes, "perDeviceTrainBatchSize": at_once, "gradientAccumulationSteps": share // at_once}
    return None


def misfit(spec: Mapping[str, Any], key: StageKey, entry: Mapping[str, Any], result: Result, ended: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong with a training that succeeded, if other processes took part than were asked for; empty if nothing is, or it is not known.

    Processes that do not find one another, or no GPU, train each by itself, which is another training. A result may be that of an earlier
    attempt, which lay in the store: it is measured by the size of that one.
    """
    if not isinstance(result, TrainResult) or result.world_size is None:
        return ""
    made_by = entry if result.attempt == entry["attempt"] else _attempt(key, result.attempt, ended)
    spread = defaults.parallelism(spec)
    if made_by is None:
        return ""
    nodes, each = int(made_by.get("nodes", spread["nodes"])), int(spread["processesPerNode"])
    # Older images name no devices, and a training on CPUs has none.
    devices = sum(result.devices.values()) if result.devices is not None and spec.get("resources", {}).get("gpus") else result.world_size
    if result.world_size == devices == nodes * each:
        return ""
    found = "".join(f", {count} {name}" for name, count in (result.devices or {}).items())
    return (
        f"trained with {result.world_size} processes{found}; {nodes * each} were asked for ({nodes} nodes of {each}): "
        "this is not the training of the spec, and its result is not used"
    )


def _attempt(key: StageKey, number: int | None, ended: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return next((each for each in ended if (stage_of(each), each["attempt"]) == (key, number)), None)
