"""Folds what is recorded of an object's stages and what is observed of their children into a new record.

All decisions about stages are made here, so that they are on record before `stages.plan` acts on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from tunesmith import accounting, attempts, kueue, limits
from tunesmith.attempts import Note
from tunesmith.conditions import MESSAGE_LIMIT, Condition, is_true, timestamp
from tunesmith.results import Result, TrainResult
from tunesmith.stages import Entry, StageKey, attempt_of, key_of
from tunesmith.values import LABEL_STAGE, Object, Observed, controller_uid
from tunesmith.verdicts import Verdict, judge

ATTEMPTS_KEPT = 20
RETRIES = 3
DISRUPTION_LIMIT = 512
LASTING = timedelta(minutes=10)
"""After an attempt that ran for so long the pauses begin anew, unless it ended as one before it that began at the same checkpoint."""
PATIENCE = 50
"""So many failures of what is around the program, one after another and none of them LASTING, are enough: about four hours of pauses."""
STANDSTILL = {"Hung": 3, "PeerUnavailable": 10}
"""So many attempts that end so and go on from one checkpoint are enough: what is around the program may be at fault, but the program may
be too. Ten times of the second take most of an hour."""
SIZE = ("nodes", "perDeviceTrainBatchSize", "gradientAccumulationSteps")
"""What may differ from one attempt to the next."""
Sizing = Callable[[StageKey, Entry], Entry | None]
"""The SIZE of the next attempt of a stage, none for stages that have no such; None: there is no other within the entry's limits."""
_PASSING = ("jobUID", "attemptStartTime", "disruption", "ending", "notBefore", "nodesLimit", "gpus", "stateTime", "ranSeconds", "queue")
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
    target: Condition | None
    """`FailureTarget`: a limit is passed, and the attempts under way are ending."""

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


