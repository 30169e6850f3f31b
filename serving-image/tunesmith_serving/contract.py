"""What Serve is given and what it answers, as in docs/contract.md (version 2; version 1 is read too).

Names are snake_case in Python and camelCase in JSON; an unknown key is refused, so that a misspelt setting is never
served silently with a default.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Port = Annotated[int, Field(ge=1, le=65535)]


class Contract(BaseModel):
    """Base of everything that crosses the boundary: camelCase in JSON, unknown keys refused, frozen."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True, frozen=True)


class ObjectReference(Contract):
    """The Kubernetes object that is served for."""

    kind: str
    namespace: str
    name: str
    uid: str


class ModelReference(Contract):
    """A model's folder; without a digest any content is accepted that agrees with its own manifest."""

    uri: str
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = None


class Vllm(Contract):
    """Settings of the engine, with vLLM's names."""

    max_model_len: Annotated[int, Field(ge=1)] | None = None
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    overrides: dict[str, str] = Field(default_factory=dict)


class Engine(Contract):
    """The engine to serve with; vLLM is the only one so far."""

    vllm: Vllm


class ServeInput(Contract):
    """The stage file of a serving pod."""

    schema_version: Literal[1, 2]
    stage: Literal["Serve"]
    device: Literal["CPU", "GPU"]
    gpus: Annotated[int, Field(ge=1)] | None = None
    """GPUs of each pod; absent in version 1."""
    object: ObjectReference
    model: ModelReference
    engine: Engine
    served_model_name: Annotated[str, Field(min_length=1)]
    port: Port = 8000
    ready_port: Port = 8001
    grace_period_seconds: Annotated[int, Field(ge=1)]
    """From SIGTERM to SIGKILL: the pod's own."""
    pause_seconds: Annotated[int, Field(ge=0)]
    """How long new connections may still come after SIGTERM."""


class ServeFailure(Contract):
    """Why serving ended; a pod that was drained answers nothing."""

    schema_version: Literal[1, 2] = 2
    stage: Literal["Serve"] = "Serve"
    outcome: Literal["Failed"] = "Failed"
    start_time: str
    completion_time: str
    exit_code: int
    reason: str
    message: Annotated[str, Field(max_length=1024)]

    def dump(self) -> dict[str, Any]:
        """Return the result as it is written in JSON."""
        return self.model_dump(mode="json", by_alias=True)
