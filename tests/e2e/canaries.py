"""All that others than a model's users may read, in one look: our objects with their status, their children, Events, logs, metrics."""

from __future__ import annotations

from dev.demo.kube import DemoError, Kube
from dev.demo.stack import SYSTEM

KINDS = ("finetunejobs", "evalruns", "modeldeployments", "jobs", "deployments", "services", "pods", "events.events.k8s.io")
HEALTH_PORT, ENGINE_PORT = 8080, 8000


def told(kube: Kube) -> dict[str, str]:
    """Source -> text: what the namespace of `kube` tells, and what the operator does."""
    texts = {kind: kube.run("get", kind, "--output=json") for kind in KINDS}
    for namespace in (kube.namespace, SYSTEM):
        pods = kube.get("pods", f"--namespace={namespace}")["items"]
        for pod in (pod for pod in pods if pod["status"]["phase"] != "Pending"):
            name = pod["metadata"]["name"]
            texts[f"log of {name}"] = kube.run("logs", name, f"--namespace={namespace}", "--all-containers")
            if pod["status"]["phase"] == "Running":
                texts |= _metrics(kube, namespace, name, HEALTH_PORT if namespace == SYSTEM else ENGINE_PORT)
    return texts


def _metrics(kube: Kube, namespace: str, pod: str, port: int) -> dict[str, str]:
    """The metrics of a pod that has any."""
    try:
        return {f"metrics of {pod}": kube.run("get", "--raw", f"/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/metrics")}
    except DemoError:
        return {}


def sources(texts: dict[str, str], word: str) -> list[str]:
    """Where `word` is told."""
    return sorted(source for source, text in texts.items() if word in text)
