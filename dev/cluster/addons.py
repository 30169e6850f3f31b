"""What runs in the cluster from the start: DNS and the volume provisioner."""

from __future__ import annotations

import string
from pathlib import Path

from . import paths
from .images import BASE_IMAGE, COREDNS_IMAGE, PROVISIONER_IMAGE
from .topology import DNS_ADDRESS

DEPLOYMENTS = (
    ("kube-system", "coredns"),
    ("local-path-storage", "local-path-provisioner"),
)


def manifests(volumes: Path, node_count: int) -> str:
    """The manifests of all add-ons as one YAML text."""
    coredns = _render("coredns.yaml", image=COREDNS_IMAGE, address=DNS_ADDRESS, replicas=str(node_count))
    storage = _render("storage.yaml", image=PROVISIONER_IMAGE, helper_image=BASE_IMAGE, volumes=str(volumes))
    return f"{coredns}---\n{storage}"


def _render(name: str, **values: str) -> str:
    text = (paths.MANIFESTS / name).read_text()
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return string.Template(body).substitute(values) + "\n"
