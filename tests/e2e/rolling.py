"""A ModelDeployment of tiny models under a driver's load, for test_serving.py."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dev.cluster import images
from dev.cluster.cluster import Cluster
from dev.cluster.processes import wait_until
from dev.demo import follow, seed
from dev.demo.kube import Kube, Object, ours
from dev.demo.stack import ROOT
from dev.rows import write_rows
from tests.e2e.tiny import make_model

NAME = "rolling"
PODS = f"--selector=tunesmith.dev/name={NAME},tunesmith.dev/kind=ModelDeployment"
DRIVER = "driver"
MODELS = {"one": 1, "two": 2}
"""Seeds of their weights."""
ROLLOUT = 600
"""Seconds for vLLM to start on a busy machine, and the drain after it."""


def upload_models(kube: Kube) -> None:
    """Put the models, one with half of its weights and one changed since its manifest, and some text on the volume `datasets`, below `tiny`."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "tiny"
        for name, number in MODELS.items():
            make_model(folder / name, number)
        shutil.copytree(folder / "two", folder / "changed")
        write_manifest(folder / "changed")
        (folder / "changed/generation_config.json").write_text('{"max_new_tokens": 1}')
        shutil.copytree(folder / "one", folder / "broken")
        weights = folder / "broken/model.safetensors"
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
        write_rows(folder / "rows.jsonl", ({"text": f"one two three {number}"} for number in range(8)))
        seed.upload(kube, Path(scratch), "datasets")


def write_manifest(folder: Path) -> None:
    """What makes a folder an artefact (docs/contract.md): its digest is that of this file."""
    files = sorted((path.relative_to(folder).as_posix(), path.read_bytes()) for path in folder.rglob("*") if path.is_file())
    entries = [{"path": path, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)} for path, content in files]
    (folder / "manifest.json").write_text(json.dumps({"files": entries}, sort_keys=True, separators=(",", ":")))


def evaluation(model: str, limit: str) -> Object:
    """An EvalRun that passes if the model's perplexity is at most `limit`."""
    rows = {"uri": "pvc://datasets/tiny/rows.jsonl", "format": "Text"}
    spec = {
        "model": {"uri": f"pvc://datasets/tiny/{model}"},
        "suites": [{"name": "text", "perplexity": {"dataset": rows, "maxLength": 64}}],
        "gate": [{"metric": "text/perplexity", "max": limit}],
        "output": {"uri": "pvc://models/tiny"},
        "resources": {"cpu": "200m", "memory": "3Gi"},
    }
    return spec


TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


