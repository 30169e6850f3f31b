"""Bring the cluster one step closer to what an object asks for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from tunesmith import metrics
from tunesmith.api import conditions
from tunesmith.api.kind import Kind
from tunesmith.core.drift import ANNOTATION, differences, stamp
from tunesmith.core.errors import InvalidSpec, TunesmithError
from tunesmith.core.objects import Config, Key, Object, Observed, Plan
from tunesmith.runtime.cache import Store, key_of
from tunesmith.runtime.client import Cluster, Refused, Unseen
from tunesmith.runtime.events import Event, events
from tunesmith.runtime.refusals import Refusals
from tunesmith.runtime.relist import relist
from tunesmith.runtime.revert_limiter import Corrections

logger = logging.getLogger(__name__)

CONFLICT_PATIENCE = 30.0
"""Seconds that a name may be taken before it is called a conflict: garbage collection of an object's namesake takes a while."""


class Reconciler:
    """Runs one key at a time through observe, decide, write."""

    def __init__(
        self,
        kinds: Mapping[str, Kind],
        store: Store,
        cluster: Cluster,
        config: Config,
        wake: Callable[[Key], None],
        now: Callable[[], datetime],
        clock: Callable[[], float] = time.monotonic,
        announce: Callable[[Object, Sequence[Event]], None] = lambda owner, told: None,
    ) -> None:
        """`announce` takes in what has happened to an object, once that is on record; it must neither wait nor fail."""
        self._kinds = kinds
        self._store = store
        self._cluster = cluster
        self._config = config
        self._wake = wake
        self._now = now
        self._clock = clock
        self._announce = announce
        self._corrections = Corrections(clock)
        self._refusals = Refusals(cluster)
        self._problems: dict[Key, Mapping[str, str]] = {}
        self._refused_since: dict[Key, float] = {}

    async def reconcile(self, key: Key) -> float | None:
        """Take `key` one step further; return in how many seconds it wants to be looked at again.

        Status is written before anything else is done, so that what a child told is recorded before that child may go.
        """
        owner = self._store.get(key)
        if owner is None or "deletionTimestamp" in owner["metadata"]:
            # Garbage collection removes the children by their ownerReferences, whether we run or not.
            self._forget(key)
            return None
        observed = await self._observe(key, owner)
        status, plan = decide(self._kinds[key.kind], observed)
        if _ended_otherwise(observed.recorded, status):
            await self._look_at_pods(owner)
            observed = await self._observe(key, owner)
            status, plan = decide(self._kinds[key.kind], observed)
        if status != observed.recorded:
            await self._record(key, observed, status)
        elif self._is_drastic(plan):
            # The status was not just written, so nobody has confirmed that our view is not an old one, of before all this was done.
            await self._cluster.confirm(owner)
        pause = await self._carry_out(key, plan)
        return min((wait for wait in (plan.wake_after, pause) if wait is not None), default=None)

    async def _observe(self, key: Key, owner: Object) -> Observed:
        """All that is known about the object now."""
        uid, now = owner["metadata"]["uid"], self._now()
        refusals = await self._refusals.of(self._store.children(uid), now)
        return Observed(
            owner=owner,
            now=now,
            config=self._config,
            children=self._store.children(uid),
            references=self._store.references(key),
            progress=self._store.progress(uid),
            problem=self._problems.get(key),
            refusals=refusals,
        )

    async def _record(self, key: Key, observed: Observed, status: Object) -> None:
        """Write the status. If the server refuses it, say so as loudly as can be: nothing more happens to the object."""
        try:
            self._learn(await self._cluster.write_status(observed.owner, status))
        except Refused as error:
            metrics.STATUSES_REFUSED.labels(key.kind).inc()
            logger.error("the status is refused, so nothing is done for this object: %s", error)
            told = _with_error(observed, dict(observed.recorded), InvalidSpec("StatusRefused", error.message[: conditions.MESSAGE_LIMIT]))
            if told != observed.recorded:
                self._learn(await self._cluster.write_status(observed.owner, told))
                self._announce(observed.owner, events(observed.recorded, told))
            raise
        metrics.count_outcomes(key, observed.recorded, status)
        self._announce(observed.owner, events(observed.recorded, status))

    def _is_drastic(self, plan: Plan) -> bool:
        """Whether the plan makes or deletes anything.

        An apply of what is not there makes it: when an object is deleted, its children may be seen to go before it is seen itself.
        """
        absent = (self._store.get(key_of(obj)) is None for obj in (*plan.apply, *plan.create))
        return any(absent) or any(not _is_told_to_end(obj) for obj in plan.delete)

    async def _look_at_pods(self, owner: Object) -> None:
        """List the pods of `owner`.

        Each kind has a watch of its own, and they do not keep step: a Job may be seen to end before its pods are seen at all. So
        before an attempt is called over, its pods are looked at. (Not if one has told its success: nothing outweighs that.) What a
        watch or a relist tells of them meanwhile is news too, though not to the list.
        """
        namespace, uid = owner["metadata"]["namespace"], owner["metadata"]["uid"]
        async for _ in relist(self._cluster, self._store, "Pod", namespace, uid):
            pass  # whom that concerns is being looked at

    async def _carry_out(self, key: Key, plan: Plan) -> float | None:
        """Do what the plan says; remember a refusal for the next status. Returns in how many seconds the rest is due.

        After a refusal nothing new is made, since it may need what was refused. But what is there already is kept right, and what is
        superfluous goes: it may hold the very quota, or the GPUs, that are asked for.
        """
        refusals: list[Refused] = []
        pauses: list[float] = []
        for desired in plan.apply:
            if not refusals or self._store.get(key_of(desired)):
                with _collected(refusals):
                    pauses.append(await self._apply(desired))
        for obj in plan.create:
            if not refusals and self._store.get(key_of(obj)) is None:
                with _collected(refusals):
                    self._learn(await self._cluster.create(obj))
        for obj in plan.delete:
            with _collected(refusals):
                await self._delete(obj)
        if refusals:
            self._refuse(key, refusals[0])
            raise refusals[0]
        self._refused_since.pop(key, None)
        if self._problems.pop(key, None):
            self._wake(key)
        return min((pause for pause in pauses if pause), default=None)

    async def _apply(self, desired: Object) -> float:
        """Apply `desired` where it is not as it should be. Returns in how many seconds that is due if it is not yet: nobody is fought."""
        key, stamped = key_of(desired), stamp(desired)
        live, digest = self._store.get(key), stamped["metadata"]["annotations"][ANNOTATION]
        wrong = frozenset[str]() if live is None else differences(stamped, live)
        if live is not None and not wrong:
            return 0.0
        wait = self._corrections.wait(key, digest, wrong) if wrong else 0.0
        if wait:
            return wait
        try:
            answer = await self._cluster.apply(stamped, live)
        except Unseen as unseen:
            # Come back at once: then it is known, and what is still wrong with it is put right.
            for concerned in self._store.find(unseen.live):
                self._wake(concerned)
            return 0.0
        # What an injector makes of it on its way in will be the same the next time.
        self._corrections.note(key, digest, wrong | differences(stamped, answer))
        self._learn(answer)
        return 0.0

    async def _delete(self, obj: Object) -> None:
        if _is_told_to_end(obj):
            return
        left = await self._cluster.delete(obj)
        concerned = self._store.put(left) if left is not None else self._store.remove(obj)
        for key in concerned:
            self._wake(key)

    def _refuse(self, key: Key, error: Refused) -> None:
        """Keep what a person has to mend, and come back at once to say so in the status."""
        since = self._refused_since.setdefault(key, self._clock())
        if error.reason == "NameConflict" and self._clock() - since < CONFLICT_PATIENCE:
            return
        problem = {"reason": error.reason, "message": error.message}
        if self._problems.get(key) != problem:
            self._problems[key] = problem
            self._wake(key)

    def _learn(self, answer: Object) -> None:
        """Take in the answer to a write of ours as if it were an event: it wakes whom it concerns, the object itself included."""
        for key in self._store.put(answer):
            self._wake(key)

    def _forget(self, key: Key) -> None:
        metrics.forget(key)
        self._problems.pop(key, None)
        self._refused_since.pop(key, None)


