"""Folds what is recorded of an object's stages and what is observed of their children into a new record.

All decisions about stages are made here, so that they are on record before `job.plan` acts on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from tunesmith.api.conditions import MESSAGE_LIMIT, Condition, is_true, timestamp
from tunesmith.core.objects import Object, Observed, controller_uid
from tunesmith.stages import assembly, gpu_seconds, images, limits, out_of_memory, repeats
from tunesmith.stages.attempt import StageKey, key_of, stage_of
from tunesmith.stages.entries import checkpoint_of, record, tells_its_beginning
from tunesmith.stages.failures import Classification, Outcome, classify
from tunesmith.stages.job import Entry
from tunesmith.stages.repeats import PATIENCE
from tunesmith.stages.retries import Retries
from tunesmith.stages.underway import TEXT_LIMIT, Underway, excused
from tunesmith.stages.views import View, views_of
from tunesmith.workload import kueue, lingering, node_faults, observation, podstatus
from tunesmith.workload.observation import Note
from tunesmith_contract.results import Result, Trained

ATTEMPTS_KEPT = 20
LASTING = timedelta(minutes=10)
"""After an attempt that ran for so long the pauses begin again, unless it ended as one before it that began at the same checkpoint."""
Sizing = Callable[[StageKey, Entry], Entry | None]
"""The SIZE of the next attempt of a stage, none for stages that have no such; None: there is no other within the entry's limits."""
Check = Callable[[StageKey, Entry, Result, Sequence[Entry]], str]
"""What is wrong with the result of a stage that says that it succeeded, given the attempts that have ended; empty if nothing is."""
_PASSING = (
    "jobUID",
    "attemptStartTime",
    "disruption",
    "ending",
    "notBefore",
    "nodesLimit",
    "gpus",
    "stateTime",
    "ranSeconds",
    "queue",
    "suspectNodes",
    "stuckTime",
    "ends",
)
_OVER = ("Succeeded", "Failed", "Stopped")


@dataclass(frozen=True)
class Tracked:
    """What `track` found."""

    entries: tuple[Entry, ...]
    """`status.stages`."""
    attempts: tuple[Entry, ...]
    """`status.attempts`: the last ones that ended."""
    retries: Retries
    """The budget of retries as it is now."""
    note: Note
    """What the stages now due are doing."""
    stage: str
    """Name of the stage now due; the last one's when all are over."""
    busy: int
    """Unfinished Jobs and live pods of all stages."""
    answers: Mapping[StageKey, Result]
    """Results that attempts told just now, whatever their outcome."""
    activity: dict[str, Any]
    """`limits.activity`."""
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


def track(
    observed: Observed,
    waves: Sequence[Sequence[StageKey]],
    hold: bool,
    sizing: Sizing = lambda key, entry: {},
    check: Check = lambda key, entry, result, ended: "",
    checkpoint: int = 0,
) -> Tracked:
    """Follow the stages under way and begin those that are due.

    The stages of a wave run side by side, waves one after another. `hold`: begin nothing (suspended, or something named is missing).
    `checkpoint`: step of the newest checkpoint that is on record, or that the attempt under way has reported.
    """
    tracker = _Tracker(observed, sizing, check, checkpoint)
    hold = hold or tracker.failing
    for key in (key for wave in waves for key in wave):
        tracker.follow(key, hold)
    if any(entry["state"] == "Failed" for entry in tracker.entries.values()):
        tracker.stop()
    due = next((wave for wave in waves if any(tracker.entries[key]["state"] != "Succeeded" for key in wave)), waves[-1])
    if not hold:
        for key in due:
            tracker.begin(key)
    return tracker.close(due)


