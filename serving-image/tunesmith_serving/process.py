"""The engine's process: its output passed on, its last lines kept, its end awaited, its orphans reaped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile

KEPT_LINES = 400
# What vLLM's logger puts before a line: "(EngineCore pid=7) ERROR 11-22 16:31:47 [core.py:1510] ".
LOG_PREFIX = re.compile(r"^(\([\w-]+ pid=\d+\) )?([A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]+\] ?)?")
EXCEPTION = re.compile(r"^[\w.]*(Error|Exception): \S")
# The API server's own last words, which only point to the engine core's.
POINTER = "See root cause above"


def cause(lines: Iterable[str], served: bool) -> str:
    """Return what tells why an engine ended: the last exception in its output that is its own, else its last line.

    Of one that has served only the exception's type: what it wrote may be its clients' words, which are for no status.
    """
    texts = [text for line in lines if (text := LOG_PREFIX.sub("", line).rstrip())]
    exceptions = [number for number, text in enumerate(texts) if EXCEPTION.match(text) and POINTER not in text]
    if served:
        return f"{texts[exceptions[-1]].partition(':')[0]}; its log has the rest" if exceptions else "see its log"
    if not exceptions:
        return texts[-1].strip() if texts else "it wrote nothing"
    first = exceptions[-1]
    # pydantic's errors say what is wrong on indented lines of their own.
    more = takewhile(lambda text: text.startswith(" "), texts[first + 1 :])
    return " ".join([texts[first], *(text.strip() for text in more)])


def describe_exit(code: int) -> str:
    """Return an exit code in words; a negative one is the number of the signal that ended the process."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name} (out of memory?)" if -code == signal.SIGKILL else name


class EngineProcess:
    """A running engine, in a process group of its own.

    `wait` reaps every child of this process, not the engine alone: as PID 1 the launcher inherits the engine's orphans.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.alive = True
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._pass_on, daemon=True)
        self._reader.start()

    def _pass_on(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)
            sys.stdout.write(line)
            sys.stdout.flush()

    def terminate(self) -> None:
        """Ask the engine to finish its requests and end; its own children are its to stop."""
        # Not Popen.terminate(): that polls, and would take the exit status away from `wait`.
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the engine and all that it started, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Wait for the engine's end and return its exit code; whatever it left behind is killed."""
        while True:
            pid, status = os.waitpid(-1, 0)
            if pid == self._process.pid:
                break
        self.alive = False
        self.kill()
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return self._process.returncode

    def last_words(self, served: bool) -> str:
        """Return how the engine ended, and why, from its output; a signal says nothing there, so what was last written is of no account."""
        # The pipe ends once the group is killed; the time limit is for one who left the group.
        self._reader.join(timeout=2)
        code = int(self._process.returncode)
        return describe_exit(code) if code < 0 else f"{describe_exit(code)}: {cause(self._lines, served)}"
