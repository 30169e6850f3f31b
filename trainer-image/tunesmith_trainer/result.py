"""Results: how a stage's answer becomes a file in the store, a termination message and an exit code."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunesmith_contract.reasons import INTERRUPTED
from tunesmith_contract.results import Answer, Failure, Result
from tunesmith_contract.stages import JobInput
from tunesmith_trainer import store
from tunesmith_trainer.errors import StageError

# The kubelet keeps 4 KiB: a gate of sixteen criteria with their bounds takes three.
TERMINATION_LIMIT = 3072
MESSAGE_LIMIT = 1024
# What is given up when the message is too long: whole fields that only the file needs, then items from the end of lists within
# items, then of lists.
FIELDS_TO_DROP = ("versions", "environment", "items", "metrics")
LISTS_WITHIN = (("datasets", "files"), ("datasets", "ignoredColumns"))
LISTS_TO_TRIM = ("warnings", "results", "overlap", "datasets", "gate", "artifacts")


def timestamp() -> str:
    """Return the time now as RFC 3339, in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def succeed(stage: JobInput, answer: Answer, start_time: str) -> dict[str, Any]:
    """Return the whole result of a stage that did its work."""
    common = Result(
        stage=stage.stage,
        attempt=stage.attempt,
        outcome="Succeeded",
        start_time=start_time,
        completion_time=timestamp(),
    )
    return common.dump() | answer.dump()


def fail(stage: str, attempt: int, error: StageError, start_time: str) -> dict[str, Any]:
    """Return the whole result of a stage that stopped with an error."""
    common = Failure(
        stage=stage,
        attempt=attempt,
        outcome="Interrupted" if error.exit_code == INTERRUPTED else "Failed",
        start_time=start_time,
        completion_time=timestamp(),
        exit_code=error.exit_code,
        reason=error.reason,
        message=shorten(error.message, MESSAGE_LIMIT),
    )
    return common.dump() | error.details


def shorten(text: str, limit: int) -> str:
    """Return `text` in at most `limit` characters, its end replaced by an ellipsis where it was longer."""
    return text if len(text) <= limit else text[: max(limit - 1, 0)] + "…"


def result_path(run_uri: str, name: str) -> Path:
    """Return where the result file `name` of a run lies."""
    return store.path_of(run_uri) / "results" / f"{name}.json"


def read_finished(run_uri: str, name: str) -> dict[str, Any] | None:
    """Return the result `name` of a run if it succeeded and what it made is still complete, else None."""
    result = store.read_json(result_path(run_uri, name))
    if not isinstance(result, dict) or result.get("outcome") != "Succeeded":
        return None
    made = [*result.get("artifacts", []), *([result["checkpoint"]] if "checkpoint" in result else [])]
    return result if all(_is_there(item) for item in made) else None


def _is_there(item: dict[str, Any]) -> bool:
    manifest = store.read_manifest(store.path_of(item["uri"]))
    return manifest is not None and item.get("digest") in (None, manifest.digest)


def _encode(result: dict[str, Any]) -> bytes:
    return json.dumps(result, ensure_ascii=False, separators=(",", ":")).encode()


def _shrink(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield ever smaller forms of a result, in the contract's order of what is dropped first."""
    for field in FIELDS_TO_DROP:
        result = {key: value for key, value in result.items() if key != field}
        yield result
    for outer, inner in LISTS_WITHIN:
        while longest := max((len(item.get(inner, ())) for item in result.get(outer, ())), default=0):
            result = result | {outer: [item | {inner: item[inner][: longest - 1]} if inner in item else item for item in result[outer]]}
            yield result
    for field in LISTS_TO_TRIM:
        while result.get(field):
            result = result | {field: result[field][:-1]}
            yield result
    while result.get("message"):
        result = result | {"message": shorten(result["message"], len(result["message"]) // 2)}
        yield result


def cut(result: dict[str, Any], limit: int = TERMINATION_LIMIT) -> bytes:
    """Return a result as JSON of at most `limit` bytes; it is always whole JSON with the common fields."""
    content = _encode(result)
    for smaller in _shrink(result):
        if len(content) <= limit:
            break
        content = _encode(smaller)
    return content


def write_termination(result: dict[str, Any]) -> None:
    """Write the termination message. A path that cannot be written is no reason to fail: the file has the result."""
    path = Path(os.environ.get("TUNESMITH_TERMINATION_LOG", "/dev/termination-log"))
    try:
        path.write_bytes(cut(result))
    except OSError as error:
        print(f"cannot write {path}: {error}", flush=True)
