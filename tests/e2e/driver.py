"""Sends requests to a model without a pause and keeps count: driver.py HOST MODEL. Needs nothing but Python.

`/tmp/counts.json`: how many were answered in full, and what became of the others. `lost`: sent, and not answered in full.
`unconnected`: no connection was made, so nothing was sent; it is tried again.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import sys
import threading
import time
from typing import Any

COUNTS = "/tmp/counts.json"
TOKENS = {"kept": 4, "streamed": 120}
CONNECT_SECONDS, ANSWER_SECONDS = 2.0, 30.0


class Counts:
    """What became of the requests of all clients."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.all: dict[str, Any] = {"answered": 0, "streamed": 0, "lost": [], "unconnected": []}

    def answered(self, streamed: bool) -> None:
        """One more was answered in full."""
        with self.lock:
            self.all["answered"] += 1
            self.all["streamed"] += streamed

    def failed(self, kind: str, connected: float | None, error: object) -> None:
        """One more was not: when, of which client, on a connection made when (None: none was made), and why."""
        with self.lock:
            self.all[kind].append([time.time(), threading.current_thread().name, connected, repr(error)])

    def write(self) -> None:
        """Show the counts, never half of them."""
        with self.lock:
            text = json.dumps(self.all)
        with open(COUNTS + ".new", "w") as file:
            file.write(text)
        os.replace(COUNTS + ".new", COUNTS)


def ask(client: http.client.HTTPConnection, model: str, streamed: bool) -> None:
    """One request; raises unless it is answered in full."""
    tokens = TOKENS["streamed" if streamed else "kept"]
    body = {"model": model, "prompt": "one two three", "max_tokens": tokens, "ignore_eos": True, "stream": streamed}
    client.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = client.getresponse()
    text = answer.read().decode()
    if answer.status != 200:
        raise ValueError(f"status {answer.status}: {text[:200]}")
    if not streamed:
        if json.loads(text)["usage"]["completion_tokens"] != tokens:
            raise ValueError(f"cut short: {text[:200]}")
    elif not text.rstrip().endswith("data: [DONE]") or '"finish_reason":"length"' not in text.replace(": ", ":"):
        raise ValueError(f"cut short: {text[-200:]}")


def drive(host: str, model: str, streamed: bool, counts: Counts) -> None:
    """One request after another: streams on new connections, others on one that is kept as long as the server keeps it."""
    client, connected = http.client.HTTPConnection(host, 80), 0.0
    while True:
        # As every pool of connections does before it uses one again: idle for 5 s, the server ends it.
        if client.sock is not None and select.select([client.sock], [], [], 0)[0]:
            client.close()
        try:
            if client.sock is None:
                client.timeout = CONNECT_SECONDS
                client.connect()
                connected = time.time()
                client.sock.settimeout(ANSWER_SECONDS)
        except OSError as error:
            counts.failed("unconnected", None, error)
            client.close()
            time.sleep(0.2)
            continue
        try:
            ask(client, model, streamed)
            counts.answered(streamed)
        except (OSError, ValueError, http.client.HTTPException) as error:
            counts.failed("lost", connected, error)
            client.close()
        if streamed:
            client.close()
        # Without it, they alone would keep the two processors busy that the next engine needs to start.
        time.sleep(0.5)


def main(host: str, model: str) -> None:
    """Drive until the pod ends."""
    counts = Counts()
    for number, streamed in enumerate((False, False, True, True)):
        name = f"{'streamed' if streamed else 'kept'}-{number}"
        threading.Thread(target=drive, args=(host, model, streamed, counts), name=name, daemon=True).start()
    while True:
        counts.write()
        time.sleep(0.5)


if __name__ == "__main__":
    main(*sys.argv[1:])
