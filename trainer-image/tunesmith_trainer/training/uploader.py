"""Publishing checkpoints: training saves on its own node and goes on, while a thread brings what was saved to the store.

Each node's first process copies and hashes its node's files; the first of all then writes the manifest, which makes the
checkpoint complete. A store that is full or away is tried for some minutes without training being held up.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import distributed

from tunesmith_trainer import store
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.failure import classify
from tunesmith_trainer.training import checkpoint, exchange
from tunesmith_trainer.training.fence import Fence
from tunesmith_trainer.training.group import PATIENCE
from tunesmith_trainer.training.watchdog import Vitals

BLOCK_BYTES = 4 << 20
# So much is written before it is waited for: a file of 100 GB that went to a slow store in one go would look like a store that stands still.
SYNC_BYTES = 256 << 20
# How long, at most, a process that fails lets the checkpoint under way be published, which its end would end. Where another one failed
# by itself, that one's FAILED_SECONDS (train.py) may be over before.
LAST_SECONDS = 10.0

Files = dict[str, tuple[str, int]]


@dataclass(frozen=True)
class Place:
    """Where a run's checkpoints go, and how many stay."""

    run_folder: Path
    attempt: int
    keep: int

    def folder(self, step: int) -> Path:
        """Return the folder of this attempt's checkpoint of a step."""
        return checkpoint.attempt_folder(self.run_folder, self.attempt) / f"{checkpoint.PREFIX}-{step}"


class Publisher:
    """One process's part in publishing, one checkpoint at a time. In all but each node's first process it does nothing."""

    def __init__(self, place: Place, fence: Fence, staging: Path, vitals: Vitals | None = None) -> None:
        """Take the place, the claim on it, the node's own folder that training saves into, and what tells that this process waits.

        All processes call this together.
        """
        self._place, self._fence, self._staging = place, fence, staging
        self._vitals = vitals or Vitals()
        self._meets = False
        self._thread: threading.Thread | None = None
        self._failure: StageError | None = None
        self.published: int | None = None
        """Step of the newest checkpoint that this attempt has completed; known to the first process."""
        self._active = int(os.environ.get("LOCAL_RANK", "0")) == 0
        world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self._leads = int(os.environ.get("RANK", "0")) == 0
        # A group of its own: its calls must not mix with those that training makes at the same time.
        self._group = distributed.new_group(list(range(0, world, local)), timeout=PATIENCE, backend="gloo") if world > local else None

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be published; `wait` then raises."""
        return self._failure is not None

    def start(self, step: int) -> None:
        """Publish the checkpoint that lies in the staging folder, once the one before is through; raises what that one failed with."""
        self.wait()
        if self._active:
            self._thread = threading.Thread(target=self._run, args=(step,), name="publisher", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Wait until what was started is published; raises StageError: StorageFull, StoreUnavailable, Superseded."""
        if self._thread:
            # While this node's own part is copied it waits for the store alone, which may stand still.
            with self._vitals.waiting(lambda: "the other nodes' parts of a checkpoint" if self._meets else ""):
                self._thread.join()
            self._thread = None
        if self._failure:
            raise self._failure

    def let_finish(self) -> None:
        """Give what was started some seconds to be published; for a process that fails, and is to tell of that alone."""
        if self._thread:
            self._thread.join(LAST_SECONDS)

    def _run(self, step: int) -> None:
        try:
            self._publish(step)
        except BaseException as error:  # a thread's exceptions reach nobody by themselves
            self._failure = classify(error)
        shutil.rmtree(self._staged(step), ignore_errors=True)

    def _staged(self, step: int) -> Path:
        return self._staging / f"{checkpoint.PREFIX}-{step}"

    def _publish(self, step: int) -> None:
        source, target = self._staged(step), self._place.folder(step)
        failure: BaseException | None = None
        files: Files = {}
        try:
            files = store.persevere(lambda: self._copy(source, target), f"checkpoint of step {step}")
        except (OSError, StageError) as error:
            failure = error
        parts = self._gather(None if failure else files)
        if self._leads and None not in parts:
            whole = {path: entry for part in parts for path, entry in part.items()}
            store.persevere(lambda: self._commit(target, store.Manifest(whole)), f"manifest of step {step}")
            return
        if self._leads:
            # Half a checkpoint is of no use, and its bytes may be those that the volume lacks.
            with suppress(OSError, StageError):
                self._fence.check()
                checkpoint.remove(target)
        if failure:
            raise failure
        if self._leads:
            raise StageError("PeerUnavailable", f"another node could not write its part of the checkpoint of step {step}; see its pod's result")

    def _copy(self, source: Path, target: Path) -> Files:
        self._fence.check()
        paths = sorted(path for path in source.rglob("*") if path.is_file())
        return {path.relative_to(source).as_posix(): copy_file(path, target / path.relative_to(source)) for path in paths}

    def _gather(self, files: Files | None) -> list[Any]:
        """Return all nodes' files on the first node, None for a node that failed; an empty list elsewhere."""
        if self._group is None:
            return [files]
        self._meets = True
        try:
            parts = exchange.gather(files, self._group, self._leads)
        finally:
            self._meets = False
        return [part and {path: tuple(entry) for path, entry in part.items()} for part in parts]

    def _commit(self, target: Path, manifest: store.Manifest) -> None:
        self._fence.check()
        store.write_bytes(target / store.MANIFEST, manifest.content)
        self.published = checkpoint.step_of(target)
        print(f"checkpoint {target.parent.name}/{target.name} is complete: {manifest.size_bytes} bytes", flush=True)
        # A start that claimed the run before this checkpoint was complete may be loading the one before it; one that claims it from
        # here on finds this one, so what goes is of no use to it.
        self._fence.check()
        checkpoint.prune(self._place.run_folder, self._place.keep, self._place.attempt)


def copy_file(source: Path, target: Path) -> tuple[str, int]:
    """Copy a file, to the disk; returns the sha256 and the size of what was read."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reader, target.open("wb", buffering=0) as writer:
        while block := reader.read(BLOCK_BYTES):
            digest.update(block)
            size += len(block)
            view = memoryview(block)
            while view:
                view = view[writer.write(view) :]
            if size % SYNC_BYTES == 0:
                os.fdatasync(writer.fileno())
        os.fsync(writer.fileno())
    return digest.hexdigest(), size
