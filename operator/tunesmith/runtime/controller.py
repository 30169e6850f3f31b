"""The running operator without its framework: events and relists in, reconciles out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime

from tunesmith import metrics
from tunesmith.api.kind import Kind
from tunesmith.core.objects import Key, Object
from tunesmith.logs import current_key
from tunesmith.runtime.cache import Store, version_of
from tunesmith.runtime.client import ApiError, Cluster, Conflict, NotFound, Refused
from tunesmith.runtime.event_recorder import Announcer
from tunesmith.runtime.reconcile import Reconciler
from tunesmith.runtime.relist import relist
from tunesmith.runtime.resources import RESOURCES, trim
from tunesmith.runtime.workqueue import WorkQueue
from tunesmith.settings import Settings
from tunesmith.workload.kueue import QUEUE

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
"""Pause after a relist that failed."""


def _now() -> datetime:
    return datetime.now(UTC)


async def _nothing(_: frozenset[str]) -> None:
    pass


class Controller:
    """Feeds the store, and works off the queue with a fixed number of workers."""

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        kinds: Mapping[str, Kind],
        installed: frozenset[str] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
        served: Callable[[frozenset[str]], Awaitable[None]] = _nothing,
    ) -> None:
        """`installed`: which resources that are watched where they are served the API server has. `served` takes in which namespaces are
        to be watched, where they are named."""
        self._settings = settings
        self._cluster = cluster
        self._clock = clock
        self.watched = [resource for resource in RESOURCES.values() if resource.watch == "Always" or resource.kind in installed]
        self.store = Store({name: kind.references for name, kind in kinds.items()})
        self.queue = WorkQueue(clock)
        self._announcer = Announcer(cluster, settings.lease.identity, _now)
        announce = self._announcer.announce
        self._reconciler = Reconciler(kinds, self.store, cluster, settings.config(), self.queue.add, _now, clock, announce)
        self._namespaces = frozenset[str](settings.namespaces)
        self._served = served
        self.unserved: frozenset[str] = frozenset()
        """Namespaces of ours that let nothing be listed: they are gone, or our rights in them are. Nothing is done for their objects."""
        self.synced: float | None = None
        """When the last complete relist ended, by the clock; None before the first."""
        self._stopping = asyncio.Event()

    def feed(self, kind: str, event: str | None, obj: Object) -> None:
        """Take in a watch event and queue whom it concerns."""
        seen = trim(obj, RESOURCES[kind])
        self.wake(self.store.remove(seen, version_of(seen)) if event == "DELETED" else self.store.put(seen))

    def wake(self, keys: frozenset[Key]) -> None:
        """Queue `keys`, but those of namespaces that are not served: of these half a view may be known, which looks like deleted children."""
        for key in keys:
            if key.namespace not in self.unserved:
                self.queue.add(key)

    async def run(self) -> None:
        """Relist, then work until stopped.

        No worker starts before the first relist is complete: half a view looks like deleted children.
        """
        await self.resync()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._resync_forever()), group.create_task(self._announcer.run())]
            tasks += [group.create_task(self._work_forever()) for _ in range(self._settings.workers)]
            await self._stopping.wait()
            for task in tasks:
                task.cancel()

    def stop(self) -> None:
        """Let `run` end; a write under way is cut off, which the next start makes good."""
        self._stopping.set()

    async def resync(self) -> None:
        """List everything, put the store right, and look at what that concerns; the first time, at everything."""
        with metrics.RESYNC_SECONDS.time():
            if self._namespaces:
                await self._resync_each()
            else:
                await self._list(None, self.synced is None)
        self.synced = self._clock()

    async def _resync_each(self) -> None:
        """The same for each namespace by itself: one whose tenant is gone, and with it our rights there, harms no other."""
        refused: dict[str, ApiError] = {}
        for namespace in sorted(self._namespaces):
            try:
                await self._list(namespace, self.synced is None or namespace in self.unserved)
            except (Refused, NotFound) as error:
                refused[namespace] = error
                self.store.leave(namespace)
        if len(refused) == len(self._namespaces):
            raise next(iter(refused.values()))
        for namespace in refused.keys() - self.unserved:
            logger.warning("namespace %s is not served: %s", namespace, refused[namespace])
        self.unserved = frozenset(refused)
        metrics.UNSERVED.set(len(refused))
        await self._served(self._namespaces - self.unserved)

    async def _list(self, namespace: str | None, first: bool) -> None:
        """`first`: nothing is looked at before all is there, and then everything."""
        for kind in (resource.kind for resource in self.watched):
            async for concerned in relist(self._cluster, self.store, kind, namespace):
                if not first:
                    self.wake(concerned)
        if first:
            self.unserved -= {namespace or ""}
            keys = (self.store.keys(resource.kind) for resource in self.watched if resource.ours)
            self.wake(frozenset(key for found in keys for key in found if namespace in (None, key.namespace)))

    async def _resync_forever(self) -> None:
        away = False
        while True:
            await asyncio.sleep(min(self._settings.resync_seconds, RETRY_SECONDS) if away else self._settings.resync_seconds)
            try:
                await self.resync()
                await self._look_for_kueue()
            except Exception:
                # The API server may be away for a while. The health endpoint tells when it is too long.
                logger.exception("relisting failed")
                away = True
                continue
            if away:
                # What failed meanwhile need not wait for its turn, which may be minutes off.
                self.queue.hasten()
            away = False

    async def _look_for_kueue(self) -> None:
        """Stop if Kueue has been installed since the start and our Jobs wait for it: only a new start can watch what is new."""
        missing = [resource for resource in RESOURCES.values() if resource not in self.watched]
        waiting = missing and any(QUEUE in job["metadata"].get("labels", {}) for job in map(self.store.get, self.store.keys("Job")) if job)
        for resource in missing if waiting else ():
            if await self._cluster.serves(resource):
                logger.warning("%s is served now: starting again to watch it", resource.api_path)
                self.stop()

    async def _work_forever(self) -> None:
        while True:
            key = await self.queue.get()
            metrics.DEPTH.labels("tunesmith").set(len(self.queue))
            try:
                await self._work(key)
            finally:
                self.queue.done(key)

    async def _work(self, key: Key) -> None:
        """One run of one key, and when it is to run again."""
        current_key.set(key)
        with metrics.SECONDS.labels(key.kind).time(), metrics.ACTIVE.labels(key.kind).track_inprogress():
            result = await self._reconcile(key)
        metrics.RECONCILES.labels(key.kind, result).inc()

    async def _reconcile(self, key: Key) -> str:
        try:
            wake_after = await self._reconciler.reconcile(key)
        except (Conflict, NotFound) as error:
            # Our view was old; the event that makes it new may be on its way.
            self.queue.add_failed(key)
            logger.debug("view was stale: %s", error)
            return "requeue"
        except Refused as error:
            logger.warning("%s; trying again in %.0f s", error, self.queue.add_failed(key))
            return self._count_error(key)
        except Exception:
            logger.exception("reconcile failed; trying again in %.0f s", self.queue.add_failed(key))
            return self._count_error(key)
        self.queue.forget_failures(key)
        if wake_after is None:
            return "success"
        self.queue.add_after(key, wake_after)
        return "requeue_after"

    def _count_error(self, key: Key) -> str:
        metrics.ERRORS.labels(key.kind).inc()
        return "error"
