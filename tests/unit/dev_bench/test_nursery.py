"""Operators that a bench starts: nobody waits for ever for what became of one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from dev.bench.nursery import Nursery

STANDS_STILL = ("signal:pause",)
"""What it is to call first never returns."""


async def test_where_all_is_cancelled_at_once_who_waits_for_an_operators_end_waits_no_longer(tmp_path: Path) -> None:
    running = asyncio.Event()

    async def bench() -> None:
        async with Nursery() as nursery:
            pid = await nursery.start({"KUBECONFIG": ""}, tmp_path / "log", STANDS_STILL)
            try:
                running.set()
                await asyncio.Future()
            finally:
                nursery.kill(pid)
                await nursery.ended(pid)

    own, before = asyncio.create_task(bench()), asyncio.all_tasks()
    await running.wait()
    # As an event loop does that is closed after a test has run out of time, those that the bench needs for its end included.
    for task in (asyncio.all_tasks() - before) | {own}:
        task.cancel()
    assert await asyncio.wait({own}, timeout=30) == ({own}, set())


async def test_an_operator_that_ends_tells_how(tmp_path: Path) -> None:
    async with Nursery() as nursery:
        stands = [await nursery.start({"KUBECONFIG": ""}, tmp_path / str(number), STANDS_STILL) for number in range(2)]
        nursery.kill(stands[1])
        assert await nursery.ended(stands[1]) == -9
        assert not nursery.ended(stands[0]).done()
