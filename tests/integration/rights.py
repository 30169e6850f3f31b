"""The operator's rights: those that the chart gives, and those that the audit log says it made use of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dev.bench.rights import account, documents, grant
from dev.cluster.controlplane import ControlPlane
from tests.integration.schema_server import Server

SYSTEM = "tunesmith-system"
ACCOUNTS = re.compile(account("[^:]+") + "$")
"""Of all releases: each lane of the crash plans is one."""
DECISION = "authorization.k8s.io/decision"


class Right(NamedTuple):
    """A verb on a resource (`jobs`, `finetunejobs/status`) of an API group."""

    group: str
    resource: str
    verb: str


def granted() -> set[Right]:
    """What the chart's roles grant the operator; those that only people are to have are bound to nobody."""
    made = documents(SYSTEM)
    bound = {(each["roleRef"]["kind"], each["roleRef"]["name"]) for each in made if "roleRef" in each}
    rules = [rule for role in made if (role["kind"], role["metadata"]["name"]) in bound for rule in role["rules"]]
    return {Right(group, resource, verb) for rule in rules for group in rule["apiGroups"] for resource in rule["resources"] for verb in rule["verbs"]}


def used(audit_log: Path) -> set[Right]:
    """What the operator's accounts asked for and were allowed."""
    return {right for entry in _entries(audit_log, "allow") if (right := _right(entry))}


def forbidden(audit_log: Path) -> list[str]:
    """What they asked for and may not do."""
    return [f"{entry['verb']} {entry['requestURI']}" for entry in _entries(audit_log, "forbid")]


def _entries(audit_log: Path, decision: str) -> Iterator[dict[str, Any]]:
    """The requests of operators that the authorizer decided on so. (What admission refuses had been allowed.)"""
    with audit_log.open("rb") as log:
        for line in log:
            if b":tunesmith" in line and line.endswith(b"}\n"):
                entry = json.loads(line)
                if ACCOUNTS.match(entry["user"]["username"]) and entry.get("annotations", {}).get(DECISION) == decision:
                    yield entry


def _right(entry: dict[str, Any]) -> Right | None:
    target = entry.get("objectRef")
    # Refused by admission: an object was in the way.
    if not target or entry.get("responseStatus", {}).get("code") == 403:
        return None
    resource = "/".join(filter(None, (target["resource"], target.get("subresource"))))
    return Right(target.get("apiGroup", ""), resource, entry["verb"])


def kubeconfig(control_plane: ControlPlane) -> Path:
    """A kubeconfig with the chart's rights and no others, which are given to the operator's account first."""
    target = control_plane.settings.state / "operator.kubeconfig"
    if not target.exists():
        Server.of(control_plane).send("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}})
        grant(control_plane, SYSTEM, "operator")
        control_plane.pki.write_kubeconfig("operator", control_plane.server, target)
    return target