def decide(kind: Kind, observed: Observed) -> tuple[Object, Plan]:
    """The new status and what to do. An object that cannot be, or not yet, says so in its conditions and changes nothing."""
    status: Object = dict(observed.recorded)
    try:
        status = kind.status(observed)
        return status, kind.build(observed, status)
    except TunesmithError as error:
        return _with_error(observed, status, error), Plan()


@contextmanager
def _collected(refusals: list[Refused]) -> Iterator[None]:
    """Keep a refusal for later, and go on."""
    try:
        yield
    except Refused as error:
        refusals.append(error)


def _is_told_to_end(obj: Object) -> bool:
    """Whether a deletion needs no second word. A pod that has been given up does: its node will never confirm the first."""
    return "deletionTimestamp" in obj["metadata"] and obj["kind"] != "Pod"


def _ended_otherwise(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether an attempt is called over that was not seen to succeed: what tells why may not have been seen yet."""
    known = before.get("attempts", ())
    return any(entry["outcome"] != "Succeeded" for entry in after.get("attempts", ()) if entry not in known)


def _with_error(observed: Observed, status: Object, error: TunesmithError) -> Object:
    """`status` with the conditions that tell `error`; conditions of other types stay as they are."""
    generation = observed.owner["metadata"]["generation"]
    merged = conditions.merge(observed.recorded.get("conditions", ()), conditions.told_by(error), generation, observed.now)
    types = {entry["type"] for entry in merged}
    others = [entry for entry in status.get("conditions", ()) if entry["type"] not in types]
    return {**status, "observedGeneration": generation, "conditions": merged + others}
