"""Who may reach the pods of a ModelDeployment, and what they may reach: one NetworkPolicy for all its revisions.

Policies add up: whoever wants a gateway or a monitoring system in another namespace to reach the model adds a NetworkPolicy of his own.
"""

from __future__ import annotations

from tunesmith.core.objects import Object
from tunesmith.modeldeployment.revision import selector
from tunesmith.workload.podspec import child_metadata

DNS_PORT = 53


def network_policy(owner: Object) -> Object:
    """In: the engine's port, from the owner's namespace. Out: DNS. (Probes come from the pod's own node, which is always let in.)"""
    metadata = owner["metadata"]
    spec = {
        "podSelector": {"matchLabels": selector(owner, None)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": "http", "protocol": "TCP"}]}],
        "egress": [{"ports": [{"port": DNS_PORT, "protocol": protocol} for protocol in ("UDP", "TCP")]}],
    }
    name = f"{metadata['name']}-{metadata['uid'][:5]}"
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": child_metadata(owner, name, {}), "spec": spec}
