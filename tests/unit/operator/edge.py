"""Makers of objects and a kind so small that a test of the edge can be read without knowing the real ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tunesmith import kinds
from tunesmith.api import conditions
from tunesmith.core.errors import DependencyFailed, InvalidSpec, NotReadyYet
from tunesmith.core.objects import API_VERSION, LABEL_UID, MANAGED_BY, Config, Images, Key, Object, Observed, Plan

CONFIG = Config(Images("trainer:1", "serving:1"))
TYPES = {"Job": "batch/v1", "Deployment": "apps/v1"}


def owner(name: str = "tune", version: int = 1, uid: str = "", kind: str = "FineTuneJob", **spec: Any) -> Object:
    """An object of ours."""
    metadata = {"name": name, "namespace": "team", "uid": uid or f"uid-{name}", "resourceVersion": str(version), "generation": 1}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


def child(kind: str, name: str, parent: Object | None = None, version: int = 2, **fields: Any) -> Object:
    """An object that belongs to `parent`; a pod by its label, as its controller is a Job."""
    uid = parent["metadata"]["uid"] if parent else ""
    metadata: Object = {"name": name, "namespace": "team", "uid": f"uid-{kind}-{name}", "resourceVersion": str(version)}
    metadata["labels"] = MANAGED_BY | ({LABEL_UID: uid} if parent else {})
    if parent and kind != "Pod":
        metadata["ownerReferences"] = [{"kind": parent["kind"], "name": parent["metadata"]["name"], "uid": uid, "controller": True}]
    return {"apiVersion": TYPES.get(kind, "v1"), "kind": kind, "metadata": metadata, **fields}


def desired(obj: Object) -> Object:
    """`obj` without what the server decides."""
    return {**obj, "metadata": {name: value for name, value in obj["metadata"].items() if name not in ("uid", "resourceVersion")}}


def key(obj: Object) -> Key:
    """The key of `obj`."""
    return Key(obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"])


def changed(obj: Object, version: int, **metadata: Any) -> Object:
    """`obj` at a later version, with a change."""
    return {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(version), "annotations": {"changed": str(version)}, **metadata}}


def references(spec: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """A spec names others under `names`: {kind: name}."""
    return frozenset(spec.get("names", {}).items())


def status(observed: Observed) -> Object:
    """Phase Done once the Job is there; `fail` raises what is asked for."""
    if observed.spec.get("fail") == "status":
        raise InvalidSpec("Impossible", "it cannot be")
    problem = observed.problem
    told = conditions.stalled(problem["reason"], problem["message"]) if problem else conditions.working("Busy", "on it")
    merged = conditions.merge(observed.recorded.get("conditions", ()), told, observed.owner["metadata"]["generation"], observed.now)
    told_by = "Succeeded" if observed.of_kind("Pod") else "Failed"
    attempt = {"stage": "Train", "outcome": told_by, "reason": told_by}
    judged = {"attempts": [attempt]} if observed.spec.get("judge") else {}
    return {"phase": "Done" if observed.of_kind("Job") else "Begun", "conditions": merged, "observedGeneration": 1} | judged


def build(observed: Observed, status: Mapping[str, Any]) -> Plan:
    """Services and a Job; `drop` deletes all children of a kind instead of the Job."""
    if observed.spec.get("fail") == "build":
        raise NotReadyYet("Awaiting", "something is missing")
    if observed.spec.get("fail") == "dependency":
        raise DependencyFailed("what is named has failed")
    names = observed.spec.get("configs", ["config"])
    configs = tuple(desired(child("Service", name, observed.owner, spec={"phase": "any"})) for name in names)
    job = desired(child("Job", "job", observed.owner, spec={}))
    drop = tuple(observed.of_kind(observed.spec.get("drop", "")))
    return Plan(apply=configs, create=() if drop else (job,), delete=drop, wake_after=observed.spec.get("wake"))


KINDS = {name: replace(kind, status=status, build=build, references=references) for name, kind in kinds.KINDS.items()}
