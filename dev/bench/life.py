"""The reference life: what a user and a kubelet do to objects of the three kinds from their creation to their deletion.

There is no kubelet: the life says what became of each pod, and waits at every step for what the operator makes of it. It waits for
states that last, never for one that is passed through, so that it comes to the same end however often the operator is killed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dev.bench.mask import snapshot
from dev.bench.view import MERGE, GaveUp, Object, View
from tunesmith.api.conditions import find, is_true
from tunesmith.core.objects import LABEL_ATTEMPT, LABEL_NAME, LABEL_PART, LABEL_STAGE
from tunesmith.modeldeployment.revision import LABEL_REVISION
from tunesmith.runtime.resources import RESOURCES

DIGEST = "sha256:" + "0" * 64
RUN = "pvc://models/out/team/tune/000000000000"
OURS = tuple(resource.kind for resource in RESOURCES.values() if resource.ours)
CHILDREN = tuple(resource.kind for resource in RESOURCES.values() if resource.selector)

TUNE: Object = {
    "model": {"uri": "pvc://models/base"},
    "datasets": [{"name": "chat", "uri": "pvc://models/chat.jsonl", "format": "Messages"}],
    "method": {"sft": {}},
    "parallelism": {"nodes": 2, "ddp": {}},
    "output": {"uri": "pvc://models/out", "artifacts": ["Merged"]},
    "variants": [{"name": "w8a8", "quantization": {"scheme": "W8A8", "algorithm": "GPTQ"}}],
}
HOPELESS: Object = {**TUNE, "parallelism": {"nodes": 1, "ddp": {}}, "variants": []}
JUDGE: Object = {
    "model": {"fineTuneJobRef": {"name": "tune"}, "artifact": "Merged"},
    "baselines": [{"name": "base"}],
    "suites": [{"name": "heldOut", "perplexity": {"dataset": {"uri": "pvc://models/test.jsonl", "format": "Messages"}}}],
    "gate": [{"metric": "heldOut/perplexity", "max": "100"}],
}
SERVE: Object = {"model": {"fineTuneJobRef": {"name": "tune"}, "artifact": "Merged"}, "gate": {"evalRunRefs": [{"name": "judge"}]}}

PREPARED = {
    "runDigest": DIGEST,
    "runURI": RUN,
    "model": {"uri": "pvc://models/base", "digest": DIGEST, "parameters": 1, "architecture": "GPT2LMHeadModel"},
    "datasets": [{"name": "chat", "digest": DIGEST, "rows": 8, "dropped": 0}],
    "trainRows": 8,
    "validationRows": 0,
}
CHECKPOINT = {"checkpoint": {"uri": f"{RUN}/checkpoints/attempt-2/step-3", "step": 3}}
TRAINED = {"globalStep": 3, **CHECKPOINT}
MERGED = {"name": "Merged", "uri": f"{RUN}/merged", "digest": DIGEST, "sizeBytes": 1, "format": "Safetensors", "baseDigest": DIGEST}
QUANTIZED = {**MERGED, "name": "w8a8", "uri": f"{RUN}/variants/w8a8", "format": "CompressedTensors"}
COMPARED = {"verdict": "Passed", "gate": [{"outcome": "Passed", "value": "12.5"}], "results": [], "resultsURI": f"{RUN}/results.json"}

RESULTS: dict[str, Object] = {
    "Prepare": PREPARED,
    "Train": {"globalStep": 3, "checkpoint": {"uri": f"{RUN}/checkpoints/attempt-1/step-3", "step": 3}},
    "Finalize": {"artifacts": [MERGED]},
}
"""Of each stage of a FineTuneJob that trains at the first attempt and makes no variant."""


def answer(stage: str, attempt: int, facts: Mapping[str, Any], code: int = 0, reason: str = "") -> Object:
    """A stage's result as it stands in the termination message."""
    outcome = {0: "Succeeded", 75: "Interrupted"}.get(code, "Failed")
    failure = {"exitCode": code, "reason": reason, "message": f"{stage} did not work out"} if code else {}
    times = {"startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:01:00Z"}
    return {"schemaVersion": 1, "stage": stage, "attempt": attempt, "outcome": outcome, **times, **failure, **facts}


