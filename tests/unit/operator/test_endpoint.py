"""The port of the progress endpoint: a client that says nothing, too little or too much is let go, and leaves room for others."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import pytest
from aiohttp import web

from dev.bench.view import wait_until
from dev.cluster.pki import Identity, Pki
from dev.cluster.ports import free_port
from tunesmith.servers import listener

MOMENT = 1.0
"""What the endpoint's deadlines are in these tests."""
GENEROUS = 10.0
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    made = Pki(tmp_path_factory.mktemp("pki"))
    made.create_authorities()
    made.issue(Identity("progress", "/CN=progress", "serverAuth", "DNS:localhost"))
    return made


async def end(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


class Client:
    """Connections to the endpoint."""

    def __init__(self, port: int, tls: ssl.SSLContext, stack: AsyncExitStack) -> None:
        self.port, self.tls, self.stack = port, tls, stack

    async def connect(self, shake: bool = True) -> Streams:
        """Connect, and shake hands if that is asked for."""
        tls = {"ssl": self.tls, "server_hostname": "localhost"} if shake else {}
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **tls)
        self.stack.push_async_callback(end, writer)
        return reader, writer

    async def get(self) -> bytes:
        """The whole answer to a request, until the connection ends."""
        reader, writer = await self.connect()
        writer.write(GET)
        return await reader.read()


@pytest.fixture
async def client(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    monkeypatch.setattr(listener, "CONNECTIONS", 3)
    for name in ("HANDSHAKE_SECONDS", "HEADER_SECONDS", "LINGER_SECONDS"):
        monkeypatch.setattr(listener, name, MOMENT)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(pki.path("progress.crt"), pki.path("progress.key"))

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="here")

    app = web.Application()
    app.router.add_get("/", answer)
    port = free_port()
    serving = asyncio.create_task(listener.serve(app, "127.0.0.1", port, server))
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        made = Client(port, ssl.create_default_context(cafile=str(pki.path("ca.crt"))), stack)
        await until_answered(made)
        yield made
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def until_answered(client: Client) -> None:
    """Wait until there is room for a request."""

    async def answered() -> bool:
        try:
            return (await client.get()).endswith(b"here")
        except OSError:
            return False

    await wait_until(answered, "an answer", GENEROUS, 0.02)


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What comes until the other side ends the connection; an error if it does not."""
    async with asyncio.timeout(GENEROUS):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize(("shake", "said"), [(False, b""), (False, b"GET / HTTP/1.1\r\n\r\n"), (True, b""), (True, GET[:-2])])
async def test_a_client_that_does_not_come_to_the_point_is_let_go(client: Client, shake: bool, said: bytes) -> None:
    reader, writer = await client.connect(shake)
    writer.write(said)
    assert b"200" not in await ended(reader)


async def test_a_connection_is_one_request(client: Client) -> None:
    reader, writer = await client.connect()
    writer.write(GET)
    answer = await ended(reader)
    assert (answer.count(b"200 OK"), b"Connection: close" in answer) == (1, True)


async def test_those_that_are_too_many_are_turned_away_at_once_and_the_rest_goes_on(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HANDSHAKE_SECONDS", "HEADER_SECONDS"):
        monkeypatch.setattr(listener, name, GENEROUS * 2)
    held = [await client.connect(shake=False) for _ in range(listener.CONNECTIONS)]
    with pytest.raises(OSError):
        await client.get()
    await end(held[0][1])
    await until_answered(client)


async def test_those_that_hold_all_places_lose_them_and_others_get_in(client: Client) -> None:
    start = time.monotonic()
    held = [await client.connect(shake=False) for _ in range(listener.CONNECTIONS)]
    await until_answered(client)
    assert time.monotonic() - start >= MOMENT
    assert [await ended(reader) for reader, _ in held] == [b""] * listener.CONNECTIONS
