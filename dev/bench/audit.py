"""What the API server's audit log tells: who asked for what, and when."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

OPERATOR_AGENTS = ("tunesmith/", "kopf/")
READS = ("get", "list", "watch")

Entry = dict[str, Any]


def moment(text: str) -> float:
    """A time of the audit log in seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp()


@dataclass
class Audit:
    """The entries that are written from now on."""

    path: Path
    start: int = 0

    def __post_init__(self) -> None:
        self.start = self.path.stat().st_size

    def entries(self) -> Iterator[Entry]:
        """Each request that has been answered, in the order of the answers."""
        with self.path.open("rb") as log:
            log.seek(self.start)
            for line in log:
                if line.endswith(b"}\n"):
                    entry = json.loads(line)
                    if entry["stage"] == "ResponseComplete" or entry["verb"] == "watch":
                        yield entry

    def operator(self) -> Counter[tuple[str, str]]:
        """How often the operator asked for what: by verb and resource (with subresource)."""
        return Counter((entry["verb"], resource_of(entry)) for entry in self.entries() if is_operator(entry))

    def created(self, resource: str) -> dict[str, tuple[float, float]]:
        """When each object of `resource` was asked for and when it was there, by name."""
        return {
            entry["objectRef"]["name"]: (moment(entry["requestReceivedTimestamp"]), moment(entry["stageTimestamp"]))
            for entry in self.entries()
            if entry["verb"] == "create" and resource_of(entry) == resource and entry["responseStatus"]["code"] == 201
        }


def is_operator(entry: Entry) -> bool:
    """Whether the operator asked."""
    return str(entry.get("userAgent", "")).startswith(OPERATOR_AGENTS)


def resource_of(entry: Entry) -> str:
    """`resource` or `resource/subresource`; the path for what is not a resource."""
    target = entry.get("objectRef") or {}
    return "/".join(filter(None, (target.get("resource"), target.get("subresource")))) or str(entry["requestURI"])
