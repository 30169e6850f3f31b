"""What comes of an attempt that ran out of memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tunesmith.stages.entries import SIZE
from tunesmith.stages.failures import LESS_MEMORY, Classification

Entry = Mapping[str, Any]


def with_less(
    entry: Entry, verdict: Classification, limit: str, sizing: Callable[[dict[str, Any]], Entry | None]
) -> tuple[Classification, dict[str, Any]]:
    """The verdict, and what the next attempt is held to: half the rows at a time, if the stage has such and more than one.

    The rows of a stage with GPUs lie in their memory: fewer of them leave the host no more. `limit`: of host memory, empty if not known.
    """
    rows = entry.get("perDeviceTrainBatchSize")
    if verdict.memory == "Host" and entry.get("gpus"):
        was = f" (it was {limit})" if limit else ""
        told = verdict.message.removesuffix(LESS_MEMORY)
        message = f"{told}; this is the host's memory, which fewer rows at a time would not spare: raise `resources.memory`{was}"
        return replace(verdict, outcome="Retry", message=message), {}
    if rows is None:
        return replace(verdict, outcome="Retry"), {}
    if rows == 1:
        return replace(verdict, outcome="Failed", message=f"perDeviceTrainBatchSize is 1 already: {verdict.message}"), {}
    half = {"batchSizeLimit": rows // 2}
    size = sizing({**entry, **half}) or {}
    told = ", ".join(f"{name} {size[name]}" for name in SIZE[1:])
    return replace(verdict, message=f"{verdict.message}; the next attempt has {told}"), half
