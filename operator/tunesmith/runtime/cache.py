"""What the operator knows of the cluster: fed by watches, relists and the answers to its own writes.

Every way in goes through `put`, which never goes back to an older resourceVersion, so that the order in which a watch and an
answer arrive does not matter. Every change tells whom it concerns: the keys to reconcile.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from tunesmith.core.objects import LABEL_UID, Key, Object, controller_uid
from tunesmith.runtime.resources import RESOURCES

logger = logging.getLogger(__name__)

References = Callable[[Mapping[str, Any]], frozenset[tuple[str, str]]]
TOMBSTONES = 10_000

NOBODY: frozenset[Key] = frozenset()


def key_of(obj: Object) -> Key:
    """The key of an object that has its kind."""
    return Key(obj["kind"], obj["metadata"].get("namespace", ""), obj["metadata"]["name"])


def version_of(obj: Object) -> int:
    """The resourceVersion as a number; Kubernetes has promised since 1.35 that they compare, and etcd's always have."""
    return int(obj["metadata"]["resourceVersion"])


def owner_uid(obj: Object) -> str | None:
    """The uid of the object of ours that `obj` belongs to: its controller, or for the pods of a child the one on their label."""
    uid: str | None = obj["metadata"].get("labels", {}).get(LABEL_UID) if obj["kind"] == "Pod" else controller_uid(obj)
    return uid


class Parent(NamedTuple):
    """Whose child something says it is. Anybody may write any uid into an object of theirs: it counts in its owner's namespace alone."""

    namespace: str
    uid: str


def parent_of(obj: Object) -> Parent:
    """The parent that `obj` names; the uid is empty if it names none."""
    return Parent(obj["metadata"].get("namespace", ""), owner_uid(obj) or "")


def _same(old: Object, new: Object) -> bool:
    """Whether two states of one object differ in nothing that is kept, but for the version."""
    version = new["metadata"]["resourceVersion"]
    return {**old, "metadata": {**old["metadata"], "resourceVersion": version}} == new


