"""All that kopf does for us: watch, and hand each event on. No decision is made here."""

from __future__ import annotations

import functools
import math
from typing import Any

import kopf
from kopf._cogs.structs.references import Insights, NamespaceName  # Not public; `kopf.operator` takes it.

from tunesmith.runtime.client import PAGE, configure
from tunesmith.runtime.controller import Controller
from tunesmith.runtime.resources import RESOURCES

WATCH_SECONDS = 6
"""What is silent is noticed within two seconds more, and one that aiohttp rounds up. A request for each kind watched is the price."""


def registry(controller: Controller) -> kopf.OperatorRegistry:
    """Handlers that feed `controller`.

    Low-level event handlers alone: they leave neither an annotation nor a finalizer on any object, and hold no state of their own.
    """
    handlers = kopf.OperatorRegistry()
    kopf.on.login(registry=handlers, id="login")(_login)
    kopf.on.cleanup(registry=handlers, id="cleanup")(functools.partial(_stop, controller))
    for resource in controller.watched:
        handler = functools.partial(_feed, controller, resource.kind)
        kopf.on.event(resource.group, resource.version, resource.plural, registry=handlers, id=resource.plural)(handler)
    return handlers


class _NoEssence(kopf.DiffBaseStorage):
    """No object has been handled before, and none has anything worth comparing."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None


class _NoProgress(kopf.ProgressStorage):
    """No handler leaves anything behind."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None

    def purge(self, **_: Any) -> None:
        return None

    def touch(self, **_: Any) -> None:
        return None

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence


class Watched:
    """Which namespaces kopf watches, where they are named: changed while it runs.

    A watch that is refused for as long as `settings` says ends kopf, so one of a namespace that is gone must be stopped before.
    """

    def __init__(self) -> None:
        self.insights = Insights()

    async def watch(self, namespaces: frozenset[str]) -> None:
        """Watch these and no others."""
        # Before that kopf sets them itself, to all.
        await self.insights.ready_namespaces.wait()
        if self.insights.namespaces == namespaces:
            return
        async with self.insights.revised:
            self.insights.namespaces.clear()
            self.insights.namespaces.update(map(NamespaceName, namespaces))
            self.insights.revised.notify_all()


def settings(patience: float = 0) -> kopf.OperatorSettings:
    """kopf's settings: no Events, no peers, no scan of the API, no state on objects, and pauses that end.

    `patience`: seconds for which a watch may be refused beyond the minute that is granted anyway.
    """
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.peering.standalone = True
    chosen.scanning.disabled = True
    chosen.networking.request_timeout = 30
    chosen.networking.connect_timeout = 10
    # Pauses that do not grow for ever: the last ones would outlast the trouble by twenty seconds. After a minute of it kopf ends.
    chosen.networking.error_backoffs = (1, 1, 2, 3, *[5] * (10 + math.ceil(patience / 5)))
    chosen.watching.connect_timeout = 10
    # A silent watch looks like one of an idle cluster, so the server is asked to end each after a while: one that goes on for longer is
    # dead. The next goes on where it ended; the server tells where it stands two seconds before it ends a watch, so none is too old for that.
    chosen.watching.server_timeout = WATCH_SECONDS
    chosen.watching.client_timeout = WATCH_SECONDS + 2
    chosen.watching.chunk_size = PAGE
    # What kopf would keep on the objects between two events. It copies and compares every object for it, wanted or not.
    chosen.persistence.diffbase_storage = _NoEssence()
    chosen.persistence.progress_storage = _NoProgress()
    # An idle worker keeps its place under the limit, so it must not idle for long.
    chosen.queueing.worker_limit = 200
    chosen.queueing.idle_timeout = 0.05
    for resource in RESOURCES.values():
        if resource.selector:
            chosen.watching.label_selectors[resource.group, resource.version, resource.plural] = resource.selector
    return chosen


async def _feed(controller: Controller, kind: str, event: kopf.RawEvent, **_: Any) -> None:
    controller.feed(kind, event["type"], dict(event["object"]))


async def _stop(controller: Controller, **_: Any) -> None:
    # kopf would wait five seconds for our tasks, which it takes for leftovers of its own, before it ends.
    controller.stop()


async def _login(**_: Any) -> kopf.ConnectionInfo:
    """As our own client, read again: kopf asks again when its token is refused. (Its own login needs the cluster's name service.)"""
    chosen = await configure()
    token = await chosen.get_api_key_with_prefix("BearerToken")
    return kopf.ConnectionInfo(
        server=chosen.host,
        ca_path=chosen.ssl_ca_cert,
        insecure=not chosen.verify_ssl,
        certificate_path=chosen.cert_file,
        private_key_path=chosen.key_file,
        token=token.partition(" ")[2] if token else None,
    )
