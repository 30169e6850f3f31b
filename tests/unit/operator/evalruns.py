"""EvalRuns and all that they look at, for the state tables."""

from __future__ import annotations

import copy
from dataclasses import replace

from tests.orders import orders
from tests.unit.operator.makers import World, answer, claim, condition, owner
from tunesmith.core.objects import LABEL_ATTEMPT, LABEL_PART, LABEL_STAGE, Images, Object
from tunesmith.evalrun.build import build
from tunesmith.evalrun.status import status

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


CLAIMS = tuple(claim(name) for name in ("datasets", "models", "results"))


class Evaluation(World):
    """An EvalRun, what it names and what it owns."""

    def __init__(self, spec: Object, *named: Object) -> None:
        super().__init__(status, build, owner("EvalRun", "bot-eval", spec), *named)

    def upgrade(self) -> None:
        """The operator is replaced by one with other images."""
        self.config = replace(self.config, images=Images("registry.example/trainer:2", "registry.example/serving:2"))

    def rest(self) -> Object:
        """Reconcile until nothing changes any more."""
        for _ in range(10):
            before = copy.deepcopy((self.status, self.children))
            if (self.step(), self.children) == before:
                return self.status
        raise AssertionError("it never comes to rest")

    def jobs(self) -> list[str]:
        """Unfinished Jobs, by stage, part and attempt."""
        live = [child["metadata"]["labels"] for (kind, _), child in self.children.items() if kind == "Job" and "status" not in child]
        return sorted(" ".join(labels[name] for name in (LABEL_STAGE, LABEL_PART, LABEL_ATTEMPT) if name in labels) for labels in live)

    def input(self, stage: str, part: str = "") -> Object:
        """The newest stage.json of a stage."""
        given: Object = orders(self.job(stage, part))
        return given

    def evaluated(self, name: str) -> None:
        """The Evaluate stage of a model succeeds."""
        given = self.input("Evaluate", name)
        told = {"model": {"digest": FOUND, **given["model"]}, "resultURI": f"{given['runURI']}/results/evaluate-{name}.json"}
        self.later(60).end("Evaluate", answer("Evaluate", name) | told, name)

    def compared(self, verdict: str = "Passed") -> None:
        """The Compare stage succeeds with that verdict."""
        given = self.input("Compare")
        gate = [{"outcome": verdict, "value": "9.1", "baselineValue": "12.5"} for _ in given["gate"]]
        results = [{"metric": "heldOut/perplexity", "tested": "9.1", "baselines": {each["name"]: "12.5" for each in given["baselines"]}}]
        self.later(60).end("Compare", answer("Compare") | {"verdict": verdict, "gate": gate, "results": results})

    def finish(self, verdict: str = "Passed", compare: bool = True) -> Object:
        """Let every stage succeed, or all but Compare; return the last status."""
        self.rest()
        for name in ("tested", *(each["name"] for each in self.owner["spec"].get("baselines", ()))):
            self.evaluated(name)
        self.rest()
        if compare:
            self.compared(verdict)
        return self.rest()

    def told(self, kind: str) -> tuple[str, str]:
        """Status and reason of a condition."""
        return self.condition(kind)["status"], self.condition(kind)["reason"]

    def message(self, kind: str) -> str:
        """Message of a condition."""
        return str(self.condition(kind)["message"])