def fold(observed: Observed, waves: Sequence[Sequence[StageKey]], hold: bool, sizing: Sizing = lambda key, entry: {}) -> Ledger:
    """Follow the stages under way and begin those that are due.

    The stages of a wave run side by side, waves one after another. `hold`: begin nothing (suspended, or something named is missing).
    """
    book = _Book(observed, sizing)
    hold = hold or book.failing
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

    def __init__(self, observed: Observed, sizing: Sizing) -> None:
        recorded = observed.recorded
        self.sizing = sizing
        self.now: datetime = observed.now
        self.retries = int(observed.spec.get("retries", RETRIES))
        self.spent = int(recorded.get("retriesSpent", 0))
        self.ended: list[Entry] = list(recorded.get("attempts", ()))
        self.recorded: dict[StageKey, Entry] = {key_of(entry): {**entry} for entry in recorded.get("stages", ())}
        self.entries: dict[StageKey, Entry] = {}
        self.notes: dict[StageKey, Note] = {}
        self.answers: dict[StageKey, Result] = {}
        self.views = _views(observed.children)
        self.observed = observed
        self.failing = is_true(recorded, limits.TARGET)

    def view(self, key: StageKey) -> _View:
        return self.views.get(key) or _View()

    def follow(self, key: StageKey, hold: bool) -> None:
        """See what became of the attempt under way, if one is."""
        fresh: Entry = {"name": key.name} | ({"part": key.part} if key.part else {}) | {"state": "Waiting", "attempt": 0}
        entry = self.entries[key] = self.recorded.get(key) or fresh
        if entry["state"] not in ("Pending", "Running"):
            return
        job, pods = self.view(key).jobs.get(entry["attempt"]), self.view(key).pods.get(entry["attempt"], [])
        if job is None and "jobUID" not in entry and not pods:
            # Not made yet, or gone before anything ran. When held it is taken back under the same number: should its creation be
            # under way, that Job is found again.
            self.entries[key] = _settled(entry, state="Waiting", attempt=entry["attempt"] - 1) if hold else entry
            return
        if text := attempts.disruption_of(pods) or entry.get("disruption", "") or attempts.removal_of(job, pods):
            entry["disruption"] = text[:DISRUPTION_LIMIT]
        if any(attempts.is_live(pod) for pod in pods) or (job is not None and not attempts.is_finished(job)):
            note = attempts.describe(job, pods)
            entry |= kueue.recorded(entry.get("queue", {}), job, self.observed.children, note.running) if job else {}
            if job and job["spec"].get("suspend") and "deletionTimestamp" not in job["metadata"]:
                note = kueue.note(entry.get("queue", {}), pods)
                if not pods:
                    # What took the pods that were evicted is no excuse for those that will run next.
                    entry.pop("disruption", None)
            self.notes[key] = note
            if job and note != attempts.NOTHING_RUNS:
                # That there is a Job is not worth a status write of its own: it is recorded with the first thing that is.
                entry |= {"jobUID": job["metadata"]["uid"]} | accounting.asked(job)
            # What has run holds its GPUs until no pod of it is left.
            running = note.running or (entry["state"] == "Running" and any(attempts.is_running(pod) for pod in pods))
            entry |= accounting.entered(entry, "Running" if running else "Pending", pods, self.now)
            entry |= self._fewer_nodes(key, job, pods)
        else:
            entry |= accounting.asked(job) if job else {}
            deleted = job is None or "deletionTimestamp" in job["metadata"]
            # Labels are anybody's to set: what a pod tells counts only if the Job's controller made it. (The watches do not keep step:
            # after a restart the pods of a Job may be seen before it is.)
            made_by = job["metadata"]["uid"] if job else entry.get("jobUID")
            ours = [pod for pod in pods if made_by in (None, controller_uid(pod))]
            self._end(key, _excused(judge(key.name, ours, entry.get("disruption", "")), entry, deleted), ours)

    def _fewer_nodes(self, key: StageKey, job: Object | None, pods: Sequence[Object]) -> Entry:
        """The attempt is to end, if not all of its pods find a node and it can do with those that did."""
        entry, placed = self.entries[key], attempts.placed(pods, self.now)
        if placed is None or job is None or job["spec"].get("suspend") or "ending" in entry:
            return {}
        size = self.sizing(key, {**entry, "nodesLimit": placed})
        if not size or size["nodes"] >= entry.get("nodes", len(pods)):
            return {}
        blocked = next(note.message for pod in pods if (note := attempts.obstacle(pod)))
        message = f"only {placed} of its pods found a node within {attempts.UNPLACED.total_seconds():.0f} s: {blocked}"
        return {"ending": {"reason": "Unschedulable", "message": message[:DISRUPTION_LIMIT]}, "nodesLimit": placed}

    def _end(self, key: StageKey, verdict: Verdict, pods: Sequence[Object]) -> None:
        entry, used = self.entries[key], accounting.used(self.entries[key], pods, self.now)
        within = {"nodesLimit": entry["nodesLimit"]} if "nodesLimit" in entry else {}
        if verdict.outcome == "OutOfMemory":
            verdict, within = self._with_less_memory(key, verdict)
        if (verdict.outcome == "Retry" or verdict.reason == "Hung") and self._seen_before(key, verdict):
            verdict = replace(verdict, outcome="Failed", message=f"the same error at the same step as before: {verdict.message}")
        alike = [ended for ended in self._from_one_checkpoint(key, verdict) if ended["reason"] == verdict.reason]
        if verdict.outcome == "Later" and len(alike) + 1 >= STANDSTILL.get(verdict.reason, PATIENCE):
            verdict = replace(verdict, outcome="Failed", message=f"{len(alike) + 1} attempts ended so without a new checkpoint: {verdict.message}")
        if verdict.result:
            self.answers[key] = verdict.result
        if isinstance(verdict.result, TrainResult) and verdict.result.checkpoint:
            entry["checkpointStep"] = verdict.result.checkpoint.step
        self.spent += verdict.outcome == "Retry"
        told = verdict.outcome == "Later" and _resumed_from(verdict) is not None
        if used["runningSeconds"] >= LASTING.total_seconds() and not (told and alike):
            entry.pop("failures", None)
        if verdict.outcome in ("Retry", "Later"):
            entry["failures"] = entry.get("failures", 0) + 1
        self.ended.append(_ended(entry, verdict, self.now) | used)
        reason, message = verdict.reason, verdict.message[:MESSAGE_LIMIT]
        if verdict.outcome == "Succeeded" and verdict.result:
            self.entries[key] = _settled(entry, state="Succeeded", completionTime=timestamp(self.now), result=verdict.result.facts())
        elif self._is_hopeless(entry, verdict):
            self.entries[key] = _settled(entry, state="Failed", completionTime=timestamp(self.now), reason=reason, message=message)
        else:
            begin = timestamp(self.now + (self._pause(entry["failures"]) if verdict.outcome in ("Retry", "Later") else timedelta(0)))
            self.entries[key] = _settled(entry, state="Waiting", notBefore=begin, reason=reason, message=message, **within)

    def _pause(self, failures: int) -> timedelta:
        """How long to wait after so many failures in a row."""
        timing = self.observed.config.timing
        doubled: timedelta = timing.backoff * 2 ** min(failures - 1, 10)
        return min(doubled, timing.backoff_limit)

    def _is_hopeless(self, entry: Entry, verdict: Verdict) -> bool:
        """Whether there is to be no other attempt."""
        spent = verdict.outcome == "Retry" and self.spent > self.retries
        return verdict.outcome == "Failed" or spent or (verdict.outcome == "Later" and entry["failures"] > PATIENCE)

    def _with_less_memory(self, key: StageKey, verdict: Verdict) -> tuple[Verdict, Entry]:
        """What comes of an attempt that ran out of memory: half the rows at a time, if the stage has such and more than one."""
        rows = self.entries[key].get("perDeviceTrainBatchSize")
        if rows is None:
            return replace(verdict, outcome="Retry"), {}
        if rows == 1:
            return replace(verdict, outcome="Failed", message=f"perDeviceTrainBatchSize is 1 already: {verdict.message}"), {}
        limit = {"batchSizeLimit": rows // 2}
        size = self.sizing(key, self.entries[key] | limit) or {}
        told = ", ".join(f"{name} {size[name]}" for name in SIZE[1:])
        return replace(verdict, message=f"{verdict.message}; the next attempt has {told}"), limit

    def _seen_before(self, key: StageKey, verdict: Verdict) -> bool:
        """Whether an earlier attempt of the stage met the same error at the same step: a bug or bad data, which no further one mends."""
        result = verdict.result
        if not result or not result.fingerprint:
            return False
        this = (*key, result.fingerprint, result.step)
        return any(this == (ended["stage"], ended.get("part", ""), ended.get("fingerprint"), ended.get("step")) for ended in self.ended)

    def _from_one_checkpoint(self, key: StageKey, verdict: Verdict) -> list[Entry]:
        """The attempts of the stage before this one, newest first, back to the last that went on from another checkpoint.

        One that told of none, since it ended before it trained or was killed, has made none either, as far as is known.
        """
        found: list[Entry] = []
        step = _resumed_from(verdict)
        for ended in reversed([ended for ended in self.ended if (ended["stage"], ended.get("part", "")) == key]):
            step = ended.get("resumedFromStep") if step is None else step
            if ended.get("resumedFromStep", step) != step:
                break
            found.append(ended)
        return found

    def begin(self, key: StageKey) -> None:
        """Start the next attempt, unless something of an earlier one may still be alive or it is too early."""
        entry, view = self.entries[key], self.view(key)
        if entry["state"] != "Waiting":
            return
        attempt = view.underway(after=entry["attempt"]) or entry["attempt"] + 1
        if view.busy(but=attempt if attempt in view.jobs else None) or self.now < attempts.moment(entry.get("notBefore", timestamp(self.now))):
            return
        started = timestamp(self.now)
        # If the status was lost and its Job runs, it is as large as that one.
        found = {"nodesLimit": view.jobs[attempt]["spec"].get("parallelism", 1)} if attempt in view.jobs else {}
        size = self.sizing(key, entry | found) or {}
        self.entries[key] = _settled(entry, state="Pending", attempt=attempt, attemptStartTime=started, **size)
        self.entries[key].setdefault("startTime", started)

    def stop(self) -> None:
        """Give up all stages that are not over, since the object has failed; what they held is on record."""
        for key, entry in self.entries.items():
            if entry["state"] in ("Pending", "Running"):
                pods = self.view(key).pods.get(entry["attempt"], [])
                self.ended.append(_ended(entry, _STOPPED, self.now) | accounting.used(entry, pods, self.now))
        self.entries = {key: entry if entry["state"] in _OVER else _settled(entry, state="Stopped") for key, entry in self.entries.items()}

    def close(self, due: Sequence[StageKey]) -> Ledger:
        """The ledger; `due` is the wave whose doings are told."""
        busy = sum(view.busy() for view in self.views.values())
        target = self._limit(due, busy)
        return Ledger(
            entries=tuple(self.entries.values()),
            attempts=tuple(self.ended[-ATTEMPTS_KEPT:]),
            retries_spent=self.spent,
            note=_summary([(key, self._note(key)) for key in due if self.entries[key]["state"] not in _OVER]),
            stage=due[0].name,
            busy=busy,
            answers=self.answers,
            target=target,
        )

    def _limit(self, due: Sequence[StageKey], busy: int) -> Condition | None:
        """The limit that is passed while attempts are ending; once none is left, it is the failure of the first stage due."""
        states = {entry["state"] for entry in self.entries.values()}
        if "Failed" in states or states == {"Succeeded"}:
            return None
        told = limits.target(self.observed, self.entries.values(), lambda entry: f"{key_of(entry)}: {self._note(key_of(entry)).message}")
        if told is None or busy or states & {"Pending", "Running"}:
            return told
        key = next(key for key in due if self.entries[key]["state"] not in _OVER)
        failed = {"reason": told.reason, "message": told.message[:MESSAGE_LIMIT], "completionTime": timestamp(self.now)}
        self.entries[key] = _settled(self.entries[key], state="Failed", **failed)
        self.stop()
        return None

    def _note(self, key: StageKey) -> Note:
        entry = self.entries[key]
        if key in self.notes and entry["state"] in ("Pending", "Running"):
            return self.notes[key]
        if entry["state"] == "Pending":
            return attempts.NOTHING_RUNS
        if self.view(key).busy():
            return Note("Ending", "waits until no pod of an earlier attempt is left")
        if entry.get("reason"):
            return Note("Retrying", f"attempt {entry['attempt']} ended: {entry['reason']}: {entry['message']}")
        return Note("Waiting", "has not begun")


def _excused(verdict: Verdict, entry: Entry, deleted: bool) -> Verdict:
    """The verdict on an attempt that we ended, or a person did: how its pods took that is of no account, but for a success and bad input."""
    if verdict.outcome in ("Succeeded", "Failed"):
        return verdict
    if "ending" in entry:
        return replace(verdict, outcome="Free", reason=entry["ending"]["reason"], message=entry["ending"]["message"])
    return Verdict("Free", "JobDeleted", "its Job was deleted") if deleted and verdict.outcome != "Free" else verdict


_STOPPED = Verdict("Free", "Stopped", "another stage failed")


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
        "free": verdict.outcome in ("Free", "Later", "OutOfMemory"),
        "reason": verdict.reason,
        "message": verdict.message[:MESSAGE_LIMIT],
        "startTime": entry["attemptStartTime"],
        "completionTime": timestamp(now),
        **{name: entry[name] for name in SIZE if name in entry},
        **({name: told for name in ("fingerprint", "step") if (told := getattr(verdict.result, name, None)) is not None}),
        **({"resumedFromStep": step} if (step := _resumed_from(verdict)) is not None else {}),
    }


def _resumed_from(verdict: Verdict) -> int | None:
    """The step of the checkpoint that the attempt went on from, if it told."""
    return verdict.result.resumed_from_step if isinstance(verdict.result, TrainResult) else None


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
