"""The operator's rights: those that the chart gives, and those that the audit log says it made use of."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dev.cluster import tools
from dev.cluster.controlplane import ControlPlane
from dev.cluster.pki import Identity

CHART = Path(__file__).resolve().parents[2] / "helm" / "tunesmith"
SYSTEM = "tunesmith-system"
ACCOUNT = f"system:serviceaccount:{SYSTEM}:tunesmith"
KINDS = ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "Lease")
"""What the chart says of rights; the Lease goes with them, since the operator may not make it."""


class Right(NamedTuple):
    """A verb on a resource (`jobs`, `finetunejobs/status`) of an API group."""

    group: str
    resource: str
    verb: str


def documents() -> list[dict[str, Any]]:
    """The chart's objects of those kinds as it is installed by default."""
    command = [str(tools.binary("helm")), "template", "tunesmith", str(CHART), f"--namespace={SYSTEM}"]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [each for each in yaml.safe_load_all(rendered) if each and each["kind"] in KINDS]


def granted() -> set[Right]:
    """What the chart's roles grant the operator; those that only people are to have are bound to nobody."""
    made = documents()
    bound = {(each["roleRef"]["kind"], each["roleRef"]["name"]) for each in made if "roleRef" in each}
    rules = [rule for role in made if (role["kind"], role["metadata"]["name"]) in bound for rule in role["rules"]]
    return {Right(group, resource, verb) for rule in rules for group in rule["apiGroups"] for resource in rule["resources"] for verb in rule["verbs"]}


def used(audit_log: Path) -> set[Right]:
    """What the operator's account asked for and got."""
    return {right for entry in _entries(audit_log) for right in _right(entry)}


def _entries(audit_log: Path) -> Iterator[dict[str, Any]]:
    with audit_log.open("rb") as log:
        for line in log:
            if ACCOUNT.encode() in line and line.endswith(b"}\n"):
                yield json.loads(line)


def _right(entry: dict[str, Any]) -> Iterable[Right]:
    target = entry.get("objectRef")
    # Refused: it is the right that is missing, or an object that was in the way.
    if not target or entry["user"]["username"] != ACCOUNT or entry.get("responseStatus", {}).get("code") == 403:
        return ()
    resource = "/".join(filter(None, (target["resource"], target.get("subresource"))))
    return (Right(target.get("apiGroup", ""), resource, entry["verb"]),)


def kubeconfig(control_plane: ControlPlane) -> Path:
    """A kubeconfig with the chart's rights and no others, which are given to the operator's account first."""
    target = control_plane.settings.state / "operator.kubeconfig"
    if not target.exists():
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}}
        manifests = yaml.safe_dump_all([namespace, *documents()])
        apply = [str(tools.binary("kubectl")), f"--kubeconfig={control_plane.kubeconfig}", "apply", "--server-side", "-f", "-"]
        subprocess.run(apply, input=manifests, capture_output=True, text=True, check=True)
        control_plane.pki.issue(Identity("operator", f"/O=system:serviceaccounts/CN={ACCOUNT}", "clientAuth"))
        control_plane.pki.write_kubeconfig("operator", control_plane.server, target)
    return target
