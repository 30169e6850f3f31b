"""Kill the operator around every write of its life and see that nothing comes of it.

    python -m dev.bench.crash [--sample N] [--seed N] [--lanes N] [--only NAME]

A reference life (`life.py`) is lived once in each lane; from the audit log of those come the plans (`plans.py`). Each plan is a life
of its own in which the operator, a real process before a real API server, is lost at one write. It must end as the reference did:
the same objects, nothing made twice, nothing deleted that should stay.
"""

from __future__ import annotations

import argparse
import asyncio
import fnmatch
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dev.bench.lane import Lane, Lived, complaints
from dev.bench.nursery import Nursery
from dev.bench.plans import FAULTS, Plan, plans
from dev.bench.trail import AuditLog
from dev.bench.view import View
from dev.cluster.controlplane import ControlPlane

T = TypeVar("T")

TRIES = 3
"""Lives until a plan whose write did not come up counts as failed: not every life takes the same number of status writes."""
ENOUGH = 12
"""Failures after which no further plan is tried: each takes as long as a life may wait, and something is wrong with all."""
WHOLE = 300
"""A whole run has no fewer plans: else the life has become too short, or its writes are no longer seen."""
FLAGS = ("--kube-api-qps=1000", "--kube-api-burst=1000", "--concurrent-gc-syncs=20")
"""At its default limits the controller-manager, not what is tested, would decide how long a life takes."""


@dataclass
class Options:
    """What to run.

    `sample`: only so many plans. `only`: those whose names match (`create/jobs/*`). `prepare`: see nursery.py.
    """

    sample: int | None = None
    seed: int = 4
    lanes: int = 6
    only: str = ""
    prepare: Sequence[str] = ()


@dataclass
class Report:
    """What came of it. `failures`: plan -> what was wrong."""

    plans: int = 0
    seconds: float = 0.0
    writes: int = 0
    lives: list[float] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def shortfall(self, options: Options) -> str:
        """What was asked for and not run; empty: nothing."""
        asked = 0 if options.only else options.sample or WHOLE
        return f"only {self.plans} plans were run, not {asked}" if self.plans < asked else ""

    def summary(self) -> str:
        """In a few lines."""
        lives = sorted(self.lives) or [0.0]
        return (
            f"{self.plans} plans from {self.writes} writes x {len(FAULTS)} faults, {len(self.failures)} failed, in {self.seconds:.0f} s: "
            f"{self.seconds / max(self.plans, 1):.1f} s a plan; a life takes {lives[len(lives) // 2]:.1f} s (median), {lives[-1]:.1f} s (longest)"
        )


class Campaign:
    """Lanes that take plans from one list."""

    def __init__(self, control_plane: ControlPlane, folder: Path, options: Options, say: Callable[[str], None]) -> None:
        self._control_plane = control_plane
        self._folder = folder
        self._options = options
        self._say = say
        self._report = Report()

    async def run(self) -> Report:
        """The reference lives, then the plans."""
        start = time.monotonic()
        async with AsyncExitStack() as stack:
            self._nursery = await stack.enter_async_context(Nursery())
            self._view = await stack.enter_async_context(View(self._control_plane))
            self._audit = stack.enter_context(closing(AuditLog(self._control_plane.audit_log)))
            lanes = [self._lane() for _ in range(self._options.lanes)]
            for lane in lanes:
                await stack.enter_async_context(lane)
            lived = await together(lane.live(None) for lane in lanes)
            self._reference = lived[0]
            self._compare_references(lived)
            if not self._report.failures:
                self._todo = self._choose(plans((each.entries for each in lived), self._options.seed))
                begun = time.monotonic()
                self._say(
                    f"reference: {self._reference.seconds:.1f} s, {self._report.writes} writes; {len(self._todo)} plans, seed {self._options.seed}"
                )
                telling = asyncio.create_task(self._tell(begun, len(self._todo)))
                try:
                    await together(self._work(stack, lane) for lane in lanes[: len(self._todo)])
                finally:
                    telling.cancel()
                start = begun
        self._report.seconds = time.monotonic() - start
        return self._report

    def _lane(self) -> Lane:
        return Lane(self._control_plane, self._view, self._nursery, self._audit, self._folder, self._options.prepare)

    def _compare_references(self, lived: Sequence[Lived]) -> None:
        """Lives in which nothing happens must be alike, else no other comparison means anything."""
        for number, each in enumerate(lived):
            wrong = complaints(each, self._reference)
            if wrong:
                self._fail(f"reference {number}", wrong, "")

    def _choose(self, all_plans: Sequence[Plan]) -> deque[tuple[Plan, int]]:
        self._report.writes = len(all_plans) // len(FAULTS)
        chosen = [plan for plan in all_plans if fnmatch.fnmatch(str(plan), self._options.only or "*")]
        if not chosen:
            raise SystemExit(f"no plan is called {self._options.only}; the plans are:\n" + "\n".join(sorted(map(str, all_plans))))
        return deque((plan, 1) for plan in chosen[: self._options.sample])

    async def _work(self, stack: AsyncExitStack, lane: Lane) -> None:
        while self._todo and len(self._report.failures) < ENOUGH:
            plan, number = self._todo.popleft()
            lived = await lane.live(plan)
            self._report.lives.append(lived.seconds)
            wrong = complaints(lived, self._reference)
            if not lived.fired and not wrong:
                if number < TRIES:
                    self._todo.append((plan, number + 1))
                    continue
                wrong = [f"the write did not come up in {TRIES} lives"]
            self._report.plans += 1
            if wrong:
                self._fail(str(plan), wrong, str(lane.log))
                # What the failed life left must not be taken for the next one's.
                lane = await stack.enter_async_context(self._lane())

    def _fail(self, name: str, wrong: Sequence[str], log: str) -> None:
        text = "\n".join(wrong)
        self._report.failures[name] = text
        self._say(f"FAILED {name}\n{text}\nthe operator's log: {log}\nonce more: make bench-crash ARGS=\"--only '{name}'\"\n")

    async def _tell(self, begun: float, total: int) -> None:
        """Say every now and then how far it is."""
        while True:
            await asyncio.sleep(15)
            self._say(f"{self._report.plans} of {total} plans, {len(self._report.failures)} failed, {time.monotonic() - begun:.0f} s")


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Do all at the same time; what one raises ends the others, which would go on in lanes that are taken away."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
    return [task.result() for task in tasks]


def main(arguments: Sequence[str]) -> int:
    """Run the campaign on a control plane of its own; 0 if no plan failed."""
    parser = argparse.ArgumentParser(prog="python -m dev.bench.crash", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="so many plans, chosen by the seed (default: all)")
    parser.add_argument("--seed", type=int, default=Options.seed, help="decides the order of the plans (default: %(default)s)")
    parser.add_argument("--lanes", type=int, default=Options.lanes, help="lives at the same time (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="NAME", help="those of that name alone; * matches anything")
    given = parser.parse_args(arguments)
    options = Options(sample=given.sample, seed=given.seed, lanes=given.lanes, only=given.only)
    folder = Path(tempfile.mkdtemp(prefix="tunesmith-crash-"))
    with ControlPlane(folder, controller_manager_flags=FLAGS) as control_plane:
        # There is no node: it would only tell every pod so.
        control_plane.stop_process("kube-scheduler")
        report = asyncio.run(Campaign(control_plane, folder, options, lambda text: print(text, flush=True)).run())
    print(report.summary())
    if not report.failures:
        shutil.rmtree(folder)
    if shortfall := report.shortfall(options):
        print(f"FAILED: {shortfall}")
    return 1 if report.failures or shortfall else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
