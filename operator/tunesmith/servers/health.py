"""Liveness, readiness and metrics over plain HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest


class Health:
    """Tells whether this process does its work.

    A watch that fell silent or a task that died shows as a relist that does not come: its age is the one thing asked for.
    A replica that waits to lead is alive and not ready.
    """

    def __init__(self, stale_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stale_seconds = stale_seconds
        self._clock = clock
        self._leading_since: float | None = None
        self._synced: Callable[[], float | None] = lambda: None

    def lead(self, synced: Callable[[], float | None]) -> None:
        """This process leads from now on; `synced` tells when its last relist ended."""
        self._leading_since = self._clock()
        self._synced = synced

    def alive(self) -> bool:
        """Whether the last relist, or the begin of leading, is recent enough."""
        if self._leading_since is None:
            return True
        return self._clock() - (self._synced() or self._leading_since) < self._stale_seconds

    def ready(self) -> bool:
        """Whether the first relist is done."""
        return self._synced() is not None

    def application(self) -> web.Application:
        """The HTTP application."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        return app

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n") if self.alive() else web.Response(status=503, text="the last relist is too old\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n") if self.ready() else web.Response(status=503, text="no relist has been completed\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