class _Tracker:
    """The entries while `track` goes over them. Retries are one budget of all stages, so the stages cannot be folded apart."""

    def __init__(self, observed: Observed, sizing: Sizing, check: Check, checkpoint: int) -> None:
        recorded = observed.recorded
        self.sizing, self.check = sizing, check
        self.now: datetime = observed.now
        self.retries = Retries(observed.spec, recorded, checkpoint)
        self.ended: list[Entry] = list(recorded.get("attempts", ()))
        self.recorded: dict[StageKey, Entry] = {key_of(entry): {**entry} for entry in recorded.get("stages", ())}
        self.entries: dict[StageKey, Entry] = {}
        self.notes: dict[StageKey, Note] = {}
        self.answers: dict[StageKey, Result] = {}
        self.views = views_of(observed.children)
        self.observed = observed
        self.outdated = images.outdated(observed, self.views)
        self.unseen = 0
        self.failing = is_true(recorded, limits.TARGET)

    def view(self, key: StageKey) -> View:
        return self.views.get(key) or View()

    def follow(self, key: StageKey, hold: bool) -> None:
        """See what became of the attempt under way, if one is."""
        fresh: Entry = {"name": key.name} | ({"part": key.part} if key.part else {}) | {"state": "Waiting", "attempt": 0}
        entry = self.entries[key] = self.recorded.get(key) or fresh
        if self.observed.spec.get("suspend"):
            entry.pop("waitingSince", None)
        if entry["state"] not in ("Pending", "Running"):
            return
        job, pods = self.view(key).jobs.get(entry["attempt"]), self.view(key).pods.get(entry["attempt"], [])
        if job is None and "jobUID" not in entry and not pods:
            # Not made yet, or gone before anything ran. When held it is taken back under the same number: should its creation be
            # under way, that Job is found again.
            self.entries[key] = _settled(entry, state="Waiting", attempt=entry["attempt"] - 1) if hold else entry
            return
        if text := observation.disruption_of(pods) or entry.get("disruption", "") or observation.removal_of(job, pods):
            entry["disruption"] = text[:TEXT_LIMIT]
        refused = self.observed.refusals.get(job["metadata"]["uid"], "") if job else ""
        underway = Underway(entry, job, pods, self.now, partial(self.sizing, key), self.outdated, refused)
        unfinished = job is not None and not observation.is_finished(job) and not underway.is_over
        if unfinished or any(podstatus.is_live(pod) for pod in pods):
            note = observation.describe(job, pods, refused)
            entry |= kueue.recorded(entry.get("queue", {}), job, self.observed.children, note.running) if job else {}
            if job and job["spec"].get("suspend") and "deletionTimestamp" not in job["metadata"]:
                note = kueue.note(entry.get("queue", {}), pods)
                if not pods:
                    # What took the pods that were evicted, or kept them, is no excuse for those that will run next.
                    entry.pop("disruption", None)
                    entry.pop("stuckTime", None)
            self.notes[key] = note
            # What has run holds its GPUs until no pod of it is left.
            running = note.running or (entry["state"] == "Running" and any(podstatus.is_running(pod) for pod in pods))
            entry |= gpu_seconds.entered(entry, "Running" if running else "Pending", pods, self.now)
            if running:
                _forget_waiting(entry)
            entry |= underway.notes()
            if job and (note != observation.NOTHING_RUNS or "ending" in entry):
                # That there is a Job is not worth a status write of its own: it is recorded with the first thing that is.
                entry |= {"jobUID": job["metadata"]["uid"]} | gpu_seconds.asked(job)
        else:
            entry |= gpu_seconds.asked(job) if job else {}
            deleted = job is None or "deletionTimestamp" in job["metadata"]
            # Labels are anybody's to set: what a pod tells counts only if the Job's controller made it. (The watches do not keep step:
            # after a restart the pods of a Job may be seen before it is.)
            made_by = job["metadata"]["uid"] if job else entry.get("jobUID")
            ours = [pod for pod in pods if made_by in (None, controller_uid(pod))]
            ours += lingering.revived(entry.get("ends", ()), ours, made_by)
            disruption = entry.get("disruption", "") or ("" if deleted or pods or ours else observation.ALL_DELETED)
            verdict = excused(classify(key.name, ours, disruption), entry, deleted)
            self._end(key, assembly.excused(verdict, entry, job, ours), ours, job)

    def _end(self, key: StageKey, verdict: Classification, pods: Sequence[Object], job: Object | None) -> None:
        entry, waits = self.entries[key], verdict.outcome == "Wait"
        used = gpu_seconds.used(entry, () if waits else pods, self.now)
        self.unseen = max(self.unseen, used["runningSeconds"] - entry.get("ranSeconds", 0))
        within = {"nodesLimit": entry["nodesLimit"]} if "nodesLimit" in entry else {}
        verdict = self._checked(key, verdict)
        self.retries.learn(checkpoint_of(verdict.result))
        if verdict.outcome == "OutOfMemory":
            verdict, within = out_of_memory.with_less(entry, verdict, gpu_seconds.memory(job), partial(self.sizing, key))
        before = [ended for ended in self.ended if stage_of(ended) == key]
        alike = repeats.alike_from_one_checkpoint(verdict, before, self.retries.newest)
        verdict = self._weighed(entry, verdict, before)
        if verdict.result:
            self.answers[key] = verdict.result
        if isinstance(verdict.result, Trained) and verdict.result.checkpoint:
            entry["checkpointStep"] = verdict.result.checkpoint.step
        if verdict.outcome == "Retry":
            self.retries.spend()
        told = verdict.outcome == "Later" and tells_its_beginning(verdict.result)
        if used["runningSeconds"] >= LASTING.total_seconds() and not (told and alike):
            entry.pop("failures", None)
        if verdict.outcome in ("Retry", "Later"):
            entry["failures"] = entry.get("failures", 0) + 1
        if waits:
            entry["waits"] = entry.get("waits", 0) + 1
            entry.setdefault("waitingSince", timestamp(gpu_seconds.since(entry)))
            # One for all of them: the others would push what says more off the record.
            self.ended = [each for each in self.ended if stage_of(each) != key or each["reason"] != verdict.reason]
        elif verdict.outcome != "Free":
            _forget_waiting(entry)
        verdict, fewer = self._avoiding(key, verdict)
        self.ended.append(record(entry, verdict, self.now, self.retries.newest) | used)
        self._settle(key, verdict, within | fewer)

    def _weighed(self, entry: Entry, verdict: Classification, before: Sequence[Entry]) -> Classification:
        """The verdict, given what was met before."""
        taken = {} if self.observed.spec.get("suspend") else repeats.taken_away(verdict, entry, self.retries.newest)
        entry |= taken
        why = repeats.hopeless(verdict, before, self.retries.newest) or (repeats.hunted(entry["taken"]) if taken else "")
        return replace(verdict, outcome="Failed", message=f"{why}: {verdict.message}") if why else verdict

    def _avoiding(self, key: StageKey, verdict: Classification) -> tuple[Classification, Entry]:
        """The verdict; the nodes that are at fault are kept for the next attempt, if there is to be one, and named.

        One that was to be avoided and was taken all the same is all that there was: the next attempt does without it, where it may be smaller.
        """
        entry, bad = self.entries[key], [*(verdict.nodes if verdict.faulty else ()), *self.entries[key].get("suspectNodes", ())]
        if not bad or verdict.outcome == "Succeeded" or self._is_hopeless(entry, verdict):
            return verdict, {}
        again = {node for node in bad if node in entry.get("avoidNodes", ()) and verdict.reason != "CommunicationFailed"}
        entry["avoidNodes"] = node_faults.avoid(bad, entry.get("avoidNodes", ()))
        told = f"{verdict.message}; the next attempt avoids {node_faults.listed(entry['avoidNodes'])} if it can"
        size = self.sizing(key, {**entry, "nodesLimit": entry["nodes"] - len(again)}) if again and "nodes" in entry else None
        if not size:
            return replace(verdict, message=told), {}
        return replace(verdict, message=f"{told}, with {size['nodes']} nodes"), {"nodesLimit": size["nodes"]}

    def _settle(self, key: StageKey, verdict: Classification, within: Entry) -> None:
        """Put down what becomes of the stage after that end of its attempt."""
        entry, reason, message = self.entries[key], verdict.reason, verdict.message[:MESSAGE_LIMIT]
        if verdict.outcome == "Succeeded" and verdict.result:
            entry.pop("avoidNodes", None)
            self.entries[key] = _settled(entry, state="Succeeded", completionTime=timestamp(self.now), result=verdict.result.facts())
        elif self._is_hopeless(entry, verdict):
            self.entries[key] = _settled(entry, state="Failed", completionTime=timestamp(self.now), reason=reason, message=message)
        else:
            begin = timestamp(self.now + self._wait(entry, verdict.outcome, reason))
            self.entries[key] = _settled(entry, state="Waiting", notBefore=begin, reason=reason, message=message, **within)

    def _wait(self, entry: Entry, outcome: Outcome, reason: str) -> timedelta:
        """How long to wait after an attempt that ended so."""
        if outcome == "Wait":
            return assembly.pause(self._pause(entry["waits"]), self.observed.owner["metadata"]["uid"], entry["attempt"])
        if outcome == "Free" and entry.get("taken", 0) > repeats.AT_ONCE and reason in repeats.TAKEN:
            return self._pause(entry["taken"] - repeats.AT_ONCE)
        return self._pause(entry["failures"]) if outcome in ("Retry", "Later") else timedelta(0)

    def _pause(self, failures: int) -> timedelta:
        """How long to wait after so many failures in a row."""
        timing = self.observed.config.timing
        doubled: timedelta = timing.backoff * 2 ** min(failures - 1, 10)
        return min(doubled, timing.backoff_limit)

    def _is_hopeless(self, entry: Entry, verdict: Classification) -> bool:
        """Whether there is to be no other attempt."""
        spent = verdict.outcome == "Retry" and self.retries.exhausted
        return verdict.outcome == "Failed" or spent or (verdict.outcome == "Later" and entry["failures"] > PATIENCE)

    def _checked(self, key: StageKey, verdict: Classification) -> Classification:
        """The verdict, with a success that is none taken for what it is."""
        wrong = self.check(key, self.entries[key], verdict.result, self.ended) if verdict.outcome == "Succeeded" and verdict.result else ""
        if not wrong or verdict.result is None:
            return verdict
        # What lies in the store since an earlier attempt says nothing of this one's node.
        nodes = verdict.nodes if verdict.result.attempt == self.entries[key]["attempt"] else ()
        return Classification("Later", "DeviceUnavailable", wrong, nodes=nodes, faulty=True)

    def begin(self, key: StageKey) -> None:
        """Start the next attempt, unless something of an earlier one may still be alive or it is too early."""
        entry, view = self.entries[key], self.view(key)
        # All of them have one image: none begins while one ends for that.
        if entry["state"] != "Waiting" or any(each.get("ending", {}).get("reason") == images.CHANGED for each in self.entries.values()):
            return
        attempt = view.underway(after=entry["attempt"]) or entry["attempt"] + 1
        if view.busy(but=attempt if attempt in view.jobs else None) or self.now < podstatus.moment(entry.get("notBefore", timestamp(self.now))):
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
                self.ended.append(record(entry, _STOPPED, self.now, self.retries.newest) | gpu_seconds.used(entry, pods, self.now))
        self.entries = {key: entry if entry["state"] in _OVER else _settled(entry, state="Stopped") for key, entry in self.entries.items()}

    def close(self, due: Sequence[StageKey]) -> Tracked:
        """The tracked; `due` is the wave whose doings are told."""
        busy = sum(view.busy() for view in self.views.values())
        activity = limits.activity(self.observed, tuple(self.entries.values()), self.unseen)
        target = self._limit(due, busy, activity)
        return Tracked(
            entries=tuple(self.entries.values()),
            attempts=tuple(self.ended[-ATTEMPTS_KEPT:]),
            retries=self.retries,
            note=_summary([(key, self._note(key)) for key in due if self.entries[key]["state"] not in _OVER]),
            stage=due[0].name,
            busy=busy,
            answers=self.answers,
            activity=activity,
            target=target,
        )

    def _limit(self, due: Sequence[StageKey], busy: int, activity: Mapping[str, Any]) -> Condition | None:
        """The limit that is passed while attempts are ending; once none is left, it is the failure of the first stage due."""
        states = {entry["state"] for entry in self.entries.values()}
        if "Failed" in states or states == {"Succeeded"}:
            return None
        told = limits.target(self.observed, self.entries.values(), activity, lambda entry: f"{key_of(entry)}: {self._note(key_of(entry)).message}")
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
            return observation.NOTHING_RUNS
        if self.view(key).busy():
            return Note("Ending", "waits until no pod of an earlier attempt is left")
        if entry.get("reason"):
            return Note("Retrying", f"attempt {entry['attempt']} ended: {entry['reason']}: {entry['message']}")
        return Note("Waiting", "has not begun")


_STOPPED = Classification("Free", "Stopped", "another stage failed")


def _forget_waiting(entry: Entry) -> None:
    for name in ("waits", "waitingSince"):
        entry.pop(name, None)


def _settled(entry: Entry, **changes: Any) -> Entry:
    """`entry` without what belonged to an attempt under way or to a failure before it, and with `changes`."""
    return {name: value for name, value in entry.items() if name not in (*_PASSING, "reason", "message")} | changes


def _summary(notes: Sequence[tuple[StageKey, Note]]) -> Note:
    """One note for stages side by side; its reason is that of the first that does not run."""
    if not notes:
        return Note("Done", "all stages are over")
    first = next((note for _, note in notes if not note.running), None)
    text = "; ".join(f"{key}: {note.message}" for key, note in notes)
    return Note(first.reason if first else notes[0][0].name, text, running=first is None)
