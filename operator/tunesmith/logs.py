"""Logs as JSON, one object a line, with the key of the object being worked on."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

from tunesmith.core.objects import Key

current_key: ContextVar[Key | None] = ContextVar("current_key", default=None)
"""Set by each worker for its run."""


class JsonFormatter(logging.Formatter):
    """One JSON object a record."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if key := current_key.get():
            entry |= {"kind": key.kind, "namespace": key.namespace, "name": key.name}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure(level: str) -> None:
    """Send all logs of `level` and above to stderr; of the libraries only what is worth a warning."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level="WARNING", handlers=[handler], force=True)
    logging.getLogger("tunesmith").setLevel(level)