class Store:
    """Objects by key, by owner and by who names them."""

    def __init__(self, references: Mapping[str, References]) -> None:
        self._references = references
        self._objects: dict[Key, Object] = {}
        self._owners: dict[str, Key] = {}
        self._children: defaultdict[Parent, set[Key]] = defaultdict(set)
        self._named: dict[Key, frozenset[Key]] = {}
        self._namers: defaultdict[Key, set[Key]] = defaultdict(set)
        self._reports: dict[str, Mapping[str, Any]] = {}
        # Uid -> the version at which it was gone: an event or an answer that is older is known to be late. A newer one is not, for one
        # that only loses the label that the watch selects on is told to be deleted too.
        self._gone: OrderedDict[str, float] = OrderedDict()

    def get(self, key: Key) -> Object | None:
        """The object of that key, if it is known."""
        return self._objects.get(key)

    def keys(self, kind: str) -> list[Key]:
        """The keys of all known objects of `kind`."""
        return [key for key in self._objects if key.kind == kind]

    def children(self, uid: str) -> tuple[Object, ...]:
        """What belongs to the object of ours with that uid, in a fixed order; a child Job's own children (Kueue's Workload) too."""
        owner = self._owners.get(uid)
        if owner is None:
            return ()
        own = self._children.get(Parent(owner.namespace, uid), set())
        jobs = (self._objects[key]["metadata"]["uid"] for key in own if key.kind == "Job")
        theirs = (self._children.get(Parent(owner.namespace, job), set()) for job in jobs)
        return tuple(self._objects[key] for key in sorted(own.union(*theirs)))

    def references(self, key: Key) -> dict[Key, Object]:
        """What the object names and what that names in turn, to the ends of the chains, as far as it exists.

        An EvalRun of a ModelDeployment of a FineTuneJob needs the claim of the latter. Only those who name an object directly are
        woken by it; a change further away reaches them through the status in between.
        """
        found, new = NOBODY, self._named.get(key, NOBODY)
        while new:
            found |= new
            new = frozenset[Key]().union(*(self._named.get(named, NOBODY) for named in new)) - found
        return {named: self._objects[named] for named in sorted(found) if named in self._objects}

    def owner(self, uid: str) -> Key | None:
        """The key of the object of ours with that uid."""
        return self._owners.get(uid)

    def pod(self, namespace: str, name: str) -> Object | None:
        """The pod of that name."""
        return self._objects.get(Key("Pod", namespace, name))

    def report(self, uid: str, progress: Mapping[str, Any]) -> frozenset[Key]:
        """Keep the newest progress report for the object with that uid."""
        owner = self._owners.get(uid)
        if owner is None:
            return NOBODY
        self._reports[uid] = progress
        return frozenset({owner})

    def progress(self, uid: str) -> Mapping[str, Any] | None:
        """The newest progress report for the object with that uid."""
        return self._reports.get(uid)

    def put(self, obj: Object) -> frozenset[Key]:
        """Take in `obj` unless something newer is known; return the keys that it concerns."""
        key, uid = key_of(obj), obj["metadata"]["uid"]
        old = self._objects.get(key)
        if version_of(obj) < self._gone.get(uid, 0) or (old is not None and version_of(old) >= version_of(obj)):
            return NOBODY
        if old is not None and _same(old, obj):
            self._objects[key] = obj
            return NOBODY
        concerned = NOBODY if old is None else self._take_out(key, old)
        self._objects[key] = obj
        if RESOURCES[key.kind].ours:
            self._owners[uid] = key
            self._name(key, self._named_by(key, obj))
        else:
            self._children[parent_of(obj)].add(key)
        return concerned | self._concerned(key, obj)

    def find(self, obj: Object) -> frozenset[Key]:
        """Take in `obj`, which was asked for by its name: without the label that is listed by, it is in no list, however new the list is."""
        self._gone.pop(obj["metadata"]["uid"], None)
        return self.put(obj)

    def remove(self, obj: Object, version: float = math.inf) -> frozenset[Key]:
        """Take in that `obj` is gone, as of `version` (by default for good); a newer one of the same name stays. Return the keys that it concerns."""
        key, uid = key_of(obj), obj["metadata"]["uid"]
        self._bury(uid, version)
        old = self._objects.get(key)
        if old is None or old["metadata"]["uid"] != uid:
            return NOBODY
        concerned = self._take_out(key, old)
        del self._objects[key]
        return concerned

    def leave(self, namespace: str) -> None:
        """Know nothing of a namespace any more. What is there again later is taken in as new."""
        for key, obj in [(key, obj) for key, obj in self._objects.items() if key.namespace == namespace]:
            self._take_out(key, obj)
            del self._objects[key]

    def sweep(self, kind: str, present: Collection[str], version: int, namespace: str | None = None, uid: str | None = None) -> frozenset[Key]:
        """Remove what a list of `kind` made at `version` lacks, unless it is newer; `present` has the uids of what it holds, which was put before.

        kopf loses deletions when it lists again after a break, so without this the store would keep ghosts.
        The list is complete within `namespace` (None: all of them), for what belongs to the object with that `uid` (None: everything).
        """
        concerned = NOBODY
        known = self.keys(kind) if uid is None else [key for key in self._children.get(Parent(namespace or "", uid), ()) if key.kind == kind]
        for obj in [self._objects[key] for key in known if namespace in (None, key.namespace)]:
            if obj["metadata"]["uid"] not in present and version_of(obj) <= version:
                concerned |= self.remove(obj, version)
        return concerned

    def _concerned(self, key: Key, obj: Object) -> frozenset[Key]:
        """Whom a change of `obj` concerns: itself if it is ours, its owner, and those that name it."""
        owner = self._owner_of(obj)
        itself = {key} if RESOURCES[key.kind].ours else set()
        return frozenset(itself | ({owner} if owner else set()) | self._namers.get(key, set()))

    def _owner_of(self, obj: Object) -> Key | None:
        """The key of the object of ours that `obj` belongs to: directly, or through another (`Resource.via`)."""
        namespace, uid = parent_of(obj)
        if via := RESOURCES[obj["kind"]].via:
            names = [reference["name"] for reference in obj["metadata"].get("ownerReferences", ()) if reference["uid"] == uid]
            between = [self._objects.get(Key(via, namespace, name)) for name in names]
            uid = next((owner_uid(each) or "" for each in between if each and each["metadata"]["uid"] == uid), "")
        owner = self._owners.get(uid)
        return owner if owner and owner.namespace == namespace else None

    def _take_out(self, key: Key, old: Object) -> frozenset[Key]:
        """Remove `old` from the indexes and return whom it concerned."""
        concerned = self._concerned(key, old)
        uid = old["metadata"]["uid"]
        if RESOURCES[key.kind].ours:
            self._owners.pop(uid, None)
            self._name(key, NOBODY)
        else:
            parent = parent_of(old)
            self._children[parent].discard(key)
            if not self._children[parent]:
                del self._children[parent]
        return concerned

    def _named_by(self, key: Key, obj: Object) -> frozenset[Key]:
        """The keys that the spec names. A spec that an older schema let in must not keep all others from being seen: it names nothing."""
        try:
            named = self._references[key.kind](obj["spec"])
        except Exception:
            logger.exception("the references of %s cannot be read", key)
            return NOBODY
        return frozenset(Key(kind, key.namespace, name) for kind, name in named)

    def _name(self, key: Key, named: frozenset[Key]) -> None:
        """Record that `key` names `named` and nothing else."""
        for target in self._named.pop(key, NOBODY):
            self._namers[target].discard(key)
            if not self._namers[target]:
                del self._namers[target]
        if named:
            self._named[key] = named
            for target in named:
                self._namers[target].add(key)

    def _bury(self, uid: str, version: float) -> None:
        self._reports.pop(uid, None)
        self._gone[uid] = version
        if len(self._gone) > TOMBSTONES:
            self._gone.popitem(last=False)
