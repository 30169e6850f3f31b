"""A lane: a namespace with an operator of its own behind a proxy, with the chart's rights, in which lives are lived one after another."""

from __future__ import annotations

import asyncio
import difflib
import itertools
import json
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from dev.bench.life import Life
from dev.bench.nursery import Nursery
from dev.bench.plans import Plan, Saboteur
from dev.bench.proxy import Proxy
from dev.bench.rights import grant
from dev.bench.trail import AuditLog, Entry
from dev.bench.view import GaveUp, Object, View
from dev.cluster.controlplane import ControlPlane
from tunesmith.runtime.resources import RESOURCES

_numbers = itertools.count()


@dataclass
class Lived:
    """What a life left."""

    snapshots: dict[str, Object]
    entries: Sequence[Entry]
    seconds: float
    fired: bool
    deaths: Sequence[int]
    """Exit statuses of operators that ended without being told to."""
    error: str = ""

    @property
    def created(self) -> Counter[str]:
        """What was made, by whom it may be, and how often."""
        return Counter(f"{entry.resource}/{entry.name}" for entry in self.entries if entry.made)

    @property
    def deleted(self) -> set[str]:
        """What the operator deleted."""
        return {f"{entry.resource}/{entry.name}" for entry in self.entries if entry.removed and entry.ours}

    def perhaps(self, *verbs: str) -> set[str]:
        """What may have been done by such a write of the operator's whose end nobody heard of."""
        return {f"{entry.resource}/{entry.name}" for entry in self.entries if entry.cut_off and entry.verb in verbs}


class Lane:
    """Namespace, proxy, operator."""

    def __init__(self, control_plane: ControlPlane, view: View, nursery: Nursery, audit: AuditLog, folder: Path, prepare: Sequence[str] = ()) -> None:
        self.namespace = f"lane-{next(_numbers)}"
        self.log = folder / f"{self.namespace}.log"
        self._view = view
        self._nursery = nursery
        self._audit = audit
        self._prepare = prepare
        self._kubeconfig = folder / f"{self.namespace}.kubeconfig"
        self._pid = 0
        self._deaths: list[int] = []
        self._saboteur = Saboteur(lambda: nursery.kill(self._pid))
        self._control_plane = control_plane
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        body: Object = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
        await self._view.write("POST", "/api/v1/namespaces", body)
        # Not the administrator's rights: what is lost or asked again must be allowed, too.
        settings = (f"namespaces={{{self.namespace}}}", "progress.enabled=false", "rbac.aggregate=false")
        await asyncio.to_thread(grant, self._control_plane, self.namespace, self.namespace, *settings)
        proxy = Proxy(self._control_plane.server, self._control_plane.pki.context(self.namespace), self._saboteur)
        await self._stack.enter_async_context(proxy)
        proxy.write_kubeconfig(self._kubeconfig)
        claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"}, "spec": claim}
        await self._view.write("POST", RESOURCES["PersistentVolumeClaim"].path(self.namespace), body)
        self._operating = asyncio.create_task(self._operate())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._operating.cancel()
        await asyncio.gather(self._operating, return_exceptions=True)
        if self._pid:
            self._nursery.kill(self._pid)
            await self._nursery.ended(self._pid)
        await self._stack.aclose()

    async def live(self, plan: Plan | None) -> Lived:
        """One life, with what the plan says happening on the way."""
        self._saboteur.load(plan)
        self._deaths = []
        self._audit.take(self.namespace)
        start, error, life = time.monotonic(), "", Life(self._view, self.namespace)
        try:
            await self._while_operated(life.run())
        except (GaveUp, aiohttp.ClientError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        # The log is written when a request is done with, which its client may know first.
        await asyncio.sleep(0.2)
        seconds = time.monotonic() - start
        return Lived(life.snapshots, self._audit.take(self.namespace), seconds, self._saboteur.fired, tuple(self._deaths), error)

    async def _while_operated(self, life: Coroutine[Any, Any, None]) -> None:
        """Await a life; raises what there is no operator for any more, which it would wait for in vain."""
        living = asyncio.create_task(life)
        try:
            await asyncio.wait({living, self._operating}, return_when=asyncio.FIRST_COMPLETED)
            if self._operating.done():
                self._operating.result()
            await living
        finally:
            living.cancel()

    async def _operate(self) -> None:
        """What a kubelet does for the operator's container: start it again whenever it has ended."""
        environment = {
            "KUBECONFIG": str(self._kubeconfig),
            "TUNESMITH_NAMESPACES": self.namespace,
            "TUNESMITH_TRAINER_IMAGE": "trainer:1",
            "TUNESMITH_SERVING_IMAGE": "serving:1",
            "TUNESMITH_HEALTH_ADDRESS": "127.0.0.1",
            "TUNESMITH_HEALTH_PORT": "0",
            "TUNESMITH_LEASE_NAMESPACE": self.namespace,
            "TUNESMITH_IDENTITY": "lane",
            # A life is to take seconds.
            "TUNESMITH_BACKOFF_SECONDS": "0.1",
            "TUNESMITH_DRAIN_SECONDS": "1",
            # On a machine with too much to do, a lease that is lost would be one more fault than the plan has.
            "TUNESMITH_LEASE_DURATION_SECONDS": "90",
            "TUNESMITH_LEASE_DEADLINE_SECONDS": "60",
        }
        while True:
            self._saboteur.cut_off = False
            self._pid = await self._nursery.start(environment, self.log, self._prepare)
            status = await asyncio.shield(self._nursery.ended(self._pid))
            if not self._saboteur.cut_off:
                self._deaths.append(status)
                # One that cannot start must not keep the machine from saying so.
                await asyncio.sleep(1)


def complaints(lived: Lived, reference: Lived) -> list[str]:
    """What is wrong with a life, compared with the reference; empty: nothing."""
    found = [f"the operator ended by itself with status {status}" for status in lived.deaths]
    found += [lived.error] if lived.error else []
    for name in reference.snapshots.keys() & lived.snapshots.keys():
        found += _differences(name, reference.snapshots[name], lived.snapshots[name])
    for what in sorted((lived.created | reference.created).keys()):
        times, usual = lived.created[what], reference.created[what]
        # A life that was given up made less than it should for that reason alone.
        if times > usual or (times < usual and not lived.error and what not in lived.perhaps("create", "patch")):
            found.append(f"{what} was created {times} times, not {usual}")
    found += [f"{what} was deleted" for what in sorted(lived.deleted - reference.deleted)]
    if not lived.error:
        found += [f"{what} was not deleted" for what in sorted(reference.deleted - lived.deleted - lived.perhaps("delete"))]
    return found


def _differences(moment: str, reference: Object, found: Object) -> list[str]:
    if reference == found:
        return []
    expected, got = (json.dumps(each, indent=1, sort_keys=True).splitlines() for each in (reference, found))
    lines = list(difflib.unified_diff(expected, got, "reference", "this life", lineterm="", n=6))
    return ["\n".join((f"what was there when {moment}:", *lines[:200]))]
