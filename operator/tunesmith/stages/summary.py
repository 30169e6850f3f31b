"""Where an object that goes through stages stands: the display word and the conditions. Used by FineTuneJob and EvalRun."""

from __future__ import annotations

from typing import NamedTuple

from tunesmith.api.conditions import Condition, bounded, done, stalled, suspended, told_by, working
from tunesmith.core.errors import NotReadyYet, TunesmithError
from tunesmith.core.objects import Observed
from tunesmith.stages.attempt import key_of
from tunesmith.stages.tracker import Ledger

Standing = tuple[str, tuple[Condition, ...]]


class End(NamedTuple):
    """How an object tells that it has done its work."""

    word: str
    reason: str
    message: str


def standing(observed: Observed, ledger: Ledger, obstacle: TunesmithError | None, end: End | None) -> Standing:
    """The first that holds is told: the end, a limit, what a person wants or must mend, what is waited for, then the work."""
    suspend, problem, note = bool(observed.spec.get("suspend")), observed.problem, ledger.note
    if ledger.failure:
        message = f"{key_of(ledger.failure)} failed: {ledger.failure['message']}"
        return "Failed", bounded(stalled(ledger.failure["reason"], message), "False")
    if end:
        return end.word, bounded(done(end.reason, end.message), "True")
    if ledger.target:
        return "Failing", (*bounded(working(ledger.target.reason, f"{ledger.target.message}; {note.message}")), ledger.target)
    if suspend and not ledger.busy:
        return "Suspended", bounded(suspended("`suspend` is set: nothing runs"), held=True)
    # Ahead of `Suspending`: it may be why what still runs does not end.
    if problem:
        return "Stalled", bounded(stalled(problem["reason"], problem["message"]))
    if suspend:
        return "Suspending", bounded(working("Suspending", note.message))
    if obstacle and not ledger.active:
        return "Waiting" if isinstance(obstacle, NotReadyYet) else "Stalled", bounded(told_by(obstacle))
    return ledger.stage, bounded(working(note.reason, note.message))