def ended(result: Object | str, code: int = 0) -> Object:
    """The status of a pod whose container has ended with that termination message."""
    message = result if isinstance(result, str) else json.dumps(result)
    terminated = {"exitCode": code, "reason": "Error" if code else "Completed", "message": message, "startedAt": None, "finishedAt": None}
    container = {"name": "stage", "ready": False, "restartCount": 0, "image": "", "imageID": "", "state": {"terminated": terminated}}
    return {"phase": "Failed" if code else "Succeeded", "containerStatuses": [container]}


class Life:
    """One life in a namespace that has the claim `models` and nothing else of ours."""

    def __init__(self, view: View, namespace: str) -> None:
        self.view = view
        self.namespace = namespace
        self.uids: dict[str, str] = {}
        """Uid of each object of ours that was made, to its `Kind/name`."""
        self.snapshots: dict[str, Object] = {}
        """What was there at some points of the life, masked."""

    async def run(self) -> None:
        """From the creation of all to the deletion of all."""
        await self.create("FineTuneJob", "tune", TUNE)
        await self.create("EvalRun", "judge", JUDGE)
        await self.create("ModelDeployment", "serve", SERVE)
        await self.prepare()
        await self.train()
        await self.finish()
        await self.evaluate()
        await self.serve()
        self.shoot("served")
        await self.change()
        await self.fail()
        self.shoot("end")
        await self.delete("ModelDeployment/serve", "EvalRun/judge", "FineTuneJob/tune", "FineTuneJob/hopeless")

    async def prepare(self) -> None:
        """Prepare fails as a program does, and succeeds at the second attempt."""
        (pod,) = await self.running("tune", "Prepare", 1)
        await self.end(pod, answer("Prepare", 1, {}, 70, "InternalError"), 70)
        (pod,) = await self.running("tune", "Prepare", 2)
        await self.end(pod, answer("Prepare", 2, PREPARED))

    async def train(self) -> None:
        """Train on two nodes: suspended and resumed, then disrupted after a checkpoint, then done."""
        await self.running("tune", "Train", 1, count=2)
        await self.change_spec("FineTuneJob", "tune", {"suspend": True})
        await self.condition("FineTuneJob", "tune", "Suspended")
        await self.change_spec("FineTuneJob", "tune", {"suspend": False})
        first, second = await self.running("tune", "Train", 2, count=2)
        disrupted = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "drained"}]
        saved = answer("Train", 2, CHECKPOINT, 75, "Interrupted")
        # At once: a second after the first failure the Job's controller takes away the pods that still run.
        await asyncio.gather(self.end(second, saved, 75, disrupted), self.end(first, saved, 75))
        first, second = await self.running("tune", "Train", 3, count=2)
        await self.end(second, answer("Train", 3, {}))
        await self.end(first, answer("Train", 3, TRAINED))

    async def finish(self) -> None:
        """Finalize and the variant."""
        (pod,) = await self.running("tune", "Finalize", 1)
        await self.end(pod, answer("Finalize", 1, {"artifacts": [MERGED]}))
        (pod,) = await self.running("tune", "Quantize", 1, "w8a8")
        await self.end(pod, answer("Quantize", 1, {"artifacts": [QUANTIZED], "effect": {"quantizedModules": 1, "bitsPerWeight": "8.2"}}))
        await self.condition("FineTuneJob", "tune", "Finished")

    async def evaluate(self) -> None:
        """Two models side by side, one after the other, then the comparison."""
        for name in ("tested", "base"):
            (pod,) = await self.running("judge", "Evaluate", 1, name)
            told = {"model": {"name": name, "uri": MERGED["uri"], "digest": DIGEST}, "resultURI": f"{RUN}/results/evaluate-{name}.json"}
            await self.end(pod, answer("Evaluate", 1, told))
            await self.stage("judge", "Evaluate", 1, "Succeeded", name)
        (pod,) = await self.running("judge", "Compare", 1)
        await self.end(pod, answer("Compare", 1, COMPARED))
        await self.condition("EvalRun", "judge", "Finished")

    async def serve(self) -> None:
        """The first revision serves."""
        await self.ready()
        await self.serves()
        await self.revisions("Active")

    async def change(self) -> None:
        """New settings, one pod more, another model without a gate."""
        await self.change_spec("ModelDeployment", "serve", {"engine": {"vllm": {"maxModelLen": 64}}})
        await self.ready()
        await self.revisions("Active")
        await self.change_spec("ModelDeployment", "serve", {"replicas": 2})
        await self.ready(2)
        await self.serves(2)
        await self.change_spec("ModelDeployment", "serve", {"gate": None, "model": {"fineTuneJobRef": {"name": "tune"}, "artifact": "w8a8"}})
        await self.ready(2)
        await self.revisions("Active")

    async def fail(self) -> None:
        """A FineTuneJob whose data is bad."""
        await self.create("FineTuneJob", "hopeless", HOPELESS)
        (pod,) = await self.running("hopeless", "Prepare", 1)
        await self.end(pod, answer("Prepare", 1, {}, 65, "InvalidDataset"), 65)
        await self.condition("FineTuneJob", "hopeless", "Finished")

    # What a user does.

    async def create(self, kind: str, name: str, spec: Object) -> None:
        """Make an object of ours."""
        resource = RESOURCES[kind]
        body = {"apiVersion": resource.api_version, "kind": kind, "metadata": {"name": name}, "spec": spec}
        made = await self.view.write("POST", resource.path(self.namespace), body)
        self.uids[made["metadata"]["uid"]] = f"{kind}/{name}"

    async def change_spec(self, kind: str, name: str, change: Object) -> None:
        """Merge into the spec."""
        await self._seen(await self.view.write("PATCH", RESOURCES[kind].path(self.namespace, name), {"spec": change}, MERGE))

    async def delete(self, *names: str) -> None:
        """Delete objects as kubectl does, and wait until nothing of them is left."""
        for kind, _, name in (each.partition("/") for each in names):
            await self.view.write("DELETE", RESOURCES[kind].path(self.namespace, name), {"propagationPolicy": "Background"})
        await self.until(lambda: not self.view.all(self.namespace, *OURS, *CHILDREN), "all to be gone")

    # What a kubelet does.

    async def running(self, owner: str, stage: str, attempt: int, part: str = "", count: int = 1) -> Sequence[Object]:
        """Wait for the pods of an attempt, by index, say that they run, and wait until the operator has told so."""
        wanted = {LABEL_NAME: owner, LABEL_STAGE: stage, LABEL_ATTEMPT: str(attempt)} | ({LABEL_PART: part} if part else {})

        def pods() -> list[Object]:
            return [pod for pod in self.view.all(self.namespace, "Pod") if wanted.items() <= pod["metadata"].get("labels", {}).items()]

        await self.until(lambda: len(pods()) == count, f"{count} pods of {owner} {stage} {part} attempt {attempt}")
        found = pods()
        for pod in found:
            await self.tell(pod, {"phase": "Running"})
        await self.stage(owner, stage, attempt, "Running", part)
        return found

    async def end(self, pod: Object, result: Object, code: int = 0, conditions: Sequence[Object] = ()) -> None:
        """Say that the pod's container has ended with that result."""
        await self.tell(pod, ended(result, code) | ({"conditions": list(conditions)} if conditions else {}))

    async def ready(self, count: int = 1) -> None:
        """Say that the pods of the newest revision are ready, once the operator has made it and they are all there."""

        def pods() -> list[Object]:
            entries = self.status("ModelDeployment", "serve").get("revisions", ())
            newest = entries[0]["name"] if entries else ""
            found = [pod for pod in self.view.all(self.namespace, "Pod") if pod["metadata"]["labels"].get(LABEL_REVISION) == newest]
            return found if len(found) == count and any(not is_true(pod.get("status") or {}, "Ready") for pod in found) else []

        for pod in await self.until(pods, f"{count} pods that serve"):
            await self.tell(pod, {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})

    async def tell(self, pod: Object, status: Object) -> None:
        """Say what became of a pod, unless it is gone."""
        path = RESOURCES["Pod"].path(self.namespace, pod["metadata"]["name"], "status")
        code, told = await self.view.send("PATCH", path, {"status": status}, MERGE)
        # The Job's controller may have been faster to take away what is left of an attempt that failed.
        if code not in (200, 404):
            raise GaveUp(f"PATCH {path}: {code} {told.get('message')}")
        if code == 200:
            await self._seen(told)

    async def _seen(self, answer: Object) -> None:
        """Wait until the view has what was written: each kind is watched by itself, and what is decided next must not be from before."""
        metadata = answer["metadata"]
        await self.until(lambda: self.view.has_seen(answer), f"{answer['kind']} {metadata['name']} to be seen at {metadata['resourceVersion']}")

    # What is waited for.

    async def stage(self, owner: str, stage: str, attempt: int, state: str, part: str = "") -> None:
        """Wait until a stage is in a state."""
        kind = "EvalRun" if owner == "judge" else "FineTuneJob"
        wanted = {"name": stage, "attempt": attempt, "state": state} | ({"part": part} if part else {})

        def reached() -> bool:
            return any(wanted.items() <= entry.items() for entry in self.status(kind, owner).get("stages", ()))

        await self.until(reached, f"{owner} {stage} {part} attempt {attempt} to be {state}")

    async def condition(self, kind: str, name: str, condition: str) -> None:
        """Wait until a condition is True of the present generation."""

        def reached() -> bool:
            obj = self.view.get(kind, self.namespace, name) or {}
            entry = find(obj.get("status") or {}, condition)
            current = bool(entry) and entry["observedGeneration"] == obj["metadata"]["generation"] if entry else False
            return bool(entry and current and entry["status"] == "True")

        await self.until(reached, f"{kind} {name} to be {condition}")

    async def serves(self, count: int = 1) -> None:
        """Wait until so many pods serve and no more are wanted. (Ready alone is True all the while.)"""
        wanted = {"stage": "Serving", "readyReplicas": count}
        await self.until(lambda: wanted.items() <= self.status("ModelDeployment", "serve").items(), f"{count} pods to serve")

        def available() -> bool:
            return all(each["status"].get("availableReplicas") == count for each in self.view.all(self.namespace, "Deployment"))

        # The watch that has shown the operator its Deployment may be ahead of ours.
        await self.until(available, f"a Deployment to be seen with {count} pods")

    async def revisions(self, *states: str) -> None:
        """Wait until the revisions are in these states, their Deployments as many as they."""

        def reached() -> bool:
            entries = self.status("ModelDeployment", "serve").get("revisions", ())
            return [entry["state"] for entry in entries] == list(states) and len(self.view.all(self.namespace, "Deployment")) == len(states)

        await self.until(reached, f"the revisions to be {states}")
        await self.until(lambda: not any("deletionTimestamp" in pod["metadata"] for pod in self.view.all(self.namespace, "Pod")), "old pods to go")

    def status(self, kind: str, name: str) -> Object:
        """The object's status; empty if there is none."""
        status: Object = (self.view.get(kind, self.namespace, name) or {}).get("status") or {}
        return status

    async def until(self, look: Callable[[], Any], what: str) -> Any:
        """Wait; when it takes too long, say where all stood."""
        try:
            return await self.view.until(self.namespace, look, what)
        except GaveUp as error:
            told = {f"{obj['kind']} {obj['metadata']['name']}": obj.get("status") for obj in self.view.all(self.namespace, *OURS)}
            have = [f"{obj['kind']} {obj['metadata']['name']}" for obj in self.view.all(self.namespace, *CHILDREN)]
            raise GaveUp(f"{error}\n{json.dumps(told, indent=1)}\nhave: {', '.join(have)}") from None

    def shoot(self, name: str) -> None:
        """Keep what is there now."""
        self.snapshots[name] = snapshot(self.view.all(self.namespace, *OURS, *CHILDREN), self.uids, self.namespace)
