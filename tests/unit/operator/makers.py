"""Makes objects and a small world for them: `World(status, build, finetunejob(suspend=True))`. Used by the tests of all kinds.

`World` plays the parts around the pure core: the edge (writes the status, carries out plans) and the cluster (pods run, end, vanish).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml

from tests.orders import orders
from tunesmith.api.conditions import find, timestamp
from tunesmith.core.objects import LABEL_STAGE, Config, Images, Key, Object, Observed, Plan
from tunesmith.runtime.resources import RESOURCES, trim
from tunesmith.stages.attempt import StageKey, attempt_of
from tunesmith.workload.podspec import claims

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
UID = "5f0c1d2e-0000-4000-8000-000000000001"
NAMESPACE = "team-a"
CONFIG = Config(
    Images("registry.example/trainer:1", "registry.example/serving:1"), progress_url="https://tunesmith.tunesmith-system:8443", progress_ca="PEM\n"
)
BASE = "sha256:" + "b" * 64
RUN_URI = "pvc://models/team-a/team-a/support-bot/0123456789ab"


def finetunejob(name: str = "support-bot", **spec: Any) -> Object:
    """A FineTuneJob: LoRA on one node, no variants. `spec` replaces whole blocks; None removes one."""
    default: Object = {
        "model": {"uri": "pvc://datasets/base"},
        "datasets": [{"name": "chat", "uri": "pvc://datasets/train.jsonl", "format": "Messages"}],
        "method": {"sft": {}},
        "adapter": {"lora": {"r": 8}},
        "output": {"uri": "pvc://models/team-a"},
    }
    return owner("FineTuneJob", name, {field: value for field, value in (default | spec).items() if value is not None})


def owner(kind: str, name: str, spec: Object) -> Object:
    """An object of ours as the API server first shows it."""
    metadata = {"name": name, "namespace": NAMESPACE, "uid": UID, "generation": 1}
    return {"apiVersion": "tunesmith.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec, "status": {"observedGeneration": -1}}


def condition(kind: str, value: str, reason: str = "Told", message: str = "") -> Object:
    """One condition of a referenced object."""
    return {"type": kind, "status": value, "reason": reason, "message": message}


def claim(name: str, *modes: str) -> Object:
    """A PersistentVolumeClaim."""
    return {"kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {"accessModes": list(modes or ("ReadWriteMany",))}}


def variant(name: str, scheme: str = "W8A8", algorithm: str = "GPTQ") -> Object:
    """A FineTuneJob's variant."""
    return {"name": name, "quantization": {"scheme": scheme, "algorithm": algorithm}}


def artifact(name: str, kind: str = "Safetensors") -> Object:
    """An artefact as a result or a status names it."""
    uri = f"{RUN_URI}/{name.lower()}"
    return {"name": name, "uri": uri, "digest": "sha256:" + "a" * 64, "sizeBytes": 10, "format": kind, "baseDigest": BASE}


def answer(stage: str, part: str = "", attempt: int = 1) -> Object:
    """The result of a stage that succeeded."""
    models = {"uri": "pvc://models/team-a/cache/bbbbbbbbbbbb", "digest": BASE}
    facts: dict[str, Object] = {
        "Prepare": {"runDigest": "sha256:0123456789ab" + "c" * 52, "runURI": RUN_URI, "memoryEstimateBytes": 7}
        | {"model": models | {"parameters": 9, "contextLength": 2048, "architecture": "LlamaForCausalLM"}}
        | {"datasets": [{"name": "chat", "digest": BASE, "rows": 5, "dropped": 1}], "trainRows": 5, "validationRows": 0},
        "Train": {"globalStep": 40, "trainLoss": 1.5, "checkpoint": checkpoint(attempt, 40)},
        "Finalize": {"artifacts": [artifact("Adapter", "PEFT"), artifact("Merged")]},
        "Quantize": {"artifacts": [artifact(part, "CompressedTensors")], "effect": {"quantizedModules": 3, "bitsPerWeight": 8.1}},
        "Evaluate": {"model": models | {"name": part}, "resultURI": f"{RUN_URI}/results/evaluate-{part}.json"},
        "Compare": {"verdict": "Passed", "gate": [], "results": [], "resultsURI": f"{RUN_URI}/results.json", "reportURI": f"{RUN_URI}/report.html"},
    }
    return _common(stage, attempt, "Succeeded") | facts[stage]


