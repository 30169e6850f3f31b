"""Folds what is recorded of an object's stages and what is observed of their children into a new record.

All decisions about stages are made here, so that they are on record before `stages.plan` acts on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tunesmith import attempts
from tunesmith.attempts import Note, Verdict
from tunesmith.conditions import MESSAGE_LIMIT, timestamp
from tunesmith.results import Result
from tunesmith.stages import Entry, StageKey, attempt_of, key_of
from tunesmith.values import LABEL_STAGE, Object, Observed

ATTEMPTS_KEPT = 20
RETRIES = 3
DISRUPTION_LIMIT = 512
BACKOFF, BACKOFF_LIMIT = timedelta(seconds=5), timedelta(seconds=300)
_PASSING = ("jobUID", "attemptStartTime", "disruption", "notBefore")
_OVER = ("Succeeded", "Failed", "Stopped")


@dataclass(frozen=True)
class Ledger:
    """What `fold` found."""

    entries: tuple[Entry, ...]
    """`status.stages`."""
    attempts: tuple[Entry, ...]
    """`status.attempts`: the last ones that ended."""
    retries_spent: int
    """`status.retriesSpent`."""
    note: Note
    """What the stages now due are doing."""
    stage: str
    """Name of the stage now due; the last one's when all are over."""
    busy: int
    """Unfinished Jobs and live pods of all stages."""
    answers: Mapping[StageKey, Result]
    """Results that attempts told just now, whatever their outcome."""

    @property
    def succeeded(self) -> bool:
        """All stages succeeded."""
        return all(entry["state"] == "Succeeded" for entry in self.entries)

    @property
    def failure(self) -> Entry | None:
        """The entry of the stage that failed for good."""
        return next((entry for entry in self.entries if entry["state"] == "Failed"), None)

    @property
    def active(self) -> bool:
        """An attempt is under way."""
        return any(entry["state"] in ("Pending", "Running") for entry in self.entries)

    @property
    def times(self) -> dict[str, str]:
        """`{startTime, completionTime}` of the object: when its first attempt began and, once all is over, when the last stage ended."""
        started = min((entry["startTime"] for entry in self.entries if "startTime" in entry), default=None)
        ended = max((entry["completionTime"] for entry in self.entries if "completionTime" in entry), default=None)
        over = self.failure is not None or self.succeeded
        return ({"startTime": started} if started else {}) | ({"completionTime": ended} if over and ended else {})


@dataclass(frozen=True)
class _View:
    """The children of one stage."""

    jobs: dict[int, Object] = field(default_factory=dict)
    pods: dict[int, list[Object]] = field(default_factory=dict)

    def busy(self, but: int | None = None) -> int:
        """Unfinished Jobs and live pods of all attempts (but one)."""
        jobs = sum(not attempts.is_finished(job) for number, job in self.jobs.items() if number != but)
        return jobs + sum(attempts.is_live(pod) for number, found in self.pods.items() if number != but for pod in found)

    def underway(self, after: int) -> int | None:
        """The later attempt whose Job runs although it is not on record: the status was lost."""
        return min((number for number, job in self.jobs.items() if number > after and not attempts.is_finished(job)), default=None)


def fold(observed: Observed, waves: Sequence[Sequence[StageKey]], hold: bool) -> Ledger:
    """Follow the stages under way and begin those that are due.

    The stages of a wave run side by side, waves one after another. `hold`: begin nothing (suspended, or something named is missing).
    """
    book = _Book(observed)
    for key in (key for wave in waves for key in wave):
        book.follow(key, hold)
    if any(entry["state"] == "Failed" for entry in book.entries.values()):
        book.stop()
    due = next((wave for wave in waves if any(book.entries[key]["state"] != "Succeeded" for key in wave)), waves[-1])
    if not hold:
        for key in due:
            book.begin(key)
    return book.close(due)


