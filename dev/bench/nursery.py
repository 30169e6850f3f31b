"""Starts operators fast: a process that has imported everything once and forks for each of them.

Half of the work of a short life would otherwise be Python's imports. What is forked runs `python -m tunesmith` unchanged, in a
process of its own, with its own environment; only `prepare` may change it first (a defect to be found).

It takes one JSON object a line, `{order, environment, log, prepare}`, and answers each with `{order, started}`, the process's id;
`{ended, status}` follows when a process has ended. Its own end is the end of all that it started.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import itertools
import json
import os
import runpy
import selectors
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kubernetes.aio.config import kube_config

GONE = "the process that starts operators has ended"
ROOT = Path(__file__).resolve().parents[2]


class Nursery:
    """The client's side, in asyncio."""

    async def __aenter__(self) -> Self:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "operator", ROOT / "contract")))}
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(sys.executable, "-m", "dev.bench.nursery", stdin=pipe, stdout=pipe, env=environment)
        self._orders = itertools.count()
        self._started: dict[int, asyncio.Future[int]] = {}
        self._ended: dict[int, asyncio.Future[int]] = {}
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        await self._process.wait()
        await self._reader

    async def start(self, environment: Mapping[str, str], log: Path, prepare: Sequence[str] = ()) -> int:
        """Start an operator; `prepare` names functions (`module:name`) that it calls before its own main. Returns its process id."""
        assert self._process.stdin
        if self._reader.done():
            raise RuntimeError(GONE)
        number = next(self._orders)
        order = {"order": number, "environment": dict(environment), "log": str(log), "prepare": list(prepare)}
        started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._started[number] = started
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        try:
            return await started
        finally:
            del self._started[number]

    def ended(self, pid: int) -> asyncio.Future[int]:
        """Its exit status, or the negative number of the signal that ended it, once it has ended."""
        return self._ended[pid]

    def kill(self, pid: int) -> None:
        """Send it SIGKILL, unless it has ended."""
        if not self._ended[pid].done():
            # It may have ended a moment ago.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def _read(self) -> None:
        assert self._process.stdout
        try:
            async for line in self._process.stdout:
                told = json.loads(line)
                if "ended" in told:
                    self._ended[told["ended"]].set_result(told["status"])
                else:
                    self._ended[told["started"]] = asyncio.get_running_loop().create_future()
                    started = self._started.get(told["order"])
                    if started and not started.done():
                        started.set_result(told["started"])
                    else:
                        self.kill(told["started"])
        finally:
            # Nothing is told any more, for the end of the nursery or of what runs here: who waits would wait for ever.
            for started in self._started.values():
                if not started.done():
                    started.set_exception(RuntimeError(GONE))
            for pid, ended in self._ended.items():
                self.kill(pid)
                if not ended.done():
                    ended.set_result(-signal.SIGKILL)


def _serve() -> None:
    """Fork for each order until there are no more."""
    # All that it imports, and itself again in each child.
    importlib.import_module("tunesmith.__main__")
    del sys.modules["tunesmith.__main__"]
    # Else each child's first collection would copy all that is shared.
    gc.freeze()
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(wake, selectors.EVENT_READ)
    children: set[int] = set()
    rest = b""
    while True:
        ready = [key.fd for key, _ in selector.select()]
        if wake in ready:
            os.read(wake, 4096)
            _reap(children)
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                children.add(_fork(json.loads(line)))
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _tell(**message: int) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def _reap(children: set[int]) -> None:
    for pid in list(children):
        gone, status = os.waitpid(pid, os.WNOHANG)
        if gone:
            children.discard(pid)
            _tell(ended=pid, status=os.waitstatus_to_exitcode(status))


def _fork(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        _tell(started=pid, order=order["order"])
        return pid
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(order["environment"])
    # Read from the environment on import, which was long ago.
    kube_config.KUBE_CONFIG_DEFAULT_LOCATION = order["environment"]["KUBECONFIG"]
    status = 1
    try:
        for name in order["prepare"]:
            module, _, function = name.partition(":")
            getattr(importlib.import_module(module), function)()
        runpy.run_module("tunesmith", run_name="__main__", alter_sys=True)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not to return into the parent's loop.
        os._exit(status)


if __name__ == "__main__":
    _serve()
