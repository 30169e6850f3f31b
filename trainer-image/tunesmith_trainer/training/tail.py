"""The last lines of what the training processes write to standard error, kept on their way to the pod's log.

Native libraries tell there alone why they end a process.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import IO

KEPT_LINES, LINE_LIMIT = 400, 2000
# For what is in the pipe when the last process has ended; one that left its group may hold it open.
FINISH_SECONDS = 2.0


class Tail:
    """Passes a stream on to this process's standard error, and keeps its last lines."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._thread: threading.Thread | None = None

    @property
    def lines(self) -> list[str]:
        """The last lines, the oldest first."""
        return list(self._lines)

    def follow(self, stream: IO[bytes] | None) -> None:
        """Begin to pass a stream on, to its end."""
        assert stream is not None
        # A descriptor of its own: Popen closes the stream when it likes.
        reader = open(os.dup(stream.fileno()), "rb", buffering=0)
        self._thread = threading.Thread(target=self._run, args=(reader,), name="tail", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until what has been written is here."""
        if self._thread:
            self._thread.join(FINISH_SECONDS)

    def _run(self, stream: IO[bytes]) -> None:
        rest = b""
        with stream:
            while chunk := os.read(stream.fileno(), 1 << 16):
                _write(chunk)
                *whole, rest = (rest + chunk).split(b"\n")
                self._lines.extend(line[:LINE_LIMIT].decode(errors="replace") for line in whole)
                # A line without an end must not grow for ever.
                rest = rest[:LINE_LIMIT]
        if rest:
            self._lines.append(rest.decode(errors="replace"))


def _write(chunk: bytes) -> None:
    while chunk:
        chunk = chunk[os.write(2, chunk) :]
