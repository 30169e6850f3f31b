"""The operator's and others' writes in the API server's audit log, taken by namespace while it is written. (audit.py counts all that is in it.)"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev.bench.audit import READS
from dev.bench.mask import name_of
from tunesmith.runtime.resources import RESOURCES

SIGNALS = frozenset({"events", "leases"})
"""What the operator tells others: how often, a moment decides."""
COUNTED = SIGNALS | {resource.plural for resource in RESOURCES.values() if resource.ours or resource.selector}


def called(resource: str, name: str) -> str:
    """What an object is called in every life: without the owner's uid, an Event by what it is about, a pod not at all (the server names it)."""
    if resource == "pods":
        return ""
    return name.partition(".")[0] if resource == "events" else name_of(name)


@dataclass(frozen=True)
class Entry:
    """A write that the server answered."""

    verb: str
    """create, update, patch, delete …"""
    resource: str
    subresource: str
    name: str
    """Without the owner's uid."""
    code: int
    agent: str

    @property
    def ours(self) -> bool:
        """Whether the operator made it."""
        return self.agent.startswith("tunesmith/")

    @property
    def made(self) -> bool:
        """Whether an object came to be: an apply may create as well. Not an Event: one that is lost is no loss, and the server takes none twice."""
        return self.code == 201 and not self.subresource and self.resource not in SIGNALS

    @property
    def removed(self) -> bool:
        """Whether an object was told to go."""
        return self.verb == "delete" and self.code < 300

    @property
    def cut_off(self) -> bool:
        """Whether it may have been done all the same: the server gave up, mostly since whoever asked was gone."""
        return self.code == 504 and self.ours and not self.subresource

    def __str__(self) -> str:
        path = "/".join(part for part in (self.resource, self.name, self.subresource) if part)
        return f"{self.verb} {path}: {self.code} ({self.agent.partition(' ')[0]})"


class AuditLog:
    """Follows the log from now on and sorts its writes by namespace."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = path.open("rb")
        self._log.seek(0, 2)
        self._rest = b""
        self._entries: defaultdict[str, list[Entry]] = defaultdict(list)

    def close(self) -> None:
        """Follow it no longer."""
        self._log.close()

    def take(self, namespace: str) -> list[Entry]:
        """The writes in that namespace since the last call for it."""
        if os.fstat(self._log.fileno()).st_ino != self._path.stat().st_ino:
            raise RuntimeError(f"{self._path} has been rotated: what was written after that would be missed")
        *lines, self._rest = (self._rest + self._log.read()).split(b"\n")
        for line in lines:
            # Most lines are reads and other controllers' doings: not worth a parse.
            if b'"verb":"get"' not in line and b'"verb":"watch"' not in line and b'"verb":"list"' not in line:
                self._add(json.loads(line))
        return self._entries.pop(namespace, [])

    def _add(self, line: dict[str, Any]) -> None:
        target = line.get("objectRef", {})
        if target.get("resource") not in COUNTED or line["verb"] in READS:
            return
        resource, code = target["resource"], line["responseStatus"]["code"]
        name = called(resource, target.get("name", ""))
        self._entries[target["namespace"]].append(Entry(line["verb"], resource, target.get("subresource", ""), name, code, line.get("userAgent", "")))
