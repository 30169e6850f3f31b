"""The table of kinds: all that the edge knows of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.core.objects import Object, Observed, Plan
from tunesmith.evalrun import api as evalrun
from tunesmith.evalrun.build import build as build_evalrun
from tunesmith.evalrun.status import status as evalrun_status
from tunesmith.finetunejob import api as finetunejob
from tunesmith.finetunejob.build import build as build_finetunejob
from tunesmith.finetunejob.status import status as finetunejob_status
from tunesmith.modeldeployment import api as modeldeployment
from tunesmith.modeldeployment.build import build as build_modeldeployment
from tunesmith.modeldeployment.status import status as modeldeployment_status


@dataclass(frozen=True)
class Kind:
    """One kind as the reconciler sees it: three pure functions."""

    name: str
    status: Callable[[Observed], Object]
    build: Callable[[Observed, Mapping[str, Any]], Plan]
    references: Callable[[Mapping[str, Any]], frozenset[tuple[str, str]]]


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(finetunejob.KIND, finetunejob_status, build_finetunejob, finetunejob.references),
        Kind(evalrun.KIND, evalrun_status, build_evalrun, evalrun.references),
        Kind(modeldeployment.KIND, modeldeployment_status, build_modeldeployment, modeldeployment.references),
    )
}
