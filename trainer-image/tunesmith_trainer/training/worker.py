"""One training process, started by torchrun: trains, and writes an outcome file for the launcher (train.py)."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from tunesmith_contract.reasons import INTERRUPTED
from tunesmith_contract.stages import TrainInput
from tunesmith_trainer import runner as stages
from tunesmith_trainer import stage_input, store
from tunesmith_trainer.failure import classify
from tunesmith_trainer.training.watchdog import Vitals, outcome_path, path_for


class StopFlag:
    """Set by SIGTERM; the trainer asks for it after each step (stopping.py)."""

    def __init__(self) -> None:
        self.is_set = False

    def set(self, _number: int, _frame: FrameType | None) -> None:
        """Remember the signal."""
        self.is_set = True


def answer(stop: StopFlag, vitals: Vitals) -> dict[str, Any]:
    """Train and return this process's outcome."""
    try:
        stage: TrainInput = stages.parse(TrainInput, stages.read_file())
        stages.leave_out(stage_input.unused(stage))
        # Imported here: the signal handler has to be there before the seconds that these imports take.
        from tunesmith_trainer.training.loop import train

        return {"answer": train(stage, stop, vitals).dump()}
    except Exception as error:  # the launcher is owed an outcome, whatever happened
        failure = classify(error)
        # An interrupted training says which step it saved.
        place = {} if failure.exit_code == INTERRUPTED else vitals.place
        return {"failure": {"reason": failure.reason, "message": failure.message, "details": place | failure.details}}


def main() -> int:
    """Run one training process; returns 0 for done or interrupted and the failure's code otherwise."""
    stop = StopFlag()
    signal.signal(signal.SIGTERM, stop.set)
    reports, local_rank = Path(os.environ["TUNESMITH_REPORTS"]), int(os.environ["LOCAL_RANK"])
    vitals = Vitals()
    vitals.start(path_for(reports, local_rank))
    outcome = answer(stop, vitals)
    store.write_json(outcome_path(reports, local_rank), outcome)
    failure = outcome.get("failure")
    # torchrun kills a node's other processes when one fails, and these may still be saving.
    return 0 if failure is None or failure["reason"] == "Interrupted" else 1


if __name__ == "__main__":
    sys.exit(main())