class _Book:
    """The entries while `fold` goes over them. Retries are one budget of all stages, so the stages cannot be folded apart."""

    def __init__(self, observed: Observed) -> None:
        recorded = observed.recorded
        self.now: datetime = observed.now
        self.retries = int(observed.spec.get("retries", RETRIES))
        self.spent = int(recorded.get("retriesSpent", 0))
        self.ended: list[Entry] = list(recorded.get("attempts", ()))
        self.recorded: dict[StageKey, Entry] = {key_of(entry): {**entry} for entry in recorded.get("stages", ())}
        self.entries: dict[StageKey, Entry] = {}
        self.notes: dict[StageKey, Note] = {}
        self.answers: dict[StageKey, Result] = {}
        self.views = _views(observed.children)

    def view(self, key: StageKey) -> _View:
        return self.views.get(key) or _View()

    def follow(self, key: StageKey, hold: bool) -> None:
        """See what became of the attempt under way, if one is."""
        fresh: Entry = {"name": key.name} | ({"part": key.part} if key.part else {}) | {"state": "Waiting", "attempt": 0}
        entry = self.entries[key] = self.recorded.get(key) or fresh
        if entry["state"] not in ("Pending", "Running"):
            return
        job, pods = self.view(key).jobs.get(entry["attempt"]), self.view(key).pods.get(entry["attempt"], [])
        if job is None and "jobUID" not in entry:
            # Not made yet. When held it is taken back under the same number: should its creation be under way, that Job is found again.
            self.entries[key] = _settled(entry, state="Waiting", attempt=entry["attempt"] - 1) if hold else entry
            return
        entry |= {"jobUID": job["metadata"]["uid"]} if job else {}
        entry |= {"disruption": text} if (text := attempts.disruption_of(pods)[:DISRUPTION_LIMIT]) else {}
        if any(attempts.is_live(pod) for pod in pods) or (job is not None and not attempts.is_finished(job)):
            note = self.notes[key] = attempts.describe(job, pods)
            entry["state"] = "Running" if note.running else "Pending"
        else:
            deleted = job is None or "deletionTimestamp" in job["metadata"]
            verdict = attempts.judge(key.name, pods, entry.get("disruption", ""))
            self._end(key, _DELETED if deleted and verdict.outcome == "Retry" else verdict)

    def _end(self, key: StageKey, verdict: Verdict) -> None:
        entry = self.entries[key]
        if verdict.result:
            self.answers[key] = verdict.result
        self.spent += verdict.outcome == "Retry"
        self.ended.append(_ended(entry, verdict, self.now))
        reason, message = verdict.reason, verdict.message[:MESSAGE_LIMIT]
        if verdict.outcome == "Succeeded" and verdict.result:
            self.entries[key] = _settled(entry, state="Succeeded", completionTime=timestamp(self.now), result=verdict.result.facts())
        elif verdict.outcome == "Failed" or (verdict.outcome == "Retry" and self.spent > self.retries):
            self.entries[key] = _settled(entry, state="Failed", completionTime=timestamp(self.now), reason=reason, message=message)
        else:
            pause = min(BACKOFF * 2**self.spent, BACKOFF_LIMIT) if verdict.outcome == "Retry" else timedelta(0)
            self.entries[key] = _settled(entry, state="Waiting", notBefore=timestamp(self.now + pause), reason=reason, message=message)

    def begin(self, key: StageKey) -> None:
        """Start the next attempt, unless something of an earlier one may still be alive or it is too early."""
        entry, view = self.entries[key], self.view(key)
        if entry["state"] != "Waiting":
            return
        attempt = view.underway(after=entry["attempt"]) or entry["attempt"] + 1
        if view.busy(but=attempt if attempt in view.jobs else None) or self.now < attempts.moment(entry.get("notBefore", timestamp(self.now))):
            return
        started = timestamp(self.now)
        self.entries[key] = _settled(entry, state="Pending", attempt=attempt, attemptStartTime=started)
        self.entries[key].setdefault("startTime", started)

    def stop(self) -> None:
        """Give up all stages that are not over, since the object has failed."""
        self.entries = {key: entry if entry["state"] in _OVER else _settled(entry, state="Stopped") for key, entry in self.entries.items()}

    def close(self, due: Sequence[StageKey]) -> Ledger:
        """The ledger; `due` is the wave whose doings are told."""
        return Ledger(
            entries=tuple(self.entries.values()),
            attempts=tuple(self.ended[-ATTEMPTS_KEPT:]),
            retries_spent=self.spent,
            note=_summary([(key, self._note(key)) for key in due if self.entries[key]["state"] not in _OVER]),
            stage=due[0].name,
            busy=sum(view.busy() for view in self.views.values()),
            answers=self.answers,
        )

    def _note(self, key: StageKey) -> Note:
        entry = self.entries[key]
        if key in self.notes and entry["state"] in ("Pending", "Running"):
            return self.notes[key]
        if entry["state"] == "Pending":
            return Note("Creating", f"attempt {entry['attempt']} is being created")
        if self.view(key).busy():
            return Note("Ending", "waits until no pod of an earlier attempt is left")
        if entry.get("reason"):
            return Note("Retrying", f"attempt {entry['attempt']} ended: {entry['reason']}: {entry['message']}")
        return Note("Waiting", "has not begun")


_DELETED = Verdict("Free", "JobDeleted", "its Job was deleted")


def _settled(entry: Entry, **changes: Any) -> Entry:
    """`entry` without what belonged to an attempt under way or to a failure before it, and with `changes`."""
    return {name: value for name, value in entry.items() if name not in (*_PASSING, "reason", "message")} | changes


def _ended(entry: Entry, verdict: Verdict, now: datetime) -> Entry:
    part = {"part": entry["part"]} if "part" in entry else {}
    return {
        "stage": entry["name"],
        **part,
        "attempt": entry["attempt"],
        "outcome": "Succeeded" if verdict.outcome == "Succeeded" else "Failed",
        "free": verdict.outcome == "Free",
        "reason": verdict.reason,
        "message": verdict.message[:MESSAGE_LIMIT],
        "startTime": entry["attemptStartTime"],
        "completionTime": timestamp(now),
    }


def _summary(notes: Sequence[tuple[StageKey, Note]]) -> Note:
    """One note for stages side by side; its reason is that of the first that does not run."""
    if not notes:
        return Note("Done", "all stages are over")
    first = next((note for _, note in notes if not note.running), None)
    text = "; ".join(f"{key}: {note.message}" for key, note in notes)
    return Note(first.reason if first else notes[0][0].name, text, running=first is None)


def _views(children: Iterable[Object]) -> dict[StageKey, _View]:
    views: dict[StageKey, _View] = {}
    for child in children:
        if LABEL_STAGE not in child["metadata"].get("labels", {}) or child["kind"] not in ("Job", "Pod"):
            continue
        key, number = attempt_of(child)
        view = views.setdefault(key, _View())
        if child["kind"] == "Job":
            view.jobs[number] = child
        else:
            view.pods.setdefault(number, []).append(child)
    return views
