"""How a failure becomes the pod's termination message."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from tunesmith_contract.results import Failure
from tunesmith_serving.errors import ServeError

MESSAGE_LIMIT = 1024
TERMINATION_LIMIT = 2048


def timestamp() -> str:
    """Return the time now as RFC 3339, in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def shorten(text: str, limit: int) -> str:
    """Return `text` in at most `limit` characters, its end replaced by an ellipsis where it was longer."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def failure(error: ServeError, start_time: str) -> Failure:
    """Return the result that tells of `error`."""
    return Failure(
        stage="Serve",
        outcome="Failed",
        start_time=start_time,
        completion_time=timestamp(),
        exit_code=error.exit_code,
        reason=error.reason,
        message=shorten(error.message, MESSAGE_LIMIT),
    )


def encode(result: Failure) -> bytes:
    """Return the result as JSON of at most 2048 bytes: the message is cut, never the JSON."""
    limit = MESSAGE_LIMIT
    while True:
        cut = result.dump() | {"message": shorten(result.message, limit)}
        content = json.dumps(cut, ensure_ascii=False, separators=(",", ":")).encode()
        if len(content) <= TERMINATION_LIMIT:
            return content
        # Only characters of several bytes, or ones that JSON escapes, bring us here.
        limit //= 2


def write_termination(result: Failure) -> None:
    """Write the termination message; where that is impossible, the log has it all the same."""
    content = encode(result)
    print(content.decode(), file=sys.stderr, flush=True)
    path = Path(os.environ.get("TUNESMITH_TERMINATION_LOG", "/dev/termination-log"))
    try:
        path.write_bytes(content)
    except OSError as error:
        print(f"tunesmith: cannot write {path}: {error}", file=sys.stderr, flush=True)
