"""Checkpoints of a run: `checkpoints/attempt-<n>/step-<s>/`, complete when the manifest is there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from tunesmith_trainer import store

_NAME = re.compile(r"^step-(\d+)$")
# What transformers calls `checkpoint` in `checkpoint-<step>`.
PREFIX = "step"


def attempt_folder(run_folder: Path, attempt: int) -> Path:
    """Return where an attempt writes its checkpoints: each has its own folder, so a lost pod cannot spoil the next."""
    return run_folder / "checkpoints" / f"attempt-{attempt}"


def step_of(folder: Path) -> int:
    """Return the step that a checkpoint's folder is named after; raises ValueError for another folder."""
    match = _NAME.match(folder.name)
    if match is None:
        raise ValueError(f"{folder.name} is not a checkpoint's folder")
    return int(match[1])


def complete(run_folder: Path) -> list[Path]:
    """Return the folders of all attempts' complete checkpoints, the newest (highest step, latest attempt) first."""
    return sorted(_complete(run_folder), key=lambda folder: (step_of(folder), _attempt_of(folder)), reverse=True)


def _complete(run_folder: Path) -> Iterator[Path]:
    for folder in run_folder.glob("checkpoints/attempt-*/step-*"):
        if _NAME.match(folder.name) and store.read_manifest(folder) is not None:
            yield folder


def _attempt_of(folder: Path) -> int:
    return int(folder.parent.name.removeprefix("attempt-"))


def damage(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, by its manifest; what lies beside them does no harm."""
    manifest = store.read_manifest(folder)
    return next(store.differences(folder, manifest), None) if manifest else f"{store.MANIFEST} is gone"


def newest(run_folder: Path) -> Path | None:
    """Return the newest checkpoint whose every file is the one its manifest lists, or None.

    One that is damaged is told of and deleted: it would otherwise be kept in place of one that can be loaded.
    """
    for folder in complete(run_folder):
        wrong = damage(folder)
        if wrong is None:
            return folder
        print(f"checkpoint {folder.parent.name}/{folder.name} is damaged and is passed over: {wrong}", flush=True)
        remove(folder)
    return None


def remove(folder: Path) -> None:
    """Delete a checkpoint's folder: the manifest first, so that a deletion cut off in the middle leaves nothing half valid."""
    (folder / store.MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def prune(run_folder: Path, keep: int, attempt: int) -> None:
    """Delete all complete checkpoints but the newest `keep`, never those of a later attempt: the caller may be cut off from it."""
    for folder in complete(run_folder)[keep:]:
        if _attempt_of(folder) <= attempt:
            remove(folder)


def sweep(run_folder: Path, attempt: int) -> None:
    """Delete what earlier starts of this attempt and of earlier ones began to write and never completed."""
    for folder in run_folder.glob("checkpoints/attempt-*/step-*"):
        if _NAME.match(folder.name) and _attempt_of(folder) <= attempt and store.read_manifest(folder) is None:
            print(f"checkpoint {folder.parent.name}/{folder.name} is not complete and is deleted", flush=True)
            remove(folder)
