"""Run the operator: `python -m tunesmith`. Its settings are environment variables (settings.py)."""

from __future__ import annotations

import gc
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from typing import Any, cast

import kopf
import uvloop
from aiohttp import web

from tunesmith import logs, metrics
from tunesmith.kinds import KINDS
from tunesmith.runtime import handlers
from tunesmith.runtime.client import Cluster, connect
from tunesmith.runtime.controller import Controller
from tunesmith.runtime.election import first_to_end, lead
from tunesmith.runtime.resources import RESOURCES
from tunesmith.servers import listener
from tunesmith.servers.health import Health
from tunesmith.servers.progress import Progress, tls
from tunesmith.settings import Settings, from_environment

IDLE_SECONDS = 75.0
"""Longer than the pause between two scrapes of the metrics."""
YOUNG = 20_000
"""So many objects may be made before those that nobody holds any more, but each other, are looked for."""


async def main(settings: Settings) -> None:
    """Serve health, become the leader, operate; end when any part of it ends."""
    async with AsyncExitStack() as stack:
        cluster = Cluster(await stack.enter_async_context(await connect(settings.lease.identity)))
        health = Health(settings.stale_seconds)
        await _serve(stack, health, settings)
        if settings.lease.enabled:
            await lead(settings.lease, cluster, lambda guarded: operate(settings, guarded, health))
        else:
            await operate(settings, cluster, health)


async def operate(settings: Settings, cluster: Cluster, health: Health) -> None:
    """Watch, reconcile and take progress reports until one of them ends; kopf ends on SIGTERM."""
    others = [resource for resource in RESOURCES.values() if resource.watch == "WhereServed"]
    installed = frozenset([resource.kind for resource in others if await cluster.serves(resource)])
    watched = handlers.Watched()
    controller = Controller(settings, cluster, KINDS, installed, served=watched.watch)
    metrics.WORKERS.labels("tunesmith").set(settings.workers)
    health.lead(lambda: controller.synced)
    work: list[Awaitable[None]] = [controller.run()]
    if settings.progress.enabled:
        app = Progress(cluster, controller.store, controller.wake).application()
        work.append(listener.serve(app, settings.progress.address, settings.progress.port, tls(settings.progress)))
    watch = kopf.operator(
        registry=handlers.registry(controller),
        # That a namespace is gone is found by the next relist.
        settings=handlers.settings(settings.resync_seconds if settings.namespaces else 0),
        insights=watched.insights,
        standalone=True,
        # Otherwise kopf asks for the user's name, and the image's uid has none. Its type is not public.
        identity=cast(Any, settings.lease.identity),
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
    )
    await first_to_end(watch, *work)


async def _serve(stack: AsyncExitStack, health: Health, settings: Settings) -> None:
    """Serve health until the stack is left."""
    # A client that says nothing may go on for an hour by default. Their number is not limited: the kubelet has to get in.
    runner = web.AppRunner(health.application(), access_log=None, keepalive_timeout=IDLE_SECONDS)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, settings.health_address, settings.health_port).start()


def spare_collector() -> None:
    """Have the garbage collector look at young objects later and at old ones seldom.

    The store is one large graph without cycles that lives for ever: to go through it again and again took a fifth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 50, 100)


if __name__ == "__main__":
    chosen = from_environment()
    logs.configure(chosen.log_level)
    spare_collector()
    uvloop.run(main(chosen))
