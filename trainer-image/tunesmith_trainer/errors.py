"""The ways in which a stage can fail; `tunesmith_contract.reasons` has their exit codes."""

from __future__ import annotations

import errno
import re
from typing import Any

from tunesmith_contract.reasons import EXIT_CODES

FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}
# Errors of a volume that is full, gone, stale or not ours to write: they pass or need an administrator, not a fix here.
STORE_ERRNOS = FULL_ERRNOS | {
    errno.EIO,
    errno.EROFS,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.EACCES,
    errno.EPERM,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
}


class Interruption(BaseException):
    """SIGTERM. No Exception, so that nobody who expects one of a library's errors takes it for that."""


class RowError(ValueError):
    """What is wrong with one row, for people; whoever reads the rows adds dataset, file and row."""


def key_name(key: str) -> str:
    """Return a key of a row as an error may name it: one that looks like data is not quoted."""
    return key if re.fullmatch(r"[A-Za-z_]{1,32}", key) else "(a key)"


class StageError(Exception):
    """A failure with a reason that the operator knows and a message that tells the user what to do.

    `details` are further fields of the result, in their JSON names (an interrupted Train names its checkpoint).
    """

    def __init__(self, reason: str, message: str, details: dict[str, Any] | None = None) -> None:
        """Take a reason out of EXIT_CODES and a message; anything else is a bug (KeyError)."""
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.exit_code = EXIT_CODES[reason]
        self.details = details or {}
