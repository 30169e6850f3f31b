"""Types of a status' fields. Each is bounded: the API server counts what a schema may hold at most."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

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
