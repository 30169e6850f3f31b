"""Run the operator: `python -m tunesmith`. Its settings are environment variables (settings.py)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import kopf
from aiohttp import web
from kubernetes.aio.leaderelection.electionconfig import Config as ElectionConfig
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from tunesmith import handlers, logs, metrics
from tunesmith.cluster import Cluster, connect
from tunesmith.controller import Controller
from tunesmith.health import Health
from tunesmith.kinds import KINDS
from tunesmith.progress import Progress, tls
from tunesmith.settings import LeaseSettings, Settings, from_environment

logger = logging.getLogger("tunesmith")


async def main(settings: Settings) -> None:
    """Serve health, become the leader, operate; end when any part of it ends."""
    async with AsyncExitStack() as stack:
        cluster = Cluster(await stack.enter_async_context(await connect()))
        health = Health()
        await _serve(stack, health.application(), settings.health_address, settings.health_port)
        if settings.lease.enabled:
            await _lead(settings.lease, cluster, lambda: operate(settings, cluster, health))
        else:
            await operate(settings, cluster, health)


async def operate(settings: Settings, cluster: Cluster, health: Health) -> None:
    """Watch, reconcile and take progress reports until one of them ends; kopf ends on SIGTERM."""
    controller = Controller(settings, cluster, KINDS)
    metrics.WORKERS.labels("tunesmith").set(settings.workers)
    health.lead(lambda: controller.synced)
    async with AsyncExitStack() as stack:
        if settings.progress.enabled:
            progress = Progress(cluster, controller.store, controller.wake)
            await _serve(stack, progress.application(), settings.progress.address, settings.progress.port, settings)
        watch = kopf.operator(
            registry=handlers.registry(controller),
            settings=handlers.settings(),
            standalone=True,
            clusterwide=not settings.namespaces,
            namespaces=settings.namespaces,
        )
        await _first_to_end(watch, controller.run())


async def _lead(lease: LeaseSettings, cluster: Cluster, operate: Callable[[], Awaitable[None]]) -> None:
    """Operate while this process holds the lease.

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
        await cluster.release_lease(lease.namespace, lease.name)

    lock = LeaseLock(lease.name, lease.namespace, lease.identity, cluster.client)
    config = ElectionConfig(lock, lease.duration_seconds, lease.deadline_seconds, lease.retry_seconds, tell, lost)
    await _first_to_end(LeaderElection(config).run(), operate_once_leading())


async def _first_to_end(*work: Awaitable[None]) -> None:
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


async def _serve(stack: AsyncExitStack, app: web.Application, address: str, port: int, secure: Settings | None = None) -> None:
    """Serve `app` until the stack is left."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, address, port, ssl_context=tls(secure.progress) if secure else None).start()


if __name__ == "__main__":
    chosen = from_environment()
    logs.configure(chosen.log_level)
    asyncio.run(main(chosen))
