"""What training processes tell one another, as JSON. torch's own calls for objects send pickles, and who unpickles runs what he is sent."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import distributed


def gather(value: Any, group: Any, leads: bool) -> list[Any]:
    """Return all processes' values, in their order, on the group's first process (`leads`); an empty list elsewhere.

    `value` is anything that JSON has (tuples come as lists). `group` is one of gloo's; all its processes call this together.
    """
    mine, parts = _padded(value, group)
    found = [torch.empty_like(mine) for _ in parts] if leads else None
    distributed.gather(mine, found, group=group, group_dst=0)
    return _read(found, parts) if found else []


def gather_everywhere(value: Any, group: Any) -> list[Any]:
    """The same on all processes."""
    mine, parts = _padded(value, group)
    found = [torch.empty_like(mine) for _ in parts]
    distributed.all_gather(found, mine, group=group)
    return _read(found, parts)


def _padded(value: Any, group: Any) -> tuple[torch.Tensor, list[int]]:
    """Return a value's text as bytes, as long as the longest of all, and the length of each."""
    text = json.dumps(value).encode()
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(sizes, torch.tensor([len(text)], dtype=torch.int64), group=group)
    lengths = [int(size.item()) for size in sizes]
    padded = torch.zeros(max(lengths), dtype=torch.uint8)
    padded[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return padded, lengths


def _read(found: list[torch.Tensor], lengths: list[int]) -> list[Any]:
    return [json.loads(part[:length].numpy().tobytes()) for part, length in zip(found, lengths, strict=True)]
