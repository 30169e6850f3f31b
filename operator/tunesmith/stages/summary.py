"""Where an object that goes through stages stands: the display word and the conditions. Used by FineTuneJob and EvalRun."""

from __future__ import annotations

from typing import NamedTuple

from tunesmith.api.conditions import Condition, bounded, done, stalled, suspended, told_by, working
from tunesmith.core.errors import NotReadyYet, TunesmithError
from tunesmith.core.objects import Observed
from tunesmith.stages.attempt import key_of
from tunesmith.stages.tracker import Tracked

Summary = tuple[str, tuple[Condition, ...]]


class End(NamedTuple):
    """How an object tells that it has done its work."""

    word: str
    reason: str
    message: str


def summarize(observed: Observed, tracked: Tracked, obstacle: TunesmithError | None, end: End | None) -> Summary:
    """The first that holds is told: the end, a limit, what a person wants or must mend, what is waited for, then the work."""
    suspend, problem, note = bool(observed.spec.get("suspend")), observed.problem, tracked.note
    if tracked.failure:
        message = f"{key_of(tracked.failure)} failed: {tracked.failure['message']}"
        return "Failed", bounded(stalled(tracked.failure["reason"], message), "False")
    if end:
        return end.word, bounded(done(end.reason, end.message), "True")
    if tracked.target:
        return "Failing", (*bounded(working(tracked.target.reason, f"{tracked.target.message}; {note.message}")), tracked.target)
    if suspend and not tracked.busy:
        return "Suspended", bounded(suspended("`suspend` is set: nothing runs"), held=True)
    # Ahead of `Suspending`: it may be why what still runs does not end.
    if problem:
        return "Stalled", bounded(stalled(problem["reason"], problem["message"]))
    if suspend:
        return "Suspending", bounded(working("Suspending", note.message))
    if obstacle and not tracked.active:
        return "Waiting" if isinstance(obstacle, NotReadyYet) else "Stalled", bounded(told_by(obstacle))
    return tracked.stage, bounded(working(note.reason, note.message))
