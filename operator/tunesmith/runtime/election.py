"""One operator acts at a time: whoever holds the Lease.

The time that a leader may act is counted from before the request that renewed the Lease, that of a candidate from when it saw the
renewal, both by a clock of their own: the leader has stopped (deadline) before a candidate takes over (duration), whatever of its
requests hangs. Each of its writes asks first whether that time is over, so a process that was stopped meanwhile, with answers that
wait for it, sends nothing when it goes on. Only what it had sent before can still arrive, and late: the API server refuses it where
the version, uid or free name that it was meant for is gone; what is applied late is seen, and put right.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import aiohttp

from tunesmith.core.objects import Object
from tunesmith.runtime.client import ApiError, Cluster, NotFound
from tunesmith.settings import LeaseSettings

logger = logging.getLogger(__name__)

END_SECONDS = 5.0
"""For what is told to end."""


class Lease:
    """The Lease, as one process strives for it and holds it."""

    def __init__(self, settings: LeaseSettings, cluster: Cluster, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._cluster = cluster
        self._clock = clock
        self._held: Object | None = None
        """As last written by this process; None: it has to be read before it can be written."""
        self._deadline = 0.0
        """Until when this process may act."""
        self._seen = ""
        """Another's Lease: its version, and until when it holds."""
        self._taken_until = 0.0

    async def acquire(self) -> None:
        """Wait until the Lease is this process's."""
        while not await self._try(self._settings.deadline_seconds):
            left = self._taken_until - self._clock()
            await asyncio.sleep(min(self._settings.retry_seconds, left) if left > 0 else self._settings.retry_seconds)

    async def keep(self) -> None:
        """Renew the Lease; end when that has not been possible until the deadline."""
        while (left := self._deadline - self._clock()) > 0:
            await asyncio.sleep(min(self._settings.retry_seconds, left))
            await self._try(self._deadline - self._clock())
        logger.error("the lease is lost")

    def holds(self) -> bool:
        """Whether this process may act now."""
        return self._clock() < self._deadline

    async def release(self) -> None:
        """Let go, so that the next leader need not wait; for when nothing of this process writes any more."""
        if self._held and self.holds():
            await self._write({**self._held, "spec": {**self._held["spec"], "holderIdentity": ""}})

    async def _try(self, patience: float) -> bool:
        """Take or renew the Lease within so many seconds; False if that failed or another holds it."""
        began = self._clock()
        try:
            async with asyncio.timeout(max(0.0, patience)):
                lease = self._held or await self._read()
                if lease is None:
                    return False
                self._held = await self._write(self._renewed(lease))
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            # What became of the write is not known.
            self._held = None
            logger.warning("the lease could not be renewed: %r", error)
            return False
        self._deadline = began + self._settings.deadline_seconds
        return True

    async def _read(self) -> Object | None:
        """The Lease if it may be taken; one without a version if there is none yet."""
        try:
            lease = await self._cluster.request("GET", f"{self._collection}/{self._settings.name}")
        except NotFound:
            return {"metadata": {"name": self._settings.name}}
        spec, version = lease.get("spec") or {}, lease["metadata"]["resourceVersion"]
        if spec.get("holderIdentity") in (None, "", self._settings.identity):
            return lease
        if version != self._seen:
            self._seen = version
            self._taken_until = self._clock() + (spec.get("leaseDurationSeconds") or self._settings.duration_seconds)
        return lease if self._clock() >= self._taken_until else None

    def _renewed(self, lease: Object) -> Object:
        """`lease` as this process's, from now on."""
        spec, now = lease.get("spec") or {}, datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        ours = spec.get("holderIdentity") == self._settings.identity
        renewed = {
            "holderIdentity": self._settings.identity,
            "leaseDurationSeconds": self._settings.duration_seconds,
            "acquireTime": spec["acquireTime"] if ours else now,
            "renewTime": now,
            "leaseTransitions": spec.get("leaseTransitions", 0) + (not ours),
        }
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": lease["metadata"], "spec": renewed}

    async def _write(self, lease: Object) -> Object:
        """Create the Lease, or replace the very one that was read."""
        if "resourceVersion" in lease["metadata"]:
            return await self._cluster.request("PUT", f"{self._collection}/{self._settings.name}", lease)
        return await self._cluster.request("POST", self._collection, lease)

    @property
    def _collection(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self._settings.namespace}/leases"


async def lead(settings: LeaseSettings, cluster: Cluster, operate: Callable[[Cluster], Awaitable[None]]) -> None:
    """Wait for the Lease, then operate while this process holds it, on a cluster that takes its writes no longer than that."""
    lease = Lease(settings, cluster)
    await lease.acquire()
    logger.info("leading as %s", settings.identity)
    await first_to_end(lease.keep(), operate(Cluster(cluster.client, lease.holds)))
    await lease.release()


async def first_to_end(*work: Awaitable[None]) -> None:
    """Run all of `work` until one ends, end the others, and pass on the errors.

    kopf was seen to hang when it ends for an error in a watch, and would leave the process alive and blind: then it ends the hard way.
    """
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        _, pending = await asyncio.wait(tasks, timeout=END_SECONDS)
        if pending:
            logger.critical("ends at once, since this does not: %s", pending)
            os._exit(1)
    errors = [error for task in tasks if not task.cancelled() and isinstance(error := task.exception(), Exception)]
    if errors:
        raise ExceptionGroup("the operator ends", errors)
