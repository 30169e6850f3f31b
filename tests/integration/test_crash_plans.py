"""Lost at any write and started again, the operator comes to the end that it comes to undisturbed, and makes nothing twice.

A sample of what `make bench-crash` and `make test-all` run in full: a real process, really killed, before a real API server.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dev.bench.crash import Campaign, Options, together
from dev.cluster.controlplane import ControlPlane
from tests.integration import sabotage
from tests.integration.operators import OperatorProcess

SEED = int(os.environ.get("TUNESMITH_CRASH_SEED", "4"))
"""Which plans are in the sample. Fixed: a run that failed is repeated as it was. conftest.py prints it."""
SAMPLE = 30


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("unscheduled")
async def test_lost_at_a_sample_of_its_writes_the_operator_comes_to_the_same_end_and_one_that_does_not_is_found(
    operator_process: OperatorProcess, control_plane: ControlPlane, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("crash plans", f"{SAMPLE}, seed {SEED}")
    # It would serve the lanes too.
    operator_process.stop()
    # With names that the server makes up, what was made unheard of is made again: the defect that this must find.
    broken = Options(lanes=1, only="create/services/1/lost", prepare=(f"{sabotage.__name__}:{sabotage.generate_names.__name__}",))
    sound = Options(sample=SAMPLE, seed=SEED)
    # Before pytest's own end of it, which would leave the operators behind.
    async with asyncio.timeout(840):
        report, found = await together(Campaign(control_plane, tmp_path, options, print).run() for options in (sound, broken))
    print(report.summary())
    assert not report.failures
    assert (report.plans, report.shortfall(sound)) == (SAMPLE, "")
    assert list(found.failures) == ["create/services/1/lost"]
    assert "times, not" in found.failures["create/services/1/lost"]
