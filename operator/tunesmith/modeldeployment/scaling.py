"""Who says by how many pods a model is served: the spec does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def replicas_of(spec: Mapping[str, Any]) -> int:
    """Return the number of pods that the serving revision is to have."""
    replicas: int = spec.get("replicas", 1)
    return replicas
