"""Crash plans: one for every write of the reference life and every way in which the operator may be lost around it."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from aiohttp import web

from dev.bench.proxy import Exchange, pass_on
from dev.bench.trail import COUNTED, SIGNALS, Entry, called

FAULTS = {
    "before": "killed before the server has seen the write",
    "after": "killed when it has read the answer",
    "lost": "killed while the answer is on its way",
    "reset": "lives on, but its connection breaks instead of an answer",
}
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class Write(NamedTuple):
    """What tells one write of a life from all others, but for how often it has been made before."""

    verb: str
    resource: str
    name: str
    subresource: str

    def __str__(self) -> str:
        return "/".join(part for part in self if part)


@dataclass(frozen=True)
class Plan:
    """`fault` happens at the `number`-th `write` of that sort."""

    write: Write
    number: int
    fault: str

    def __str__(self) -> str:
        return f"{self.write}/{self.number}/{self.fault}"


def plans(lives: Iterable[Sequence[Entry]], seed: int) -> list[Plan]:
    """All plans for the writes that the lives have in common, in an order that the seed decides; of signals to others for the first alone."""
    counts = [Counter(Write(entry.verb, entry.resource, entry.name, entry.subresource) for entry in life if entry.ours) for life in lives]
    common = counts[0]
    for count in counts[1:]:
        common &= count
    times = {write: 1 if write.resource in SIGNALS else count for write, count in common.items()}
    made = [Plan(write, number, fault) for write in sorted(times) for number in range(1, times[write] + 1) for fault in FAULTS]
    random.Random(seed).shuffle(made)
    return made


class Saboteur:
    """The fault of a proxy: carries out one plan, once."""

    def __init__(self, kill: Callable[[], None]) -> None:
        self._kill = kill
        self._plan: Plan | None = None
        self._seen: Counter[Write] = Counter()
        self.cut_off = False
        """The operator is dying: nothing of it gets through any more."""
        self.fired = False

    def load(self, plan: Plan | None) -> None:
        """Begin to count for the next plan; None: nothing is to happen."""
        self._plan, self._seen, self.fired = plan, Counter(), False

    async def __call__(self, exchange: Exchange) -> web.StreamResponse:
        """Pass a request on, or not."""
        if self.cut_off:
            return exchange.cut()
        write = _write(exchange) if exchange.is_write else None
        if write is None or self._plan is None or self.fired:
            return await pass_on(exchange)
        self._seen[write] += 1
        if (write, self._seen[write]) != (self._plan.write, self._plan.number):
            return await pass_on(exchange)
        self.fired = True
        return await self._strike(exchange, self._plan.fault)

    async def _strike(self, exchange: Exchange, fault: str) -> web.StreamResponse:
        if fault == "before":
            self._end()
            return exchange.cut()
        answer = await exchange.forward()
        if fault == "after":
            # What it does on reading the answer gets no further than to us.
            self.cut_off = True
            response = await exchange.reply(answer)
            self._end()
            return response
        await answer.read()
        if fault == "lost":
            self._end()
        return exchange.cut()

    def _end(self) -> None:
        self.cut_off = True
        self._kill()


def _write(exchange: Exchange) -> Write | None:
    """The write that a request is; None for what does not count."""
    parts = exchange.request.path.strip("/").split("/")
    if "namespaces" not in parts:
        return None
    resource, *rest = parts[parts.index("namespaces") + 2 :]
    if resource not in COUNTED:
        return None
    metadata = json.loads(exchange.body)["metadata"] if not rest else {}
    name = rest[0] if rest else metadata.get("name", "")
    return Write(_VERBS[exchange.request.method], resource, called(resource, name), rest[1] if len(rest) > 1 else "")
