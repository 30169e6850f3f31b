"""Where a training starts: the newest checkpoint that is whole, which the first process finds and tells all others."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from torch import distributed

from tunesmith_trainer import store
from tunesmith_trainer.training import checkpoint
from tunesmith_trainer.training.fence import Fence
from tunesmith_trainer.training.uploader import Place
from tunesmith_trainer.training.watchdog import Vitals

# How often a process looks whether the first one has said where to start.
LOOK_SECONDS = 0.2


def newest_checkpoint(run_folder: Path, fence: Fence) -> Path | None:
    """Return the newest checkpoint that is whole; raises OSError where the store went away meanwhile."""
    newest = checkpoint.newest(run_folder)
    # A volume that is away looks like a run without checkpoints, and training would begin again.
    fence.check()
    return newest


def find_start(place: Place, vitals: Vitals) -> tuple[Path | None, str]:
    """Return the checkpoint to start from, if there is one, and the launch that may commit; the first process tells the others.

    It alone reads every byte of the checkpoints, and clears away what is damaged or half written. They meet at torchrun's store,
    since the model is built from the checkpoint and there is no process group before.
    """
    meeting = distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    if int(os.environ["RANK"]) == 0:
        fence = Fence(place.run_folder, os.environ["TUNESMITH_LAUNCH"])
        newest = store.persevere(lambda: newest_checkpoint(place.run_folder, fence), "checkpoints")
        checkpoint.sweep(place.run_folder, place.attempt)
        meeting.set("start", json.dumps([str(newest or ""), fence.launch]))
    with vitals.waiting(lambda: "the first process, which reads the newest checkpoint"):
        # Not `get`, which has a limit of its own: how long the first one reads depends on the store alone.
        while not meeting.check(["start"]):
            time.sleep(LOOK_SECONDS)
    folder, launch = json.loads(meeting.get("start"))
    return Path(folder) if folder else None, launch
