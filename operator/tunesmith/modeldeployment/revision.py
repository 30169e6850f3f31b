"""Revisions: what is served, named by a hash of the inputs that determine it.

The hash covers inputs, not the rendered template, and a revision keeps the image and the template (`rendering.py`) it was made with:
neither an operator upgrade nor a new default rolls what runs. The inputs are recorded with the revision, because the spec has moved on
when an old revision still serves and has to be rendered again (its Deployment was deleted by hand).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.core.objects import GROUP, LABEL_UID, Object

LABEL_REVISION = f"{GROUP}/revision"

State = Literal["Candidate", "Active", "Draining"]


@dataclass(frozen=True)
class Revision:
    """One entry of `status.revisions`; at most one of each state."""

    name: str
    state: State
    uri: str
    digest: str | None
    verdict: str
    """`Passed`, or `NoGate`: served unjudged."""
    eval_runs: tuple[str, ...]
    """The EvalRuns that passed it; they may be deleted afterwards."""
    image: str
    inputs: Mapping[str, Any]
    created_time: str
    contract_version: int = 1
    """Of the image."""
    switched_time: str | None = None
    """While Draining: when the Service was seen to select another revision."""

    def to_json(self) -> Object:
        """As it stands in the status."""
        entry: Object = {
            "name": self.name,
            "state": self.state,
            "uri": self.uri,
            "verdict": self.verdict,
            "evalRuns": list(self.eval_runs),
            "image": self.image,
            "inputs": dict(self.inputs),
            "createdTime": self.created_time,
        }
        version = self.contract_version if self.contract_version > 1 else None
        optional = {"digest": self.digest, "switchedTime": self.switched_time, "contractVersion": version}
        return entry | {name: value for name, value in optional.items() if value is not None}


def from_json(entry: Mapping[str, Any]) -> Revision:
    """Read an entry of `status.revisions`."""
    return Revision(
        name=entry["name"],
        state=entry["state"],
        uri=entry["uri"],
        digest=entry.get("digest"),
        verdict=entry["verdict"],
        eval_runs=tuple(entry.get("evalRuns", ())),
        image=entry["image"],
        inputs=entry["inputs"],
        created_time=entry["createdTime"],
        contract_version=int(entry.get("contractVersion", 1)),
        switched_time=entry.get("switchedTime"),
    )


def recorded_revisions(status: Mapping[str, Any]) -> list[Revision]:
    """All revisions in a status."""
    return [from_json(entry) for entry in status.get("revisions", ())]


def in_state(revisions: Iterable[Revision], state: State) -> Revision | None:
    """The revision in that state, if there is one."""
    return next((revision for revision in revisions if revision.state == state), None)


def inputs_of(spec: Mapping[str, Any]) -> Object:
    """What in the spec determines the pods of a revision. Replicas are not among it: they change in place."""
    inputs: Object = {"engine": spec.get("engine") or {"vllm": {}}}
    return inputs | {name: spec[name] for name in ("resources", "scheduling") if spec.get(name)}


def name_of(uri: str, digest: str | None, image: str, inputs: Mapping[str, Any]) -> str:
    """The revision's name: the first 8 hex digits of the hash of all that determines it."""
    text = json.dumps({"uri": uri, "digest": digest, "image": image, "inputs": inputs}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def child_name(owner: Object, revision: str) -> str:
    """Name of the revision's Service and Deployment: at most 40 + 1 + 8 + 1 + 5 characters."""
    return f"{owner['metadata']['name']}-{revision}-{owner['metadata']['uid'][:5]}"


def selector(owner: Object, revision: str | None) -> dict[str, str]:
    """Labels that select the pods of a revision; without one, those of all revisions."""
    labels = {LABEL_UID: owner["metadata"]["uid"]}
    return labels | ({LABEL_REVISION: revision} if revision else {})


def of_revision(objects: Iterable[Object], revision: str) -> list[Object]:
    """The objects that belong to a revision."""
    return [entry for entry in objects if (entry["metadata"].get("labels") or {}).get(LABEL_REVISION) == revision]
