"""Asks why the pods of Jobs are not made (`unmade.py`), and not oftener than needed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime

from tunesmith.core.objects import Object
from tunesmith.runtime.client import ApiError, Cluster
from tunesmith.workload import unmade

logger = logging.getLogger(__name__)


class Refusals:
    """What was said last of each Job that lacks pods."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._told: dict[str, tuple[datetime, str]] = {}

    async def of(self, children: Sequence[Object], now: datetime) -> Mapping[str, str]:
        """Why pods of these Jobs are not made, by the Job's uid, as far as anybody says."""
        found = {}
        jobs = {child["metadata"]["uid"] for child in children if child["kind"] == "Job"}
        due = {job["metadata"]["uid"]: job for job, at in unmade.lacking(children) if at <= now}
        for uid in jobs - due.keys():
            self._told.pop(uid, None)
        for uid, job in due.items():
            asked, text = self._told.get(uid, (None, ""))
            if asked is None or now - asked >= unmade.AGAIN:
                text = await self._ask(job)
                self._told[uid] = now, text
            if text:
                found[uid] = text
        return found

    async def _ask(self, job: Object) -> str:
        try:
            return await self._cluster.refusal(job)
        except ApiError as error:
            # A role of an older chart does not let it ask. All else is known without.
            logger.warning("the Events of Job %s cannot be read: %s", job["metadata"]["name"], error)
            return ""
