"""The fence around a run's folder: `current-attempt` says which start of which attempt may commit into it.

A pod that was cut off goes on writing after its successor has started. So a launcher first claims the folder, and whoever is
about to commit something there (a manifest, a result, the loss curve) looks whether the claim still stands.
"""

from __future__ import annotations

import errno
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith_contract.stages import JobInput
from tunesmith_trainer import store
from tunesmith_trainer.errors import StageError

NAME = "current-attempt"


@dataclass(frozen=True)
class Fence:
    """One start's claim on a run's folder. A queue may start an attempt twice, so the attempt's number alone is no claim."""

    run_folder: Path
    launch: str

    def check(self) -> None:
        """Return while the claim stands; raises StageError(Superseded), or OSError where that cannot be told."""
        current = _read(self.run_folder)
        if not current:
            # An unmounted volume looks like this too: an empty folder that takes every write, and loses it.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.run_folder / NAME))
        if current.get("launch") != self.launch:
            raise _superseded(current)


def claim(stage: JobInput, run_folder: Path) -> Fence:
    """Claim the folder for this start of the attempt; raises StageError(Superseded) where a later attempt of the object has it.

    An object that was made anew counts its attempts from 1 again, and takes its predecessor's run over.
    """
    refuse_late(stage, run_folder)
    launch = uuid.uuid4().hex
    store.write_json(run_folder / NAME, {"attempt": stage.attempt, "uid": stage.object.uid, "launch": launch})
    return Fence(run_folder, launch)


def refuse_late(stage: JobInput, run_folder: Path) -> None:
    """Raise StageError(Superseded) where a later attempt of the same object has started."""
    current = _read(run_folder)
    if current.get("uid") == stage.object.uid and current["attempt"] > stage.attempt:
        raise _superseded(current)


def _read(run_folder: Path) -> dict[str, Any]:
    current = store.read_json(run_folder / NAME)
    return current if isinstance(current, dict) else {}


def _superseded(current: dict[str, Any]) -> StageError:
    return StageError("Superseded", f"attempt {current['attempt']} has taken this run over; what this start has not committed is dropped")
