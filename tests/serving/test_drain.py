import http.client
import socket
import threading

import pytest
import uvicorn

from dev.cluster.ports import free_port
from dev.cluster.processes import wait_until
from tunesmith_serving import drain


async def hello(scope, receive, send):
    """The smallest ASGI application that answers."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The server that vLLM uses with the middleware on it; its port."""
    monkeypatch.setenv(drain.FILE_VARIABLE, str(tmp_path / "draining"))
    port = free_port()
    running = uvicorn.Server(uvicorn.Config(drain.CloseConnections(hello), port=port, lifespan="off", log_level="error"))
    thread = threading.Thread(target=running.run)
    thread.start()
    wait_until(lambda: running.started, "the server to start", 10)
    yield port
    running.should_exit = True
    thread.join()


def ask(client):
    client.request("GET", "/")
    answer = client.getresponse()
    assert (answer.status, answer.read()) == (200, b"ok")
    return answer.headers["connection"]


def test_each_answer_ends_its_connection_once_the_pod_is_ending(server, tmp_path):
    client = http.client.HTTPConnection("127.0.0.1", server)
    assert [ask(client), ask(client)] == [None, None]
    held = client.sock
    assert drain.connections(server) == 1

    (tmp_path / "draining").touch()

    assert ask(client) == "close"
    assert held.fileno() == -1, "http.client keeps no connection that the server ends"
    wait_until(lambda: drain.connections(server) == 0, "the connection to end", 10)


def test_connections_of_both_families_are_counted_and_others_are_not(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_server(("127.0.0.1", 0)) as other:
        port = listening.getsockname()[1]
        assert drain.connections(port) == 0, "one that listens is not open"
        with socket.create_connection(listening.getsockname()), socket.create_connection(other.getsockname()):
            assert drain.connections(port) == 1
            six = tmp_path / "tcp6"
            six.write_text(f"header\n 0: {'0' * 32}:{port:04X} {'1' * 32}:1234 01 0\n 1: {'0' * 32}:{port:04X} {'1' * 32}:1234 06 0\n")
            assert drain.connections(port, ("/proc/net/tcp", str(six), str(tmp_path / "missing"))) == 2
