"""What must be the same in every life: objects without what the server makes up (uids, times, versions, generated names)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tunesmith.workload.podspec import ANNOTATIONS, STAGE_FILE

Object = dict[str, Any]

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
_UID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_POD = re.compile(r"(<uid>(?:-\d+)?)-[a-z0-9]{5}\b")
_CHILD = re.compile(r"-[0-9a-f]{5}\b")
_METADATA = ("name", "generation", "labels", "annotations", "finalizers", "ownerReferences", "deletionTimestamp")
_ORDERS = ANNOTATIONS[STAGE_FILE]
_DIGESTS = ("tunesmith.dev/applied", "tunesmith.dev/rendered")
"""Annotations with a digest of what was applied or rendered, owner's uid included."""
_OMITTED = ("activeSeconds",)
"""Members of a status that are absent while they would be 0 s."""


def name_of(name: str) -> str:
    """The name of a child without the owner's uid in it."""
    return _CHILD.sub("-<uid>", name)


def snapshot(objects: Iterable[Object], uids: Mapping[str, str], namespace: str) -> Object:
    """`Kind/name` -> the object, masked; of pods only how many there are of each sort. `uids`: uid of each owner -> what it is called."""
    shown: Object = {}
    for obj in objects:
        if obj["kind"] == "Pod":
            if obj["status"].get("phase") == "Failed":
                # Of a Job that fails, the controller takes away those that still ran: how many, a moment decides.
                continue
            key = json.dumps(_pod(obj), sort_keys=True)
            shown[key] = shown.get(key, 0) + 1
        else:
            shown[f"{obj['kind']}/{obj['metadata']['name']}"] = _shown(obj)
    text = _mask(json.dumps(shown, sort_keys=True), uids)
    masked: Object = json.loads(re.sub(rf"\b{namespace}\b", "<namespace>", text))
    return masked


def _mask(text: str, uids: Mapping[str, str]) -> str:
    for uid, name in uids.items():
        text = text.replace(uid, f"<uid of {name}>").replace(f"-{uid[:5]}", "-<uid>")
    return _POD.sub(r"\1-<pod>", _UID.sub("<another uid>", _TIME.sub("<time>", text)))


def _shown(obj: Object) -> Object:
    """The parts that the operator or its user decides."""
    kind = obj["kind"]
    metadata = {name: obj["metadata"][name] for name in _METADATA if name in obj["metadata"]}
    metadata["annotations"] = {name: value for name, value in metadata.get("annotations", {}).items() if name not in _DIGESTS}
    shown = {"spec": _readable(obj["spec"]), "metadata": metadata, "status": _timeless(obj.get("status"))}
    if kind == "Service":
        shown["spec"] = {name: value for name, value in obj["spec"].items() if name not in ("clusterIP", "clusterIPs")}
    if kind == "Deployment":
        shown["status"] = {name: value for name, value in obj["status"].items() if name.endswith("eplicas")}
    if kind == "Job":
        shown["status"] = {"conditions": [(each["type"], each["status"]) for each in obj["status"].get("conditions", ())]}
    return shown


def _readable(spec: Object) -> Object:
    """`spec` with the orders of its pods as JSON, for the sake of a difference's readability."""
    metadata = spec.get("template", {}).get("metadata", {})
    notes = metadata.get("annotations", {})
    if _ORDERS not in notes:
        return spec
    annotations = {**notes, _ORDERS: json.loads(notes[_ORDERS])}
    return {**spec, "template": {**spec["template"], "metadata": {**metadata, "annotations": annotations}}}


def _timeless(status: Any, counts: bool = False) -> Any:
    """`status` without what tells how long something took (`counts`: such a member, `…Seconds`)."""
    if isinstance(status, dict):
        return {name: _timeless(value, counts or name.endswith("Seconds")) for name, value in status.items() if name not in _OMITTED}
    if isinstance(status, list):
        return [_timeless(item, counts) for item in status]
    return "<seconds>" if counts and isinstance(status, int | float) else status


def _pod(obj: Object) -> Object:
    labels = {name: value for name, value in obj["metadata"]["labels"].items() if name.startswith("tunesmith.dev/")}
    return {"labels": labels, "phase": obj["status"].get("phase")}
