"""What quantization did to a model, told by the headers of its safetensors files: no weight is loaded."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith_contract.results import Effect

# Bits of one element, by the names that safetensors headers use.
BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
DEFAULT_BITS = 8  # I8, U8, BOOL and the FP8 kinds
PARTS = ("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx")
"""What compressed-tensors stores of a quantized weight, its shape left out."""


@dataclass(frozen=True)
class Tensor:
    """A tensor as a header describes it."""

    kind: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def bits(self) -> int:
        """Its size on disk."""
        return self.elements * BITS.get(self.kind, DEFAULT_BITS)


def headers(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and description of every tensor in a folder's safetensors files."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                yield name, Tensor(entry["dtype"], tuple(entry["shape"]))


def measure(folder: Path) -> Effect:
    """Return how many modules of a compressed-tensors folder are quantized, and the bits each of their weights takes.

    A module counts as quantized when its weight lies packed, or in an 8-bit type with a scale beside it: what the config
    claims does not matter.
    """
    tensors = dict(headers(folder))
    packed_bits = _packed_bits(folder)
    modules = bits = weights = 0
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        eight_bits = part == "weight" and tensor.kind not in BITS and f"{module}.weight_scale" in tensors
        if part != "weight_packed" and not eight_bits:
            continue
        modules += 1
        weights += tensor.bits // packed_bits if part == "weight_packed" else tensor.elements
        bits += sum(tensors[f"{module}.{other}"].bits for other in PARTS if f"{module}.{other}" in tensors)
    return Effect(quantized_modules=modules, bits_per_weight=round(bits / weights, 2) if weights else 0.0)


def _packed_bits(folder: Path) -> int:
    """Return how many bits a packed weight has, as the config says; packing to whole words is not told by the header."""
    config = json.loads((folder / "config.json").read_bytes())
    groups = config.get("quantization_config", {}).get("config_groups", {})
    return min((group["weights"]["num_bits"] for group in groups.values() if group.get("weights")), default=DEFAULT_BITS)
