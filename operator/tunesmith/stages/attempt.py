"""One attempt at one stage: its number, its names and labels, and how they are read back from a child."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tunesmith.core.objects import LABEL_ATTEMPT, LABEL_PART, LABEL_STAGE, Object
from tunesmith.workload import podspec
from tunesmith_contract.stages import ObjectRef

RENDEZVOUS_PORT = 29500
_BASE_LENGTH = 49
"""Leaves room for `-<attempt>-<uid5>` and an Indexed Job's `-<index>` within the 63 characters of a host name."""


class StageKey(NamedTuple):
    """A stage, or one part of it: `StageKey("Quantize", "w8a8")`."""

    name: str
    part: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.part}".strip()


@dataclass(frozen=True)
class Attempt:
    """An attempt at a stage of `owner`; the first one is number 1."""

    owner: Object
    key: StageKey
    number: int

    @property
    def name(self) -> str:
        """Name of its Job and Service: `<name>-<stage>[-<part>]-<attempt>-<uid5>`, cut and hashed where that is too long."""
        meta = self.owner["metadata"]
        base = "-".join(word for word in (meta["name"], self.key.name.lower(), self.key.part) if word)
        if len(base) > _BASE_LENGTH:
            base = base[: _BASE_LENGTH - 7].rstrip("-") + "-" + hashlib.sha256(base.encode()).hexdigest()[:6]
        return f"{base}-{self.number}-{meta['uid'][:5]}"

    @property
    def metadata(self) -> Object:
        """Metadata of its Job and Service."""
        labels = {LABEL_STAGE: self.key.name, LABEL_ATTEMPT: str(self.number)} | ({LABEL_PART: self.key.part} if self.key.part else {})
        return podspec.child_metadata(self.owner, self.name, labels)

    def endpoint(self, nodes: int) -> str:
        """Where the pods of an Indexed Job meet: at pod 0, by the name that the Service gives it. One pod needs no name service."""
        return f"{self.name}-0.{self.name}:{RENDEZVOUS_PORT}" if nodes > 1 else f"localhost:{RENDEZVOUS_PORT}"

    def common_input(self, resources: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments that every JobInput takes."""
        meta = self.owner["metadata"]
        reference = ObjectRef(kind=self.owner["kind"], namespace=meta["namespace"], name=meta["name"], uid=meta["uid"])
        gpus = resources.get("gpus") or None
        return {"attempt": self.number, "device": "GPU" if gpus else "CPU", "gpus": gpus, "object": reference}


def key_of(entry: Mapping[str, Any]) -> StageKey:
    """The stage that an entry of `status.stages` is about."""
    return StageKey(entry["name"], entry.get("part", ""))


def stage_of(ended: Mapping[str, Any]) -> StageKey:
    """The stage that an entry of `status.attempts` is of."""
    return StageKey(ended["stage"], ended.get("part", ""))


def attempt_of(child: Object) -> tuple[StageKey, int]:
    """Which attempt of which stage a child with a stage label belongs to; 0, which none is, where somebody has spoilt its label."""
    labels = child["metadata"]["labels"]
    number = labels.get(LABEL_ATTEMPT, "")
    return StageKey(labels[LABEL_STAGE], labels.get(LABEL_PART, "")), int(number) if number.isdecimal() else 0
