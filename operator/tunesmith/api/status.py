"""What the status of each kind may hold: the source of the CRDs' status schemas. Here: types of fields, and what all kinds have.

The API server prunes what is not named in these models without a word, so a field that a kind's `status.py` writes and they lack would be
written again at every reconcile. Each list is bounded here, since the API server counts what a schema may hold at most, and trimmed by
whoever writes it. Decimals are strings, as in the specs.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tunesmith_contract.base import Block

MAX_STAGES = 32
MAX_ATTEMPTS = 20
MAX_RESULTS = 64
MAX_NAMES = 20
MAX_INTEGER = 2**53 - 1
"""The API server compares bounds as floats: 2**63 - 1 is refused."""

Text = Annotated[str, Field(max_length=512)]
Word = Annotated[str, Field(max_length=64)]
Name = Annotated[str, Field(max_length=128)]
Message = Annotated[str, Field(max_length=1024)]
Digest = Annotated[str, Field(max_length=71, pattern=r"^sha256:[0-9a-f]{64}$")]
Location = Annotated[str, Field(max_length=1024)]
Time = Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]
Count = Annotated[int, Field(ge=0, le=2147483647)]
BigCount = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
Number = Annotated[str, Field(max_length=64)]
Reason = Annotated[str, Field(max_length=128)]
Nodes = Annotated[list[Annotated[str, Field(max_length=253)]], Field(max_length=2)]


class Condition(Block):
    """metav1.Condition."""

    type: str = Field(max_length=316, description="Ready, Reconciling, Stalled and further ones of the kind.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: str = Field(
        min_length=1, max_length=128, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", description="One CamelCase word for programs."
    )
    message: str = Field(max_length=1024, description="For people.")
    observed_generation: BigCount | None = Field(None, description="metadata.generation that this was computed from.")
    last_transition_time: Time = Field(description="When `status` last changed.")


class PinnedModel(Block):
    """A model as it was found: later changes behind its name change nothing here."""

    name: Word | None = Field(None, description="Of a baseline of an EvalRun: its name. Absent elsewhere.")
    uri: Location = Field(description="Where it lies.")
    digest: Digest | None = Field(None, description="sha256 of its manifest.")


class Status(Block):
    """Common to the three kinds."""

    observed_generation: Annotated[int, Field(ge=-1, le=MAX_INTEGER)] | None = Field(
        None, description="metadata.generation that this status was computed from; -1: never looked at."
    )
    conditions: Annotated[list[Condition], Field(max_length=16)] | None = Field(
        None,
        description="Ready, Reconciling and Stalled as kstatus reads them, and further ones of the kind.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    stage: Word | None = Field(None, description="One word for people; programs read the conditions.")
