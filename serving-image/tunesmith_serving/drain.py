"""How a serving pod ends without losing a request.

After SIGTERM the engine serves on: new connections come until the endpoint's removal has reached every proxy, and clients go on
using those that they hold open. The middleware here has them let go, one answer at a time; when no connection is left, nobody
can be waiting for an answer. The engine itself refuses what comes after its own SIGTERM, so it gets that last.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

FILE_VARIABLE = "TUNESMITH_DRAIN_FILE"
"""Names the file that is there once the pod is ending: launcher and engine are processes of their own."""
ESTABLISHED = "01"

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Callable[[], Awaitable[Message]], Send], Awaitable[None]]


def connections(port: int, tables: tuple[str, ...] = ("/proc/net/tcp", "/proc/net/tcp6")) -> int:
    """Return how many connections to a local TCP port are open. An idle one counts until the server closes it, after 5 s."""
    rows: list[list[str]] = []
    for table in tables:
        # A pod without IPv6 has no second one.
        with suppress(FileNotFoundError):
            rows += [line.split() for line in Path(table).read_text().splitlines()[1:]]
    # Columns: number, local address and port in hexadecimal, remote ones, state.
    return sum(row[1].rsplit(":", 1)[1] == f"{port:04X}" and row[3] == ESTABLISHED for row in rows)


class CloseConnections:
    """ASGI middleware in the engine: once the pod is ending, each answer ends its connection."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._file = os.environ[FILE_VARIABLE]

    async def __call__(self, scope: MutableMapping[str, Any], receive: Callable[[], Awaitable[Message]], send: Send) -> None:
        """Answer one request."""

        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._is_ending():
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, closing)

    def _is_ending(self) -> bool:
        return os.path.exists(self._file)
