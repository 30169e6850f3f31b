"""When the stages of a run took place, as bars on a common axis. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

# Waiting (for a queue, overnight) says little and would squeeze the bars: longer idle times are drawn this share of the whole.
LONGEST_IDLE = 0.1
NARROWEST = 0.4
"""Per cent of the axis that even the shortest stage takes: it must be seen."""


@dataclass(frozen=True)
class Span:
    """A stage and when it ran, in RFC 3339."""

    name: str
    start: str
    end: str


@dataclass(frozen=True)
class Bar:
    """A stage on the axis, which runs from 0 to 100 per cent."""

    name: str
    left: float
    width: float
    duration: str
    start: str


@dataclass(frozen=True)
class Timeline:
    """The bars in the order of their stages, and how much idle time was left out."""

    bars: list[Bar]
    total: str
    shortened: str | None


def timeline(spans: Sequence[Span]) -> Timeline:
    """Lay stages out on one axis, with idle times between them shortened to a tenth of the busy time."""
    if not spans:
        return Timeline([], "", None)
    times = sorted((_seconds(span.start), max(_seconds(span.end), _seconds(span.start)), number) for number, span in enumerate(spans))
    busy, idle = _busy_and_idle([(start, end) for start, end, _ in times])
    longest = LONGEST_IDLE * busy
    left: dict[int, tuple[float, float]] = {}
    removed, reached = 0.0, times[0][0]
    for start, end, number in times:
        removed += max(start - reached - longest, 0.0)
        left[number] = (start - removed, end - start)
        reached = max(reached, end)
    origin = times[0][0]
    scale = 100 / max(reached - removed - origin, 1.0)
    bars = [
        Bar(
            name=span.name,
            left=min((left[number][0] - origin) * scale, 100 - NARROWEST),
            width=max(left[number][1] * scale, NARROWEST),
            duration=duration(left[number][1]),
            start=span.start,
        )
        for number, span in enumerate(spans)
    ]
    return Timeline(bars, duration(busy), duration(idle) if removed else None)


def _busy_and_idle(times: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return how long at least one stage ran, and how long none did in between; `times` are sorted."""
    busy, reached = 0.0, times[0][0]
    for start, end in times:
        busy += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return busy, reached - times[0][0] - busy


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def duration(seconds: float) -> str:
    """Return a time span in its two largest units: `45 s`, `12 min 5 s`, `3 h 20 min`, `2 d 4 h`."""
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    rest = round(seconds)
    parts: list[tuple[int, str]] = []
    for size, unit in units:
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append((count, unit))
    return " ".join(f"{count} {unit}" for count, unit in parts[:2] if count) or "0 s"
