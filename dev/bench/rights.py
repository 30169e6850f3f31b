"""The rights that the chart gives the operator, for one that no chart has installed."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

from dev.cluster import tools
from dev.cluster.controlplane import ControlPlane
from dev.cluster.pki import Identity
from dev.cluster.processes import wait_until

CHART = Path(__file__).resolve().parents[2] / "helm" / "tunesmith"
KINDS = ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "Lease")
"""What the chart says of rights; the Lease goes with them, since the operator may not make it."""
LEASE = "tunesmith-leader"


def account(namespace: str) -> str:
    """The operator's account in a release of that namespace."""
    return f"system:serviceaccount:{namespace}:tunesmith"


def documents(namespace: str, *settings: str) -> list[dict[str, Any]]:
    """The chart's objects of those kinds, installed into `namespace` with those values."""
    values = [argument for setting in settings for argument in ("--set", setting)]
    command = [str(tools.binary("helm")), "template", "tunesmith", str(CHART), f"--namespace={namespace}", *values]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [each for each in yaml.safe_load_all(rendered) if each and each["kind"] in KINDS]


def grant(control_plane: ControlPlane, namespace: str, certificate: str, *settings: str) -> None:
    """Give the account of that namespace, which has to be there, what the chart gives it, and make a certificate of it by that name."""
    control_plane.pki.issue(Identity(certificate, f"/O=system:serviceaccounts/CN={account(namespace)}", "clientAuth"))
    _kubectl(control_plane, "apply", "--server-side", "-f", "-", text=yaml.safe_dump_all(documents(namespace, *settings)))
    # The server takes a moment to know of a binding, and what is forbidden in it would be told as a fault of the chart.
    asked = ("auth", "can-i", "update", f"leases.coordination.k8s.io/{LEASE}", f"--namespace={namespace}", f"--as={account(namespace)}")
    wait_until(lambda: _kubectl(control_plane, *asked, check=False).strip() == "yes", "the operator's rights", 30)


def _kubectl(control_plane: ControlPlane, *arguments: str, text: str = "", check: bool = True) -> str:
    command = [str(tools.binary("kubectl")), f"--kubeconfig={control_plane.kubeconfig}", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=check).stdout
