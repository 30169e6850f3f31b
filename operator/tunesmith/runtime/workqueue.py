"""A queue of keys: no key twice, no key by two workers at once, failures later and later, namespaces in turn."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress

from tunesmith.core.objects import Key

BACKOFF_BASE = 0.25
BACKOFF_CAP = 300.0
SPARE = 64
"""So many entries of the timetable may be out of date, and as many as are not, before it is made again."""


class WorkQueue:
    """What is to be reconciled, and when.

    A key that is added while it is being worked on is worked on once more afterwards. Namespaces take turns, so that one with
    thousands of objects does not keep the others waiting.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turns: OrderedDict[str, deque[Key]] = OrderedDict()
        self._waiting: set[Key] = set()
        self._running: set[Key] = set()
        self._again: set[Key] = set()
        self._due: dict[Key, float] = {}
        self._timetable: list[tuple[float, Key]] = []
        self._failures: dict[Key, int] = {}
        self._added = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, key: Key) -> None:
        """Work on `key` as soon as a worker is free."""
        if key in self._running:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._turns.setdefault(key.namespace, deque()).append(key)
            self._added.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """Work on `key` in so many seconds, or earlier if that was asked for before."""
        due = self._clock() + seconds
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._timetable, (due, key))
            if len(self._timetable) > 2 * len(self._due) + SPARE:
                # Keys that were taken before their time have left their entries behind.
                self._timetable = [(at, each) for each, at in self._due.items()]
                heapq.heapify(self._timetable)
            self._added.set()

    def add_failed(self, key: Key) -> float:
        """Work on `key` again after a pause that doubles with each failure; return the pause."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        pause = min(BACKOFF_CAP, BACKOFF_BASE * 2.0 ** min(failures, 30))
        self.add_after(key, pause)
        return pause

    def forget_failures(self, key: Key) -> None:
        """The next failure of `key` is its first."""
        self._failures.pop(key, None)

    def hasten(self) -> None:
        """Work on all keys that failed as soon as a worker is free."""
        for key in list(self._failures):
            self.add(key)

    def take(self) -> Key | None:
        """The next key to work on, which is then running until `done`; None if there is none now."""
        self._promote()
        if not self._turns:
            return None
        namespace, keys = self._turns.popitem(last=False)
        key = keys.popleft()
        if keys:
            self._turns[namespace] = keys
        self._waiting.discard(key)
        self._running.add(key)
        # Whatever it was to be woken for, it is awake now; the run says again when it wants to be woken.
        self._due.pop(key, None)
        return key

    def done(self, key: Key) -> None:
        """The run of `key` has ended."""
        self._running.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    async def get(self) -> Key:
        """Wait for the next key to work on."""
        while True:
            key = self.take()
            if key is not None:
                return key
            self._added.clear()
            # Not wait_for: before Python 3.12 it drops a cancellation that comes in the same turn as the key, and the worker would never end.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._added.wait()

    def _pause(self) -> float | None:
        """Seconds until the next key is due; None if none is."""
        return max(0.0, self._timetable[0][0] - self._clock()) if self._timetable else None

    def _promote(self) -> None:
        """Add the keys that are due. An entry that is no longer the key's own due time is one that was moved or dropped."""
        while self._timetable and self._timetable[0][0] <= self._clock():
            due, key = heapq.heappop(self._timetable)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)
