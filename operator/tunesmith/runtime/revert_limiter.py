"""Keeps the operator from fighting over a field with somebody who sets it again and again: an autoscaler, an injector, another operator."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, field

from tunesmith.core.objects import Key

PAUSE = 60.0
"""Seconds between two times that the same field of an object is put back."""


@dataclass
class _Mended:
    digest: str
    at: dict[str, float] = field(default_factory=dict)


class Corrections:
    """What was put back, and when. In memory: after a restart the first correction of each field is free again."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._mended: dict[Key, _Mended] = {}

    def wait(self, key: Key, digest: str, paths: Set[str]) -> float:
        """Seconds until the fields `paths` of an object may be put back; 0: now. `digest`: of what is asked for, which a new wish changes."""
        known = self._mended.get(key)
        if known is None or known.digest != digest:
            return 0.0
        return max(0.0, min(known.at.get(path, -PAUSE) for path in paths) + PAUSE - self._clock())

    def note(self, key: Key, digest: str, paths: Set[str]) -> None:
        """These fields have been put back just now, whether they stayed so or not."""
        now = self._clock()
        self._mended = {each: mended for each, mended in self._mended.items() if now - max(mended.at.values()) < PAUSE}
        if not paths:
            return
        known = self._mended.get(key)
        if known is None or known.digest != digest:
            known = self._mended[key] = _Mended(digest)
        known.at |= dict.fromkeys(paths, now)
