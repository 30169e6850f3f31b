"""The kind ModelDeployment."""

from __future__ import annotations

from tunesmith.api.kind import AGE, READY, STAGE, WHY, Kind, column, condition
from tunesmith.modeldeployment.api import Spec, references
from tunesmith.modeldeployment.build import build
from tunesmith.modeldeployment.status import status
from tunesmith.modeldeployment.status_schema import ModelDeploymentStatus

MODEL_DEPLOYMENT = Kind(
    "ModelDeployment",
    "modeldeployments",
    Spec,
    ModelDeploymentStatus,
    (
        STAGE,
        READY,
        column("Gate", condition("GatePassed", "reason")),
        column("Replicas", ".status.readyReplicas", "integer", description="Ready pods."),
        column("URL", ".status.url"),
        AGE,
        *WHY,
    ),
    references,
    status,
    build,
    scale=True,
)
