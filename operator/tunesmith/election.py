"""One operator acts at a time: whoever holds the Lease."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import aiohttp
from kubernetes.aio.client import V1Lease, V1ObjectMeta
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from tunesmith.cluster import Cluster
from tunesmith.settings import LeaseSettings

logger = logging.getLogger(__name__)

OUTAGE = (aiohttp.ClientError, TimeoutError)


class _Lease(LeaseLock):
    """The library's lock, mended: its `create` passes what its own client refuses, and an outage would end the election."""

    async def get(self, name: str, namespace: str) -> tuple[bool, LeaderElectionRecord] | tuple[bool, Exception] | tuple[bool, None]:
        """The record, or why there is none."""
        try:
            return await super().get(name, namespace)
        except OUTAGE as error:
            return False, ApiException(status=0, reason=repr(error))

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        """Make the Lease; False if that failed."""
        body = V1Lease(metadata=V1ObjectMeta(name=name), spec=self.update_lease(election_record))
        try:
            await self.api_instance.create_namespaced_lease(namespace, body)
        except (ApiException, *OUTAGE):
            logger.exception("the Lease cannot be created")
            return False
        return True

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        """Renew or take over the Lease; False if that failed."""
        try:
            return await super().update(name, namespace, updated_record)
        except OUTAGE:
            return False


async def lead(lease: LeaseSettings, cluster: Cluster, operate: Callable[[], Awaitable[None]]) -> None:
    """Wait for the lease, then operate while this process holds it.

    The library does not look after what it starts on becoming the leader, so it only tells us, and both are supervised here.
    """
    leading = asyncio.Event()

    async def tell() -> None:
        leading.set()

    async def lost() -> None:
        logger.error("the lease is lost")

    async def operate_once_leading() -> None:
        await leading.wait()
        logger.info("leading as %s", lease.identity)
        await operate()

    lock = _Lease(lease.name, lease.namespace, lease.identity, cluster.client)
    config = Config(lock, lease.duration_seconds, lease.deadline_seconds, lease.retry_seconds, tell, lost)
    operating = asyncio.ensure_future(operate_once_leading())
    await first_to_end(LeaderElection(config).run(), operating)
    if not operating.cancelled():
        # Only now: nothing of ours writes any more, nor renews the lease behind our back.
        await cluster.release_lease(lease.namespace, lease.name)


async def first_to_end(*work: Awaitable[None]) -> None:
    """Run all of `work` until one ends, end the others, and pass on the errors."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    errors = [result for result in results if isinstance(result, Exception)]
    if errors:
        raise ExceptionGroup("the operator ends", errors)
