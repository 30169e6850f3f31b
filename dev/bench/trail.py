"""The API server's audit log, read while it is written."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev.bench.mask import name_of
from tunesmith.resources import RESOURCES

COUNTED = frozenset(resource.plural for resource in RESOURCES.values() if resource.ours or resource.selector)
_READS = frozenset({"get", "list", "watch"})


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
        """Whether an object came to be: an apply may create as well."""
        return self.code == 201 and not self.subresource

    @property
    def removed(self) -> bool:
        """Whether an object was told to go."""
        return self.verb == "delete" and self.code < 300

    def __str__(self) -> str:
        path = "/".join(part for part in (self.resource, self.name, self.subresource) if part)
        return f"{self.verb} {path}: {self.code} ({self.agent.partition(' ')[0]})"


class AuditLog:
    """Follows the log from now on and sorts its writes by namespace."""

    def __init__(self, path: Path) -> None:
        self._log = path.open("rb")
        self._log.seek(0, 2)
        self._rest = b""
        self._entries: defaultdict[str, list[Entry]] = defaultdict(list)

    def close(self) -> None:
        """Follow it no longer."""
        self._log.close()

    def take(self, namespace: str) -> list[Entry]:
        """The writes in that namespace since the last call for it."""
        *lines, self._rest = (self._rest + self._log.read()).split(b"\n")
        for line in lines:
            # Most lines are reads and other controllers' doings: not worth a parse.
            if b'"verb":"get"' not in line and b'"verb":"watch"' not in line and b'"verb":"list"' not in line:
                self._add(json.loads(line))
        return self._entries.pop(namespace, [])

    def _add(self, line: dict[str, Any]) -> None:
        target = line.get("objectRef", {})
        if target.get("resource") not in COUNTED or line["verb"] in _READS:
            return
        pod = target["resource"] == "pods"
        # A pod's name is made up by the server; how many there were is what counts.
        name = "" if pod else name_of(target.get("name", ""))
        entry = Entry(
            line["verb"], target["resource"], target.get("subresource", ""), name, line["responseStatus"]["code"], line.get("userAgent", "")
        )
        self._entries[target["namespace"]].append(entry)
