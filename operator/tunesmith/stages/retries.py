"""The budget of `retries`: one of all stages, and whole again once there is a checkpoint newer than when one was last spent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.api.blocks import RETRIES


class Retries:
    """The budget while the stages are folded. What is on record of it is `retriesSpent` and `retriesSpentStep`, so a restart changes nothing."""

    def __init__(self, spec: Mapping[str, Any], recorded: Mapping[str, Any], newest: int) -> None:
        """`newest`: step of the newest checkpoint that is known of; 0: none."""
        self._limit = int(spec.get("retries", RETRIES))
        self.spent = int(recorded.get("retriesSpent", 0))
        self.newest = newest
        # What an older release spent is measured from here on.
        self._step = int(recorded.get("retriesSpentStep", newest))
        self.learn(newest)

    @property
    def step(self) -> int | None:
        """Step of the newest checkpoint known of when one was last spent; None if none is spent."""
        return self._step if self.spent else None

    @property
    def exhausted(self) -> bool:
        """Whether more were spent than there are."""
        return self.spent > self._limit

    def learn(self, step: int | None) -> None:
        """Take note of a checkpoint."""
        self.newest = max(self.newest, step or 0)
        if self.spent and self.newest > self._step:
            self.spent = 0

    def spend(self) -> None:
        """Spend one."""
        self.spent, self._step = self.spent + 1, self.newest
