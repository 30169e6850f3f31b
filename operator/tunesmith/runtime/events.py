"""Kubernetes Events: what `kubectl describe` shows of an object's life, a handful of them.

They follow from two statuses alone, the recorded one and the next: what has been recorded is never told again, whoever restarts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.api.conditions import find, is_true
from tunesmith.workload.podstatus import moment

MESSAGE_LIMIT = 1000
"""The API server takes 1024 bytes; most messages are of ASCII letters."""

Status = Mapping[str, Any]


@dataclass(frozen=True)
class Event:
    """One Event before it has a time and an object."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def events(before: Status, after: Status) -> list[Event]:
    """What has happened between two statuses of one object, in the order of its happening."""
    found = [*_attempts(before, after), *_stages(before, after), *_revisions(before, after), *_ends(before, after)]
    return [Event(event.type, event.reason, event.message.encode()[:MESSAGE_LIMIT].decode(errors="ignore")) for event in found]


def _attempts(before: Status, after: Status) -> Iterator[Event]:
    """Attempts that ended otherwise than well, and those that follow one. (The first, and a success, is told by its stage.)"""
    known = before.get("attempts", ())
    for ended in after.get("attempts", ()):
        if ended not in known and ended["outcome"] != "Succeeded":
            text = f"{_name(ended, 'stage')} attempt {ended['attempt']}: {ended['reason']}: {ended['message']}"
            yield Event("Normal", "AttemptEnded", text) if ended.get("free") else Event("Warning", "AttemptFailed", text)
    numbers = {_name(entry): entry["attempt"] for entry in before.get("stages", ())}
    for entry in after.get("stages", ()):
        if entry["attempt"] > max(1, numbers.get(_name(entry), 0)):
            yield Event("Normal", "AttemptStarted", f"{_name(entry)} attempt {entry['attempt']}")


def _stages(before: Status, after: Status) -> Iterator[Event]:
    """Stages that succeeded; of the last of them the object's end tells."""
    states = {_name(entry): entry["state"] for entry in before.get("stages", ())}
    for entry in after.get("stages", ()):
        if entry["state"] == "Succeeded" != states.get(_name(entry)) and not is_true(after, "Finished"):
            took = moment(entry["completionTime"]) - moment(entry["startTime"])
            yield Event("Normal", "StageSucceeded", f"{_name(entry)} took {took}")


def _revisions(before: Status, after: Status) -> Iterator[Event]:
    """A ModelDeployment's Service has gone over to another revision."""
    old, new = (next((each for each in status.get("revisions", ()) if each.get("state") == "Active"), None) for status in (before, after))
    if new and (old is None or old["name"] != new["name"]):
        yield Event("Normal", "RevisionSwitched", f"revision {new['name']} serves {new.get('digest', new.get('uri', ''))}")


def _ends(before: Status, after: Status) -> Iterator[Event]:
    """It cannot go on, or is done: the reason is the condition's."""
    for type_ in ("Stalled", "Succeeded"):
        told = find(after, type_)
        if told and told["status"] == "True" and not is_true(before, type_):
            good = type_ == "Succeeded" and after.get("verdict") not in ("Failed", "Inconclusive")
            yield Event("Normal" if good else "Warning", told["reason"], told["message"])


def _name(entry: Mapping[str, Any], field: str = "name") -> str:
    return f"{entry[field]} {entry.get('part', '')}".strip()
