"""A TLS port that anybody in the cluster may connect to: a connection is one request, has its time, and there are so many at once.

Each costs a descriptor and some hundred KiB before its client has said who it is. aiohttp's own listener takes any number of them,
waits a minute for a handshake, and lets a client that says nothing stay for an hour.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl

from aiohttp import web

logger = logging.getLogger(__name__)

CONNECTIONS = 128
"""A report takes milliseconds: a thousand jobs that report every five seconds need a handful."""
HANDSHAKE_SECONDS = 5.0
HEADER_SECONDS = 5.0
LINGER_SECONDS = 1.0
"""For a client to stop sending what was refused, and to say goodbye."""
RETRY_SECONDS = 0.1


async def serve(app: web.Application, address: str, port: int, tls: ssl.SSLContext) -> None:
    """Serve `app` until cancelled."""
    app.on_response_prepare.append(_close)
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=HEADER_SECONDS, lingering_time=LINGER_SECONDS, shutdown_timeout=LINGER_SECONDS)
    await runner.setup()
    assert runner.server
    try:
        with socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET) as listener:
            await _admit(listener, runner.server, tls)
    finally:
        await runner.cleanup()


async def _close(_: web.Request, response: web.StreamResponse) -> None:
    """A client that asks again and again must not keep its place."""
    response.force_close()
    response.headers["Connection"] = "close"


async def _admit(listener: socket.socket, server: web.Server, tls: ssl.SSLContext) -> None:
    """Take connections in; one that is too many is closed at once."""
    loop, greeted = asyncio.get_running_loop(), set[asyncio.Task[None]]()
    listener.setblocking(False)
    async with asyncio.TaskGroup() as group:
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError:
                # The client is gone already, or this process has no descriptor left.
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if len(greeted) + len(server.connections) >= CONNECTIONS:
                connection.close()
                continue
            task = group.create_task(_greet(connection, server, tls))
            greeted.add(task)
            task.add_done_callback(greeted.discard)


async def _greet(connection: socket.socket, server: web.Server, tls: ssl.SSLContext) -> None:
    """Shake hands; from then on the connection is the server's."""
    loop, times = asyncio.get_running_loop(), {"ssl_handshake_timeout": HANDSHAKE_SECONDS, "ssl_shutdown_timeout": LINGER_SECONDS}
    try:
        await loop.connect_accepted_socket(server, connection, ssl=tls, **times)
    except OSError:
        # No TLS, or none in time: whoever it is, it is not told.
        logger.debug("a handshake failed", exc_info=True)
    except Exception:
        # No client is to end the operator.
        logger.exception("a handshake failed")
