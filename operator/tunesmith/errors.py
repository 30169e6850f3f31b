"""The three outcomes an error can have.

    TunesmithError
     +- InvalidSpec     told in a condition, not retried: a person must change the object
     +- NotReadyYet     something named is not there yet: its event wakes us

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


class NotReadyYet(TunesmithError):
    """The object waits for another; ends in `Reconciling=True` with this reason."""
