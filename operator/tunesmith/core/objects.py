"""Plain values that pass between the edge (store, cluster) and the pure core (each kind's `status.py` and `build.py`).

One reconcile is: `observed = store's view` -> `status(observed)` -> write it if it changed -> `build(observed, status)` -> carry out
the plan. Status goes first because it records facts (results, pinned images) that what is built next relies on; what has been
recorded survives the deletion of the children that told it. Both functions see only these values: no client, clock or environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

Object = dict[str, Any]
"""A Kubernetes object as JSON, as the store keeps it (`resources.trim`)."""

GROUP = "tunesmith.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
FIELD_MANAGER = "tunesmith"

MANAGED_BY = {"app.kubernetes.io/managed-by": "tunesmith"}
"""On every child; the watches select on it."""
LABEL_KIND, LABEL_NAME, LABEL_UID = f"{GROUP}/kind", f"{GROUP}/name", f"{GROUP}/uid"
"""Kind, name and uid of the owner, on every child and on the pods of child Jobs and Deployments."""
LABEL_STAGE, LABEL_PART, LABEL_ATTEMPT = f"{GROUP}/stage", f"{GROUP}/part", f"{GROUP}/attempt"
"""On stage Jobs and their pods: the stage (`Train`), its part (variant or model name, may be absent) and the attempt's number."""


CONTAINER = "stage"
"""Name of our container in every pod. Others may have been injected (a service mesh's proxy): what becomes of them says nothing about the work."""


def controller_uid(obj: Object) -> str | None:
    """The uid of the object's controller (metav1.GetControllerOf), if it has one."""
    return next((reference["uid"] for reference in obj["metadata"].get("ownerReferences", ()) if reference.get("controller")), None)


class Key(NamedTuple):
    """Names one object of ours (or one that ours refer to); what the work queue holds."""

    kind: str
    namespace: str
    name: str


@dataclass(frozen=True)
class Images:
    """Image references as configured now; a run pins those it began with in its status."""

    trainer: str
    serving: str


@dataclass(frozen=True)
class Timing:
    """How long the operator waits for the sake of what is around it. Tests set shorter times."""

    backoff: timedelta = timedelta(seconds=5)
    """From a failure to the next attempt; doubled with each further failure in a row."""
    backoff_limit: timedelta = timedelta(seconds=300)
    """The longest such pause."""
    drain: timedelta = timedelta(seconds=30)
    """How long an old revision still runs after the Service has been switched: endpoints take a while to reach every proxy."""


@dataclass(frozen=True)
class Config:
    """What the pure core needs of the operator's settings."""

    images: Images
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    progress_url: str = ""
    """`https://host:port` of the progress endpoint; empty: none."""
    progress_ca: str = ""
    """PEM of the CA that signed its certificate; the pods that report are given it."""
    progress_port: int = 8443
    """The endpoint's port in the operator's pod."""
    network_policies: bool = True
    """Whether served models get a NetworkPolicy."""
    stage_policies: bool = True
    """Whether the stages of an object get one."""
    timing: Timing = Timing()


@dataclass(frozen=True)
class Observed:
    """One consistent-enough view of an object, what it owns and what it names."""

    owner: Object
    now: datetime
    config: Config
    children: tuple[Object, ...] = ()
    """Objects whose controller is `owner` (by uid), and pods whose labels carry its uid. Each has `kind` set."""
    references: Mapping[Key, Object] = field(default_factory=dict)
    """Objects that `references(owner)` named and that exist: our kinds and PersistentVolumeClaims."""
    progress: Mapping[str, Any] | None = None
    """Newest progress report of the running training Job, if any (docs/contract.md, KEP-2779's fields)."""
    problem: Mapping[str, str] | None = None
    """`{reason, message}` of the write that failed at the previous reconcile for a cause a person must mend (NameConflict, Forbidden, Invalid)."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Why pods of a child Job are not made, by the Job's uid."""

    @property
    def spec(self) -> Mapping[str, Any]:
        """The owner's spec as JSON."""
        spec: Mapping[str, Any] = self.owner["spec"]
        return spec

    @property
    def recorded(self) -> Mapping[str, Any]:
        """The owner's status as last written; empty before the first write."""
        status: Mapping[str, Any] = self.owner.get("status") or {}
        return status

    def reference(self, kind: str, name: str) -> Object | None:
        """The object of that kind and name, in the owner's namespace, if the spec names it and it is there."""
        return self.references.get(Key(kind, self.owner["metadata"]["namespace"], name))

    def child(self, kind: str, name: str) -> Object | None:
        """The child of that kind and name, if it is there."""
        return next((c for c in self.children if c["kind"] == kind and c["metadata"]["name"] == name), None)

    def of_kind(self, kind: str) -> list[Object]:
        """All children of that kind, oldest name first."""
        return sorted((c for c in self.children if c["kind"] == kind), key=lambda c: c["metadata"]["name"])


@dataclass(frozen=True)
class Plan:
    """What has to be done to the cluster now. The edge carries it out in the order apply, create, delete; after a refusal it makes nothing new."""

    create: tuple[Object, ...] = ()
    """Jobs: POSTed once, never applied again. AlreadyExists with our uid is fine; another owner's is a NameConflict."""
    apply: tuple[Object, ...] = ()
    """Services, Deployments, NetworkPolicies, in dependency order: applied by server-side apply if they differ from what the store shows.
    They come before `create`."""
    delete: tuple[Object, ...] = ()
    """Children to delete, with a uid precondition, background propagation."""
    wake_after: float | None = None
    """Seconds until this object wants to be reconciled again without an event (a deadline, a drain); None: events suffice."""
