"""Every status that the three kinds write fits the schema: the API server would prune the rest without a word."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from tests.unit.operator.statuses import WALKS
from tunesmith import status_schema


@pytest.mark.parametrize("kind", WALKS)
def test_every_status_on_the_way_fits_the_schema(kind: str) -> None:
    model: type[BaseModel] = getattr(status_schema, f"{kind}Status")
    for written in WALKS[kind]():
        model.model_validate(written)