def deployment(model: str, length: int = 256) -> Object:
    """The spec of the ModelDeployment for a model whose EvalRun has the same name; settings that need little memory."""
    return {
        "model": {"uri": f"pvc://datasets/tiny/{model}"},
        "gate": {"evalRunRefs": [{"name": f"tiny-{model}"}]},
        "engine": {"vllm": {"maxModelLen": length, "overrides": {"max_num_seqs": "8", "kv_cache_memory_bytes": "67108864"}}},
        "replicas": 1,
        "resources": {"cpu": "200m", "memory": "4Gi"},
        # Instead of 300 s, Kubernetes' own, so that a test need not wait for that.
        "scheduling": {"tolerations": [{"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10} for taint in TAINTS]},
    }


class Rolling:
    """The ModelDeployment, and what its clients got."""

    def __init__(self, kube: Kube) -> None:
        self.kube = kube
        self.applied: Object = {}
        self.served: Object = {}
        """The last spec that was served to the letter: tests go on from there, since each start of an engine takes its time."""

    def apply(self, spec: Object) -> None:
        """Change the spec."""
        self.applied = spec
        self.kube.apply(ours("ModelDeployment", NAME, spec))

    def get(self) -> Object:
        """The object."""
        return self.kube.get("modeldeployment", NAME)

    def revisions(self) -> dict[str, str]:
        """State of each revision."""
        return {entry["name"]: entry["state"] for entry in self.get()["status"].get("revisions", ())}

    def pods(self) -> list[Object]:
        """All its pods, those on their way out included."""
        found: list[Object] = self.kube.get("pods", PODS)["items"]
        return found

    def settle(self, replicas: int = 1, seconds: float = ROLLOUT) -> Object:
        """Wait until one revision is left with so many pods, all ready; return the object."""

        def settled() -> bool:
            thing, pods = self.get(), self.pods()
            status = thing["status"]
            # Of the pods themselves: a moment after one is gone, the status still tells of it.
            ready = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"] and follow.condition(pod, "Ready").get("status") == "True"]
            return (
                status["observedGeneration"] == thing["metadata"]["generation"]
                and status["stage"] == "Serving"
                and status["readyReplicas"] == len(pods) == len(ready) == replicas
                and list(self.revisions().values()) == ["Active"]
            )

        wait_until(settled, f"{replicas} pods of one revision", seconds, 1)
        self.served = self.applied
        return self.get()

    def start_driver(self, image: str, node: str) -> None:
        """Have requests sent from a pod on that node, until the test module ends."""
        script = (Path(__file__).parent / "driver.py").read_text()
        self.kube.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": DRIVER}, "data": {"driver.py": script}})
        # By its address: the DNS server may be on a node that a test stops.
        address = self.kube.get("service", NAME)["spec"]["clusterIP"]
        pod = seed.loader_pod(image)
        spec, container = pod["spec"], pod["spec"]["containers"][0]
        pod["metadata"]["name"] = container["name"] = DRIVER
        spec["nodeName"] = node
        spec["volumes"] = [{"name": "script", "configMap": {"name": DRIVER}}, {"name": "tmp", "emptyDir": {}}]
        container["volumeMounts"] = [{"name": "script", "mountPath": "/script"}, {"name": "tmp", "mountPath": "/tmp"}]
        container["command"] = ["python3", "/script/driver.py", address, NAME]
        self.kube.apply(pod)
        self.kube.run("wait", f"pod/{DRIVER}", "--for=condition=Ready", "--timeout=60s")
        wait_until(lambda: self.counts()["streamed"] > 0, "the first answers", 60, 1)

    def counts(self) -> Any:
        """The driver's counts."""
        text = self.kube.run("exec", DRIVER, "--", "sh", "-c", "cat /tmp/counts.json 2>/dev/null || true")
        return json.loads(text or '{"answered": 0, "streamed": 0, "lost": [], "unconnected": []}')

    @contextmanager
    def watched(self) -> Iterator[Object]:
        """What the clients got while the context lasts, with a second before it and after it: the counts are there at its end."""
        before, got = self.counts(), {}
        yield got
        time.sleep(1)
        after = self.counts()
        got |= {name: after[name] - before[name] for name in ("answered", "streamed")}
        got |= {name: after[name][len(before[name]) :] for name in ("lost", "unconnected")}


def told(got: Object) -> str:
    """What the clients felt, in words."""
    return f"{len(got['lost'])} requests lost, {len(got['unconnected'])} connections not made at first, for {unreachable_seconds(got):.0f} s"


def unreachable_seconds(got: Object) -> float:
    """From the first connection that could not be made to the last."""
    times = [when for when, *_ in got["unconnected"]]
    return max(times) - min(times) if times else 0.0


def expect_no_failure(got: Object) -> None:
    """Many were answered, streams among them, and every single one in full and at the first attempt."""
    assert (got["lost"], got["unconnected"]) == ([], [])
    assert got["answered"] > 20 and got["streamed"] > 5, got


def expect_lost_there_only(got: Object, gone: float) -> None:
    """No client lost more than one request, and that on a connection from before a pod was `gone`: none that was made later leads there.

    A client has one request under way, or a connection that is kept, which costs the next one.
    """
    clients = [client for _, client, _, _ in got["lost"]]
    assert len(set(clients)) == len(clients), got["lost"]
    assert all(connected <= gone for _, _, connected, _ in got["lost"]), (gone, got["lost"])


def load_other_serving_image() -> str:
    """Another serving image on the development cluster's nodes, with the same code but for a comment; its name."""
    with tempfile.TemporaryDirectory() as scratch:
        code = "serving-image/tunesmith_serving"
        for folder in (code, images.CONTRACT):
            shutil.copytree(ROOT / folder, Path(scratch) / folder, ignore=shutil.ignore_patterns("__pycache__"))
        with (Path(scratch) / code / "__init__.py").open("a") as file:
            file.write("# Another image.\n")
        (built,) = images.build_thin_images(Path(scratch), report=lambda _: None)
        Cluster().load([built.archive], lambda _: None)
    return built.name