def refusal(stage: str, exit_code: int, reason: str, message: str = "mend it", outcome: str = "Failed", **facts: Any) -> Object:
    """The result of a stage that did not succeed."""
    return _common(stage, 1, outcome) | {"exitCode": exit_code, "reason": reason, "message": message} | facts


def checkpoint(attempt: int, step: int) -> Object:
    """A checkpoint as a result names it."""
    return {"uri": f"{RUN_URI}/checkpoints/attempt-{attempt}/step-{step}", "step": step}


def _common(stage: str, attempt: int, outcome: str) -> Object:
    times = {"startTime": timestamp(START), "completionTime": timestamp(START)}
    return {"schemaVersion": 1, "stage": stage, "attempt": attempt, "outcome": outcome} | times


class World:
    """One object, what it names and what it owns. `step` is one reconcile; the other methods are what happens in the cluster."""

    def __init__(self, status: Callable[[Observed], Object], build: Callable[[Observed, Object], Plan], subject: Object, *references: Object) -> None:
        self._status, self._build = status, build
        self.owner = copy.deepcopy(subject)
        named = references or tuple(claim(name) for name in claims(subject["spec"]))
        self.references = {Key(entry["kind"], NAMESPACE, entry["metadata"]["name"]): entry for entry in named}
        self.children: dict[tuple[str, str], Object] = {}
        self.config = CONFIG
        self.now = START
        self.progress: Object | None = None
        self.problem: dict[str, str] | None = None
        self.refusals: dict[str, str] = {}
        self.created: list[str] = []
        self.plan = Plan()

    @property
    def status(self) -> Object:
        """The status as last written."""
        status: Object = self.owner["status"]
        return status

    def observed(self) -> Observed:
        """What the edge would hand to the core now."""
        children = tuple(trim(child, RESOURCES[child["kind"]]) for child in copy.deepcopy(list(self.children.values())))
        return Observed(copy.deepcopy(self.owner), self.now, self.config, children, self.references, self.progress, self.problem, self.refusals)

    def step(self) -> Object:
        """Reconcile once: write the status, carry out the plan."""
        self.owner["status"] = json.loads(json.dumps(self._status(self.observed())))
        self.plan = self._build(self.observed(), self.status)
        for entry in (*self.plan.apply, *self.plan.create):
            self.children.setdefault((entry["kind"], entry["metadata"]["name"]), _stored(entry, len(self.created)))
        self.created += [entry["metadata"]["name"] for entry in self.plan.create]
        for entry in self.plan.delete:
            self.remove(entry["kind"], entry["metadata"]["name"])
        return self.status

    def later(self, seconds: float) -> World:
        """Time passes."""
        self.now += timedelta(seconds=seconds)
        return self

    def edit(self, **spec: Any) -> World:
        """A person edits the spec."""
        self.owner["spec"] |= spec
        self.owner["metadata"]["generation"] += 1
        return self

    def job(self, stage: str, part: str = "") -> Object:
        """The newest Job of a stage."""
        jobs = [child for child in self.children.values() if child["kind"] == "Job" and attempt_of(child)[0] == StageKey(stage, part)]
        return max(jobs, key=lambda job: attempt_of(job)[1])

    def run(self, stage: str, part: str = "", phase: str = "Running") -> World:
        """The Job controller makes the pods of the stage's newest Job."""
        job = self.job(stage, part)
        for index in range(job["spec"]["parallelism"]):
            annotations = {"batch.kubernetes.io/job-completion-index": str(index)}
            made_by = {"kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"], "controller": True}
            name, labels = f"{job['metadata']['name']}-{index}-x", job["metadata"]["labels"]
            metadata = {"name": name, "labels": labels, "annotations": annotations, "ownerReferences": [made_by]}
            self.children["Pod", metadata["name"]] = {"kind": "Pod", "metadata": metadata, "status": {"phase": phase}}
        return self

    def pods(self, stage: str, part: str = "") -> list[Object]:
        """The pods of the stage's newest Job, by index."""
        labels = self.job(stage, part)["metadata"]["labels"]
        return [child for child in self.children.values() if child["kind"] == "Pod" and child["metadata"]["labels"] == labels]

    def end(self, stage: str, result: Object | None, part: str = "", why: str = "Error") -> World:
        """The pods of the stage end; pod 0 tells `result`. The Job is complete if it succeeded, else failed."""
        if not self.pods(stage, part):
            self.run(stage, part)
        result = by_all(result, self.job(stage, part)) if result else None
        good = result is not None and result["outcome"] == "Succeeded"
        exit_code = (result or {}).get("exitCode", 137)
        for index, pod in enumerate(self.pods(stage, part)):
            told = {"message": json.dumps(result)} if result and index == 0 else {}
            terminated = {"exitCode": 0, "reason": "Completed"} if good else {"exitCode": exit_code, "reason": why}
            pod["status"] |= {
                "phase": "Succeeded" if good else "Failed",
                "containerStatuses": [{"name": "stage", "state": {"terminated": terminated | told}}],
            }
        self.job(stage, part)["status"] = {"conditions": [{"type": "Complete" if good else "Failed", "status": "True"}]}
        return self

    def succeed(self, stage: str, part: str = "") -> World:
        """The stage succeeds, and the operator sees it."""
        self.end(stage, answer(stage, part, attempt_of(self.job(stage, part))[1]), part).step()
        return self

    def remove(self, kind: str, name: str) -> World:
        """The object is deleted. A Job's pods are told to end; they go when `vanish` says so."""
        gone = self.children.pop((kind, name))
        for child in self.children.values():
            if kind == "Job" and child["kind"] == "Pod" and child["metadata"]["labels"] == gone["metadata"]["labels"]:
                child["metadata"]["deletionTimestamp"] = timestamp(self.now + timedelta(seconds=30))
        return self

    def vanish(self) -> World:
        """The pods that were told to end are gone."""
        self.children = {key: child for key, child in self.children.items() if "deletionTimestamp" not in child["metadata"]}
        return self

    def names(self, kind: str) -> list[str]:
        """Names of the children of that kind."""
        return sorted(name for child, name in self.children if child == kind)

    def states(self) -> dict[str, str]:
        """State of each stage by its name and part."""
        return {str(StageKey(entry["name"], entry.get("part", ""))): entry["state"] for entry in self.status["stages"]}

    def condition(self, kind: str) -> Mapping[str, Any]:
        """The condition of that type."""
        found = find(self.status, kind)
        assert found, f"no condition {kind}"
        return found

    def truths(self) -> dict[str, str]:
        """Status of each condition."""
        return {entry["type"]: entry["status"] for entry in self.status["conditions"]}


def by_all(result: Object, job: Object) -> Object:
    """A success of Train that names no world size, as it is where as many processes trained as the Job was told to start; any other as it is."""
    meeting = orders(job).get("rendezvous")
    good = meeting and result["outcome"] == "Succeeded"
    return {"worldSize": meeting["nodes"] * meeting["processesPerNode"], **result} if good else result


def staged(entry: Object) -> str:
    """The stage that a child belongs to."""
    return str(entry["metadata"]["labels"][LABEL_STAGE])


def unplace(pod: Object, since: datetime) -> None:
    """The scheduler finds no node for the pod."""
    told = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: Insufficient nvidia.com/gpu"}
    pod["status"] = {"phase": "Pending", "conditions": [told | {"lastTransitionTime": timestamp(since)}]}


def as_yaml(manifests: list[Object]) -> str:
    """Manifests as a golden file shows them: no anchors, texts of several lines as such."""
    return yaml.dump_all(manifests, Dumper=_Readable, sort_keys=True, width=150)


class _Readable(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Readable.add_representer(str, _text)


def _stored(entry: Object, number: int) -> Object:
    copied = copy.deepcopy(entry)
    copied["metadata"]["uid"] = f"00000000-0000-4000-8000-{number:012d}"
    return copied
