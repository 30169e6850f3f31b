"""ModelDeployments and all that they look at, for the state tables. `World` plays the edge and the cluster around the pure core."""

from __future__ import annotations

import copy
from datetime import timedelta
from typing import Any

from tests.unit.operator.makers import START
from tunesmith.api.conditions import find
from tunesmith.core.drift import stamp
from tunesmith.core.objects import Config, Images, Key, Object, Observed, Plan
from tunesmith.modeldeployment.build import build
from tunesmith.modeldeployment.status import status
from tunesmith.modeldeployment.status_schema import ModelDeploymentStatus
from tunesmith.runtime.resources import RESOURCES, trim

GOOD, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64
GATED: Object = {
    "model": {"fineTuneJobRef": {"name": "bot"}, "artifact": "Merged"},
    "gate": {"evalRunRefs": [{"name": "bot-eval"}]},
    "replicas": 1,
}
UNGATED: Object = {"model": GATED["model"], "replicas": 1}


def uri(name: str) -> str:
    """Where the artefact of the FineTuneJob `name` lies."""
    return f"pvc://models/team-a/{name}/merged"


def job(name: str = "bot", digest: str | None = GOOD, *conditions: Object) -> Object:
    """A FineTuneJob; with a digest its Merged artefact is there."""
    artifacts = [{"name": "Merged", "uri": uri(name), "digest": digest}] if digest else []
    return {"kind": "FineTuneJob", "metadata": {"name": name}, "spec": {}, "status": {"artifacts": artifacts, "conditions": list(conditions)}}


