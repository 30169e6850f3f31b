"""Who may reach the pods of an object's stages, and what they may reach: one NetworkPolicy for all of them.

Training processes meet at a port that asks nobody who he is, and believe what they are sent. So only pods of the same object reach them.
Policies add up: whoever wants more adds one of his own.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from tunesmith.core.objects import LABEL_UID, Config, Object
from tunesmith.workload.podspec import child_metadata

DNS_PORT, HTTPS_PORT = 53, 443


def stage_policy(owner: Object, config: Config) -> Object:
    """In: pods of the same object. Out: these, name services and the progress endpoint."""
    metadata = owner["metadata"]
    ours = {"podSelector": {"matchLabels": {LABEL_UID: metadata["uid"]}}}
    spec = {
        **ours,
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [ours]}],
        "egress": [{"to": [ours]}, {"ports": [{"port": DNS_PORT, "protocol": protocol} for protocol in ("UDP", "TCP")]}, *_progress(config)],
    }
    name = f"{metadata['name']}-{metadata['uid'][:5]}"
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": child_metadata(owner, name, {}), "spec": spec}


def _progress(config: Config) -> list[dict[str, Any]]:
    """The endpoint's port, of its Service and behind it: which of them counts differs between networks."""
    if not config.progress_url:
        return []
    url = urlsplit(config.progress_url)
    ports = sorted({url.port or HTTPS_PORT, config.progress_port})
    words = (url.hostname or "").split(".")
    inside = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": words[1]}}} if words[2:3] == ["svc"] else None
    return [({"to": [inside]} if inside else {}) | {"ports": [{"port": port, "protocol": "TCP"} for port in ports]}]
