"""The kind FineTuneJob."""

from __future__ import annotations

from tunesmith.api.kind import AGE, READY, STAGE, WHY, Kind, column
from tunesmith.finetunejob.api import KIND, RULES, Spec, references
from tunesmith.finetunejob.build import build
from tunesmith.finetunejob.status import status
from tunesmith.finetunejob.status_schema import FineTuneJobStatus

FINE_TUNE_JOB = Kind(
    KIND,
    "finetunejobs",
    Spec,
    FineTuneJobStatus,
    (
        STAGE,
        column("Progress %", ".status.progress.progressPercentage", "integer"),
        column("Loss", '.status.progress.metrics[?(@.name=="loss")].value'),
        column("ETA (s)", ".status.progress.estimatedRemainingSeconds", "integer", description="Seconds until the training ends."),
        READY,
        AGE,
        column("Checkpoint", ".status.lastCheckpoint.step", "integer", wide=True, description="Step of the newest complete checkpoint."),
        *WHY,
    ),
    references,
    status,
    build,
    rules=RULES,
)
