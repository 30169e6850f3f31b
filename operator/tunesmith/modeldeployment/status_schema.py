"""What the status of a ModelDeployment may hold."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tunesmith.api.blocks import Resources, Scheduling
from tunesmith.api.status import (
    Count,
    Digest,
    Location,
    PinnedModel,
    Status,
    Text,
    Time,
    Word,
)
from tunesmith_contract.base import Block
from tunesmith_contract.serving import Engine


class ServedModel(PinnedModel):
    """The model that the spec means, pinned once a revision serves it."""

    source: Location | None = Field(None, description="What it was read from, in words.")


class RevisionInputs(Block):
    """The parts of the spec that determine a revision's pods, as they were when it was made."""

    engine: Engine | None = Field(None, description="As in the spec.")
    resources: Resources | None = Field(None, description="As in the spec.")
    scheduling: Scheduling | None = Field(None, description="As in the spec.")


class Revision(Block):
    """One set of inputs that is, was or is about to be served."""

    name: Word = Field(description="Short hash of its inputs.")
    state: Word | None = Field(None, description="Candidate, Active or Draining.")
    uri: Location | None = Field(None, description="Where the model lies.")
    digest: Digest | None = Field(None, description="Digest of the model, pinned.")
    verdict: Word | None = Field(None, description="Passed, or NoGate.")
    eval_runs: Annotated[list[Word], Field(max_length=8)] | None = Field(None, description="EvalRuns that passed it.")
    image: Text | None = Field(None, description="Pinned image.")
    contract_version: Count | None = Field(None, description="Stage contract of that image; absent: 1.")
    inputs: RevisionInputs | None = Field(None, description="What else it was made from.")
    created_time: Time | None = Field(None, description="When it was made.")
    switched_time: Time | None = Field(None, description="While Draining: when the Service was seen to select another revision.")


class ModelDeploymentStatus(Status):
    """What serves."""

    model: ServedModel | None = Field(None, description="The model that the spec means.")
    url: Location | None = Field(None, description="OpenAI-compatible endpoint inside the cluster.")
    replicas: Count | None = Field(None, description="Pods of the active revision, or of the first candidate.")
    ready_replicas: Count | None = Field(None, description="Ready ones among them.")
    selector: Annotated[str, Field(max_length=1024)] | None = Field(None, description="Label selector of the pods, for /scale.")
    revisions: Annotated[list[Revision], Field(max_length=10)] | None = Field(None, description="At most one of each state.")
