"""The table of kinds."""

from __future__ import annotations

from collections.abc import Mapping

from tunesmith.api.kind import Kind
from tunesmith.evalrun.kind import EVAL_RUN
from tunesmith.finetunejob.kind import FINE_TUNE_JOB
from tunesmith.modeldeployment.kind import MODEL_DEPLOYMENT

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (FINE_TUNE_JOB, EVAL_RUN, MODEL_DEPLOYMENT)}
