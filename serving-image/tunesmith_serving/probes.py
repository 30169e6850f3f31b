"""The answers to the kubelet: `/live` from the launcher alone, `/ready` by asking the engine for its models.

The engine's `/health` is 200 before the model can be named; so the kubelet asks here, and this asks the engine's `/v1/models`. The
engine's first request is ours too: one that lists its model may still not be able to answer, and on a CPU with AMX one of four tokens
or fewer, were it the first, kills vLLM 0.32 (SIGILL: its attention uses AMX, for which only its products of larger matrices ask the
kernel's leave).
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

ENGINE_TIMEOUT_SECONDS = 2.0
CACHE_SECONDS = 0.5
FIRST_REQUEST_SECONDS = 30.0
FIRST_PROMPT = [0] * 16
"""As token ids, of which every model has this one."""


class Answer(NamedTuple):
    """An answer to a probe."""

    ok: bool
    message: str


class ModelCheck:
    """Asks the engine whether it lists the served model, and once whether it answers; an answer holds for half a second."""

    def __init__(self, port: int, model: str) -> None:
        self._model = model
        self._request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/models")
        first = json.dumps({"model": model, "prompt": FIRST_PROMPT, "max_tokens": 1}).encode()
        self._first = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", first, {"Content-Type": "application/json"})
        # Not through a proxy that the environment may name.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._lock = threading.Lock()
        self._answer = Answer(False, "the engine has not been asked yet")
        self._expires = 0.0
        self.listed = False

    def __call__(self) -> Answer:
        """Return whether the engine serves the model; `listed` is whether it ever did."""
        with self._lock:
            if time.monotonic() >= self._expires:
                self._answer = self._ask()
                if self._answer.ok and not self.listed:
                    self._answer = self._send_first() or self._answer
                self._expires = time.monotonic() + CACHE_SECONDS
                self.listed |= self._answer.ok
            return self._answer

    def _send_first(self) -> Answer | None:
        """Send the first request; returns why the engine is not ready, None if it is. That a model takes no prompts is no fault."""
        try:
            with self._opener.open(self._first, timeout=FIRST_REQUEST_SECONDS) as response:
                response.read()
        except urllib.error.HTTPError as error:
            with error:
                failed = error.code >= HTTPStatus.INTERNAL_SERVER_ERROR
                return Answer(False, f"the engine answers {error.code} to its first request") if failed else None
        except OSError as error:
            return Answer(False, f"the engine does not answer its first request: {error}")
        return None

    def _ask(self) -> Answer:
        try:
            with self._opener.open(self._request, timeout=ENGINE_TIMEOUT_SECONDS) as response:
                listed = [model["id"] for model in json.load(response)["data"]]
        except urllib.error.HTTPError as error:
            with error:
                return Answer(False, f"the engine answers {error.code} for its list of models")
        except (OSError, ValueError, KeyError, TypeError) as error:
            return Answer(False, f"the engine does not list its models yet: {error}")
        if self._model in listed:
            return Answer(True, f"{self._model} is served")
        return Answer(False, f"the engine lists {listed} and not {self._model!r}")


Routes = dict[str, Callable[[], Answer]]


class ProbeServer:
    """A small HTTP server on a thread of its own, with one function for each path."""

    def __init__(self, port: int, routes: Routes) -> None:
        self._server = ThreadingHTTPServer(("", port), _handler(routes))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)

    def __enter__(self) -> ProbeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])


def _handler(routes: Routes) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            route = routes.get(self.path)
            answer = route() if route else Answer(False, "there are /ready and /live")
            failed = HTTPStatus.SERVICE_UNAVAILABLE if route else HTTPStatus.NOT_FOUND
            body = (answer.message + "\n").encode()
            self.send_response(HTTPStatus.OK if answer.ok else failed)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (http.server's name)
            """Say nothing: a line each second would bury the engine's log."""

    return Handler
