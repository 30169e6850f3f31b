"""Posts Events beside the work: a reconcile neither waits for them nor fails with them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from tunesmith.core.objects import GROUP, Object
from tunesmith.runtime.client import Cluster, Conflict
from tunesmith.runtime.events import Event
from tunesmith.runtime.resources import RESOURCES

logger = logging.getLogger(__name__)

WAITING_LIMIT = 1000
"""Events that wait to be posted; what comes on top is dropped."""
CONTROLLER = f"{GROUP}/operator"


class Announcer:
    """Takes Events in at once and posts them one after another."""

    def __init__(self, cluster: Cluster, instance: str, now: Callable[[], datetime]) -> None:
        """`instance`: which operator of several it is."""
        self._cluster = cluster
        self._instance = instance
        self._now = now
        self._waiting: asyncio.Queue[Object] = asyncio.Queue(WAITING_LIMIT)

    def announce(self, owner: Object, events: Iterable[Event]) -> None:
        """Take in Events about `owner`, at this time."""
        for event in events:
            try:
                self._waiting.put_nowait(manifest(owner, event, self._instance, self._now()))
            except asyncio.QueueFull:
                logger.warning("too many Events wait to be posted: dropped %s of %s", event.reason, owner["metadata"]["name"])

    async def run(self) -> None:
        """Post them, each once: status has what an Event tells, so a lost one is no loss."""
        while True:
            event = await self._waiting.get()
            try:
                await self._cluster.post_event(event)
            except Conflict:
                logger.debug("told before: %s", event["note"])
            except Exception as error:
                logger.warning("an Event was not posted: %r", error)


def manifest(owner: Object, event: Event, instance: str, now: datetime) -> Object:
    """The Event as an object. The same word about the same object has the same name: it is told once while the API server keeps it (an hour)."""
    metadata, api_version = owner["metadata"], RESOURCES[owner["kind"]].api_version
    digest = hashlib.sha256("\0".join((metadata["uid"], event.type, event.reason, event.message)).encode()).hexdigest()[:16]
    regarding = {"apiVersion": api_version, "kind": owner["kind"], **{name: metadata[name] for name in ("namespace", "name", "uid")}}
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"namespace": metadata["namespace"], "name": f"{metadata['name']}.{digest}"},
        "eventTime": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": CONTROLLER,
        "reportingInstance": instance[:128],
        "action": "Reconcile",
        "type": event.type,
        "reason": event.reason,
        "note": event.message,
        "regarding": regarding,
    }
