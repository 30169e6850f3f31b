"""How many nodes an attempt of Train gets, and how its global batch is cut for them. The global batch itself never changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.finetunejob import defaults
from tunesmith.stages import StageKey

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
