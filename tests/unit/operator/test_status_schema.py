"""Every status that the three kinds write fits the schema: the API server would prune the rest without a word."""

from __future__ import annotations

import pytest

from tests.unit.operator.statuses import WALKS
from tunesmith.kinds import KINDS


@pytest.mark.parametrize("kind", WALKS)
def test_every_status_on_the_way_fits_the_schema(kind: str) -> None:
    for written in WALKS[kind]():
        KINDS[kind].status_schema.model_validate(written)