def claim(name: str = "models") -> Object:
    """A PersistentVolumeClaim."""
    return {"kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {}}


def evaluation(verdict: str | None = "Passed", digest: str = GOOD, name: str = "bot-eval", at: str = uri("bot"), *conditions: Object) -> Object:
    """An EvalRun; without a verdict it has not finished."""
    state: Object = {"conditions": list(conditions)}
    if verdict:
        outcome = {"outcome": verdict, "value": "0.41", "baselineValue": "0.40"}
        outcome |= {"lower": "0.32", "upper": "0.5", "samples": 100, "needed": 900} if verdict == "Inconclusive" else {}
        state |= {"verdict": verdict, "evaluated": {"uri": at, "digest": digest}, "gate": [outcome, {"outcome": "Passed", "value": "3.1"}]}
    gate = [{"metric": "knowledge/mmlu/acc", "min": "0.45"}, {"metric": "heldOut/perplexity", "max": "4"}]
    spec = {"model": {"fineTuneJobRef": {"name": "bot"}, "artifact": "Merged"}} | ({} if verdict == "NoCriteria" else {"gate": gate})
    return {"kind": "EvalRun", "metadata": {"name": name}, "spec": spec, "status": state}


class World:
    """One ModelDeployment, what it names and what it owns; `step` is one reconcile."""

    def __init__(self, spec: Object, *references: Object) -> None:
        metadata = {"name": "support-bot", "namespace": "team-a", "uid": "5f0c1d2e-0000-4000-8000-000000000001", "generation": 1}
        self.owner: Object = {"apiVersion": "tunesmith.dev/v1alpha1", "kind": "ModelDeployment", "metadata": metadata, "spec": copy.deepcopy(spec)}
        self.references = {Key(entry["kind"], "team-a", entry["metadata"]["name"]): entry for entry in references}
        self.children: dict[tuple[str, str], Object] = {}
        self.pods: dict[str, Object] = {}
        self.image = "registry.example/serving:1"
        self.settings: Object = {}
        """The operator's settings (fields of Config) that are not the default."""
        self.now = START
        self.problem: dict[str, str] | None = None
        self.plan = Plan()

    def observed(self) -> Observed:
        """What the edge would hand to the core now."""
        config = Config(Images("registry.example/trainer:1", self.image), **self.settings)
        children = tuple(trim(child, RESOURCES[child["kind"]]) for child in copy.deepcopy([*self.children.values(), *self.pods.values()]))
        return Observed(copy.deepcopy(self.owner), self.now, config, children, self.references, problem=self.problem)

    def step(self) -> Object:
        """Reconcile once: write the status, carry out the plan."""
        written = status(self.observed())
        # The API server prunes what the schema lacks; here it is an error.
        ModelDeploymentStatus.model_validate(written)
        self.owner["status"] = written
        self.plan = build(self.observed(), written)
        for entry in self.plan.apply:
            key = entry["kind"], entry["metadata"]["name"]
            live = self.children.get(key, {})
            metadata = {**stamp(entry)["metadata"], "generation": 1, "uid": f"uid-{key[1]}"}
            self.children[key] = {**copy.deepcopy(entry), "metadata": metadata} | ({"status": live["status"]} if "status" in live else {})
        for entry in self.plan.delete:
            if entry["kind"] == "Pod":
                self.pods = {revision: pod for revision, pod in self.pods.items() if pod["metadata"]["name"] != entry["metadata"]["name"]}
            else:
                del self.children[entry["kind"], entry["metadata"]["name"]]
        return written

    def change(self, **fields: Any) -> None:
        """Edit the spec; None removes a field."""
        spec = {name: value for name, value in {**self.owner["spec"], **fields}.items() if value is not None}
        self.owner["spec"] = spec
        self.owner["metadata"]["generation"] += 1

    def refer(self, entry: Object) -> None:
        """Add or replace a referenced object."""
        self.references[Key(entry["kind"], "team-a", entry["metadata"]["name"])] = entry

    def forget(self, kind: str, name: str) -> None:
        """Delete a referenced object."""
        del self.references[Key(kind, "team-a", name)]

    def deployments(self) -> list[str]:
        """Names of the Deployments that exist."""
        return sorted(name for kind, name in self.children if kind == "Deployment")

    def ready(self, revision: str, pods: int = 1) -> None:
        """The revision's pods answer."""
        self.pods.pop(revision, None)
        deployment = self.children["Deployment", self.child(revision)]
        deployment["status"] = {"observedGeneration": 1, "replicas": pods, "readyReplicas": pods, "updatedReplicas": pods}

    def unready(self, revision: str, **container: Any) -> None:
        """The revision's one pod does not answer; `container` is its container's status."""
        self.children["Deployment", self.child(revision)]["status"] = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1}
        labels = {"tunesmith.dev/revision": revision, "tunesmith.dev/uid": self.owner["metadata"]["uid"]}
        state = {"phase": "Running", "containerStatuses": [{"name": "stage", "ready": False, "restartCount": 0, **container}]}
        self.pods[revision] = {"kind": "Pod", "metadata": {"name": f"pod-{revision}", "labels": labels}, "status": state}

    def child(self, revision: str) -> str:
        """Name of the revision's children."""
        return f"support-bot-{revision}-5f0c1"

    def revisions(self) -> dict[str, str]:
        """State of each revision by name."""
        return {entry["name"]: entry["state"] for entry in self.owner["status"]["revisions"]}

    def named(self, state: str) -> str:
        """Name of the revision in that state."""
        return next(name for name, value in self.revisions().items() if value == state)

    def serve(self) -> str:
        """Bring the first revision to Active and return its name."""
        self.step()
        name = self.named("Candidate")
        self.ready(name)
        self.step()
        self.step()
        return name

    def selected(self) -> str:
        """The revision that the Service `support-bot` selects."""
        selector: dict[str, str] = self.children["Service", "support-bot"]["spec"]["selector"]
        return selector["tunesmith.dev/revision"]

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)

    def told(self) -> dict[str, str]:
        """Each condition as `Status/Reason`."""
        return {entry["type"]: f"{entry['status']}/{entry['reason']}" for entry in self.owner["status"]["conditions"]}

    def message(self, kind: str) -> str:
        """The message of a condition."""
        entry = find(self.owner["status"], kind)
        assert entry is not None
        return str(entry["message"])
