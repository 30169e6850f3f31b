"""Run the operator: `python -m tunesmith`. Its settings are environment variables (settings.py)."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any, cast

import kopf
from aiohttp import web

from tunesmith import handlers, logs, metrics
from tunesmith.cluster import Cluster, connect
from tunesmith.controller import Controller
from tunesmith.election import first_to_end, lead
from tunesmith.health import Health
from tunesmith.kinds import KINDS
from tunesmith.progress import Progress, tls
from tunesmith.resources import RESOURCES
from tunesmith.settings import Settings, from_environment


async def main(settings: Settings) -> None:
    """Serve health, become the leader, operate; end when any part of it ends."""
    async with AsyncExitStack() as stack:
        cluster = Cluster(await stack.enter_async_context(await connect(settings.lease.identity)))
        health = Health(settings.stale_seconds)
        await _serve(stack, health.application(), settings.health_address, settings.health_port)
        if settings.lease.enabled:
            await lead(settings.lease, cluster, lambda guarded: operate(settings, guarded, health))
        else:
            await operate(settings, cluster, health)


async def operate(settings: Settings, cluster: Cluster, health: Health) -> None:
    """Watch, reconcile and take progress reports until one of them ends; kopf ends on SIGTERM."""
    optional = [resource for resource in RESOURCES.values() if resource.optional]
    controller = Controller(settings, cluster, KINDS, frozenset([resource.kind for resource in optional if await cluster.serves(resource)]))
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
            # Otherwise kopf asks for the user's name, and the image's uid has none. Its type is not public.
            identity=cast(Any, settings.lease.identity),
            clusterwide=not settings.namespaces,
            namespaces=settings.namespaces,
        )
        await first_to_end(watch, controller.run())


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
