"""The outcomes that an error can have; `conditions.told_by` tells them.

    TunesmithError
     +- InvalidSpec        Stalled: a person must change the object
     +- DependencyFailed   Stalled: a person must change what is named, or make it again; its event wakes us
     +- NotReadyYet        Reconciling: something named is not there yet; its event wakes us

Anything else is a bug or an outage: the key is retried with backoff and counted.
"""

from __future__ import annotations


class TunesmithError(Exception):
    """Base of the errors that have an outcome of their own; `reason` is a CamelCase condition reason."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


class InvalidSpec(TunesmithError):
    """The object asks for what cannot be; ends in `Stalled=True`."""


class DependencyFailed(TunesmithError):
    """What is named has failed. It may be made again, so this is no end: its events still wake us."""

    def __init__(self, message: str) -> None:
        super().__init__("DependencyFailed", message)


class NotReadyYet(TunesmithError):
    """The object waits for another; ends in `Reconciling=True` with this reason."""
