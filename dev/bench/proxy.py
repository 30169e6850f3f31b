"""A reverse proxy before the API server that can misbehave.

Clients speak plain HTTP to it, it speaks TLS to the server with a certificate of its own. Every request is handed as an `Exchange`
to one function, which passes it on, holds it, answers something else, or cuts the connection. Watches are streamed.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
import yaml
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_HOP_BY_HOP = frozenset({"connection", "host", "keep-alive", "te", "transfer-encoding", "upgrade"})
_FOREVER = aiohttp.ClientTimeout(total=None)


class Exchange:
    """One request and what becomes of it."""

    def __init__(self, request: web.BaseRequest, body: bytes, session: aiohttp.ClientSession, upstream: str) -> None:
        self.request = request
        self.body = body
        self._session = session
        self._upstream = upstream

    @property
    def is_write(self) -> bool:
        """Whether it may change something."""
        return self.request.method in WRITES

    async def forward(self) -> aiohttp.ClientResponse:
        """Have the server take the request; its answer is not read yet and has to be closed."""
        url = self._upstream + self.request.raw_path
        headers = _end_to_end(self.request.headers)
        return await self._session.request(self.request.method, url, data=self.body or None, headers=headers, timeout=_FOREVER)

    async def reply(self, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        """Hand the server's answer on to the client as it comes in, to its end."""
        async with answer:
            response = web.StreamResponse(status=answer.status, headers=_end_to_end(answer.headers))
            await response.prepare(self.request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    def cut(self) -> web.StreamResponse:
        """Close the client's connection without a word."""
        if self.request.transport:
            self.request.transport.abort()
        return web.Response()


Fault = Callable[[Exchange], Awaitable[web.StreamResponse]]


async def pass_on(exchange: Exchange) -> web.StreamResponse:
    """No fault at all."""
    return await exchange.reply(await exchange.forward())


class Proxy:
    """The proxy; `fault` may be changed while it runs."""

    def __init__(self, upstream: str, tls: ssl.SSLContext, fault: Fault = pass_on) -> None:
        self.fault = fault
        self.url = ""
        """Where it listens."""
        self._upstream = upstream
        self._tls = tls

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=0)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False, trust_env=False)
        # Else the watches of a client that is gone would go on until their next event.
        server = web.Server(self._handle, access_log=None, handler_cancellation=True)
        self._runner = web.ServerRunner(server, shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = "http://{}:{}".format(*self._runner.addresses[0][:2])
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._runner.cleanup()
        await self._session.close()

    def write_kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig that leads here, for a client that needs no credentials; returns its path."""
        named = {"clusters": [{"name": "proxy", "cluster": {"server": self.url}}], "users": [{"name": "proxy", "user": {}}]}
        context = {"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}
        path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **named, "contexts": [context], "current-context": "proxy"}))
        return path

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        exchange = Exchange(request, await request.read(), self._session, self._upstream)
        try:
            return await self.fault(exchange)
        except ConnectionResetError:
            # The client is gone; the library would print a traceback.
            return exchange.cut()


def _end_to_end(headers: CIMultiDictProxy[str] | CIMultiDict[str]) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in _HOP_BY_HOP)
