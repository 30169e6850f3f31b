"""ModelDeployment's spec. docs/DESIGN.md section 1 tells what each block is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from tunesmith.api.blocks import ModelSource, Reference, Resources, Scheduling
from tunesmith.workload.podspec import claims
from tunesmith_contract.base import Block
from tunesmith_contract.serving import Engine


class Gate(Block):
    """EvalRuns that must have passed for the very digest that is to be served."""

    eval_run_refs: Annotated[list[Reference], Field(min_length=1, max_length=8)] = Field(description="All must have the verdict Passed.")


class Spec(Block):
    """What to serve. Everything is mutable.

    A change of model, engine, resources or scheduling makes a new revision, which replaces the old one once it is ready. One of `replicas`
    or `gate` makes none.
    """

    model: ModelSource = Field(description="The model to serve: Merged, a variant, or a plain URI.")
    gate: Gate | None = Field(None, description="Absent: served unjudged (GatePassed=Unknown).")
    engine: Engine | None = Field(None, description="Default: vLLM with its defaults.")
    replicas: int = Field(1, ge=0, le=1000, description="Pods of the serving revision.", json_schema_extra={"crd_default": True})
    resources: Resources | None = Field(None, description="Of each serving pod.")
    scheduling: Scheduling | None = Field(None, description="Where pods may run.")


def references(spec: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """Kind and name of every object that `spec` names, in its own namespace."""
    model = spec["model"]
    named = {("EvalRun", ref["name"]) for ref in (spec.get("gate") or {}).get("evalRunRefs", ())}
    if "fineTuneJobRef" in model:
        named.add(("FineTuneJob", model["fineTuneJobRef"]["name"]))
    return frozenset(named | {("PersistentVolumeClaim", claim) for claim in claims(model)})
