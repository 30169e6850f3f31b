"""The kind EvalRun."""

from __future__ import annotations

from tunesmith.api.kind import AGE, READY, STAGE, WHY, Kind, column
from tunesmith.evalrun.api import Spec, references
from tunesmith.evalrun.build import build
from tunesmith.evalrun.status import status
from tunesmith.evalrun.status_schema import EvalRunStatus

EVAL_RUN = Kind(
    "EvalRun",
    "evalruns",
    Spec,
    EvalRunStatus,
    (STAGE, column("Verdict", ".status.verdict"), READY, AGE, column("Digest", ".status.evaluated.digest", wide=True), *WHY),
    references,
    status,
    build,
)
