"""EvalRuns and all that they look at, for the state tables. `World` plays the edge and the cluster around the pure core."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from tunesmith.conditions import find
from tunesmith.evalrun.api import references
from tunesmith.evalrun.build import build
from tunesmith.evalrun.status import status
from tunesmith.values import Config, Images, Key, Object, Observed, Plan

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BASE, MERGED, W8A8, FOUND = ("sha256:" + letter * 64 for letter in "bcde")
RUN = "pvc://models/team-a/bot/0123456789ab"
HELD_OUT: Object = {"name": "heldOut", "perplexity": {"dataset": {"uri": "pvc://datasets/test.jsonl", "format": "Messages"}}}
PLAIN: Object = {"model": {"fineTuneJobRef": {"name": "bot"}, "artifact": "w8a8"}, "suites": [HELD_OUT]}
GATED: Object = {
    **PLAIN,
    "baselines": [{"name": "base"}, {"name": "unquantized"}],
    "gate": [
        {"metric": "heldOut/perplexity", "baseline": "base", "maxRatio": "0.95"},
        {"metric": "heldOut/perplexity", "max": "20"},
    ],
}
BY_URI: Object = {"model": {"uri": "pvc://models/mine"}, "suites": [HELD_OUT], "output": {"uri": "pvc://results"}}


def condition(kind: str, value: str, reason: str = "Told", message: str = "") -> Object:
    return {"type": kind, "status": value, "reason": reason, "message": message}


SUCCEEDED = (condition("Ready", "True"), condition("Succeeded", "True"), condition("Stalled", "False"))
FAILED = (condition("Stalled", "True", "EmptyDataset", "no row is left"), condition("Succeeded", "False"))


def artifact(name: str, digest: str) -> Object:
    return {"name": name, "uri": f"{RUN}/{name.lower()}", "digest": digest, "sizeBytes": 1, "format": "Safetensors", "baseDigest": BASE}


def job(*artifacts: Object, conditions: tuple[Object, ...] = SUCCEEDED) -> Object:
    """A FineTuneJob that has prepared its data and made `artifacts`."""
    stages = [
        {"name": "Prepare", "state": "Succeeded", "attempt": 1, "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:01:00Z"},
        {"name": "Train", "state": "Succeeded", "attempt": 2, "startTime": "2026-01-01T00:01:00Z", "completionTime": "2026-01-01T02:00:00Z"},
        {"name": "Quantize", "part": "w4a16", "state": "Running", "attempt": 1, "startTime": "2026-01-01T02:00:00Z"},
    ]
    resolved = {"runURI": RUN, "model": {"uri": "pvc://models/cache/base", "digest": BASE, "parameters": 1}}
    told = {"resolved": resolved, "artifacts": list(artifacts), "stages": stages, "conditions": list(conditions)}
    return {"kind": "FineTuneJob", "metadata": {"name": "bot"}, "spec": {"output": {"uri": "pvc://models/team-a"}}, "status": told}


READY_JOB = job(artifact("Merged", MERGED), artifact("w8a8", W8A8))


def claim(name: str) -> Object:
    return {"kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {}}


CLAIMS = tuple(claim(name) for name in ("datasets", "models", "results"))


class World:
    """One EvalRun, what it names and what it owns; `step` is one reconcile."""

    def __init__(self, spec: Object, *named: Object) -> None:
        metadata = {"name": "bot-eval", "namespace": "team-a", "uid": "7e1a2b3c-0000-4000-8000-000000000001", "generation": 1}
        self.owner: Object = {"apiVersion": "tunesmith.dev/v1alpha1", "kind": "EvalRun", "metadata": metadata, "spec": copy.deepcopy(spec)}
        self.named = {Key(entry["kind"], "team-a", entry["metadata"]["name"]): entry for entry in named}
        self.children: dict[tuple[str, str], Object] = {}
        self.image = "registry.example/trainer:1"
        self.now = START
        self.problem: dict[str, str] | None = None
        self.plan = Plan()

    def observed(self) -> Observed:
        config = Config(Images(self.image, "registry.example/serving:1"))
        children = tuple(copy.deepcopy(list(self.children.values())))
        return Observed(copy.deepcopy(self.owner), self.now, config, children, self.named, problem=self.problem)

    def step(self) -> Object:
        """Reconcile once: write the status, carry out the plan."""
        written = status(self.observed())
        self.owner["status"] = json.loads(json.dumps(written))
        self.plan = build(self.observed(), written)
        for entry in (*self.plan.apply, *self.plan.create):
            key = entry["kind"], entry["metadata"]["name"]
            self.children[key] = {**copy.deepcopy(entry), "metadata": {**entry["metadata"], "uid": f"uid-{key[1]}"}}
        for entry in self.plan.delete:
            del self.children[entry["kind"], entry["metadata"]["name"]]
        return written

    def rest(self) -> Object:
        """Reconcile until nothing changes any more."""
        for _ in range(10):
            before = copy.deepcopy((self.owner.get("status"), self.children))
            written = self.step()
            if (self.owner["status"], self.children) == before:
                return written
        raise AssertionError("it never comes to rest")

    def run(self) -> Object:
        """Let every stage succeed; return the last status."""
        self.rest()
        for name in ("tested", *(each["name"] for each in self.owner["spec"].get("baselines", ()))):
            self.evaluated(name)
        self.rest()
        self.compared()
        return self.rest()

    def change(self, **fields: Any) -> None:
        """Edit the spec."""
        self.owner["spec"] |= fields
        self.owner["metadata"]["generation"] += 1

    def jobs(self) -> list[str]:
        """Jobs that are not finished, by stage and attempt."""
        live = [child for (kind, _), child in self.children.items() if kind == "Job" and "status" not in child]
        return sorted(child["metadata"]["name"].removeprefix("bot-eval-").removesuffix("-7e1a2") for child in live)

    def input(self, stage: str) -> Object:
        """The stage.json of a stage's Job, such as `evaluate-tested-1`."""
        parsed: Object = json.loads(self.children["ConfigMap", f"bot-eval-{stage}-7e1a2"]["data"]["stage.json"])
        return parsed

    def start(self, stage: str) -> None:
        """The pod of a stage's Job runs."""
        self._pod(stage, {"phase": "Running"})

    def end(self, stage: str, **result: Any) -> None:
        """The pod of a stage's Job ends with `result`, and the Job with it."""
        name, attempt = stage.split("-")[0].capitalize(), int(stage.rsplit("-", 1)[1])
        times = {"startTime": "2026-01-02T03:04:05Z", "completionTime": "2026-01-02T03:05:05Z"}
        told = {"schemaVersion": 1, "stage": name, "attempt": attempt, "outcome": "Succeeded", **times, **result}
        good = told["outcome"] == "Succeeded"
        terminated = {"exitCode": told.get("exitCode", 0), "message": json.dumps(told)}
        ended = {"phase": "Succeeded" if good else "Failed", "containerStatuses": [{"name": "stage", "state": {"terminated": terminated}}]}
        self._pod(stage, ended)
        self.children["Job", f"bot-eval-{stage}-7e1a2"]["status"] = {"conditions": [condition("Complete" if good else "Failed", "True")]}
        self.now += timedelta(minutes=1)

    def _pod(self, stage: str, state: Object) -> None:
        owner = self.children["Job", f"bot-eval-{stage}-7e1a2"]
        metadata = {"name": f"{stage}-pod", "labels": owner["metadata"]["labels"], "uid": f"uid-{stage}-pod"}
        self.children["Pod", f"{stage}-pod"] = {"kind": "Pod", "metadata": metadata, "spec": {}, "status": state}

    def evaluated(self, name: str, attempt: int = 1) -> None:
        """The Evaluate stage of a model succeeds."""
        given = self.input(f"evaluate-{name}-{attempt}")
        model = {"digest": FOUND, **given["model"]}
        self.end(f"evaluate-{name}-{attempt}", model=model, resultURI=f"{given['runURI']}/results/evaluate-{name}.json")

    def compared(self, verdict: str = "Passed") -> None:
        """The Compare stage succeeds with that verdict."""
        given = self.input("compare-1")
        gate = [{"outcome": verdict, "value": "9.1", "baselineValue": "12.5"} for _ in given["gate"]]
        results = [{"metric": "heldOut/perplexity", "tested": "9.1", "baselines": {each["name"]: "12.5" for each in given["baselines"]}}]
        places = {"resultsURI": f"{given['runURI']}/results.json", "reportURI": f"{given['runURI']}/report.html"}
        self.end("compare-1", verdict=verdict, gate=gate, results=results, **places)

    def condition(self, kind: str) -> tuple[str, str]:
        """Status and reason of a condition."""
        found = find(self.owner["status"], kind)
        assert found is not None
        return found["status"], found["reason"]

    def message(self, kind: str) -> str:
        """Message of a condition."""
        found = find(self.owner["status"], kind)
        assert found is not None
        return str(found["message"])

    def states(self) -> dict[str, str]:
        """Status of every condition."""
        return {entry["type"]: entry["status"] for entry in self.owner["status"]["conditions"]}

    def named_by_spec(self) -> frozenset[tuple[str, str]]:
        return references(self.owner["spec"])
