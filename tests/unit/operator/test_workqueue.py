"""The work queue: no key twice, no key by two workers, failures later and later, namespaces in turn."""

from __future__ import annotations

import asyncio
import random

import pytest

from tunesmith.core.objects import Key
from tunesmith.runtime.workqueue import BACKOFF_BASE, BACKOFF_CAP, SPARE, WorkQueue

A, B = Key("FineTuneJob", "red", "a"), Key("FineTuneJob", "red", "b")
OTHER = Key("FineTuneJob", "blue", "a")


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue:
    return WorkQueue(clock)


def test_a_key_added_twice_is_taken_once(queue: WorkQueue) -> None:
    queue.add(A)
    queue.add(A)
    assert (queue.take(), queue.take()) == (A, None)


def test_a_key_added_while_it_runs_is_taken_once_more_afterwards_and_not_before(queue: WorkQueue) -> None:
    queue.add(A)
    assert queue.take() == A
    queue.add(A)
    queue.add(A)
    assert queue.take() is None
    queue.done(A)
    assert (queue.take(), queue.take()) == (A, None)


def test_keys_come_in_the_order_they_were_added_in(queue: WorkQueue) -> None:
    for key in (B, A):
        queue.add(key)
    assert [queue.take(), queue.take()] == [B, A]


def test_a_namespace_with_many_keys_does_not_keep_another_waiting(queue: WorkQueue) -> None:
    crowd = [Key("FineTuneJob", "red", str(number)) for number in range(100)]
    for key in (*crowd, OTHER):
        queue.add(key)
    assert [queue.take(), queue.take(), queue.take()] == [crowd[0], OTHER, crowd[1]]


def test_a_key_for_later_comes_when_it_is_due(queue: WorkQueue, clock: Clock) -> None:
    queue.add_after(A, 10)
    clock.now = 9.9
    assert queue.take() is None
    clock.now = 10
    assert queue.take() == A


def test_of_two_times_the_earlier_counts(queue: WorkQueue, clock: Clock) -> None:
    queue.add_after(A, 10)
    queue.add_after(A, 5)
    queue.add_after(A, 20)
    clock.now = 5
    assert queue.take() == A
    queue.done(A)
    clock.now = 30
    assert queue.take() is None


def test_a_run_drops_the_time_that_was_set_before_it(queue: WorkQueue, clock: Clock) -> None:
    queue.add_after(A, 10)
    queue.add(A)
    assert queue.take() == A
    queue.done(A)
    clock.now = 10
    assert queue.take() is None


def test_a_key_that_is_taken_again_and_again_before_its_time_leaves_nothing_behind(queue: WorkQueue, clock: Clock) -> None:
    """A FineTuneJob with a limit a week off, reconciled at each progress report."""
    queue.add_after(OTHER, 5000)
    for second in range(2000):
        clock.now = second
        queue.add(A)
        assert queue.take() == A
        queue.done(A)
        queue.add_after(A, 604_800 - second)
    assert len(queue._timetable) <= 2 * 2 + SPARE
    clock.now = 5000
    assert (queue.take(), queue.take()) == (OTHER, None)
    clock.now = 604_800
    assert queue.take() == A


def test_the_pause_doubles_with_each_failure_up_to_a_cap_and_starts_anew_after_a_success(queue: WorkQueue) -> None:
    pauses = [queue.add_failed(A) for _ in range(12)]
    assert pauses[:4] == [BACKOFF_BASE * factor for factor in (1, 2, 4, 8)]
    assert pauses[-1] == BACKOFF_CAP
    queue.forget_failures(A)
    assert queue.add_failed(A) == BACKOFF_BASE


def test_an_event_cuts_the_pause_short(queue: WorkQueue) -> None:
    queue.add_failed(A)
    queue.add(A)
    assert queue.take() == A


def test_what_failed_comes_at_once_when_it_is_hastened(queue: WorkQueue) -> None:
    queue.add_failed(A)
    queue.add_after(B, 10)
    queue.hasten()
    assert [queue.take(), queue.take()] == [A, None]


async def test_get_waits_for_an_add_and_for_a_time(queue: WorkQueue) -> None:
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.add(A)
    assert await asyncio.wait_for(waiting, 5) == A
    real = WorkQueue()
    real.add_after(B, 0.01)
    assert await asyncio.wait_for(real.get(), 5) == B


async def test_many_workers_never_run_a_key_at_the_same_time_and_lose_none() -> None:
    """Keys are added at random while eight workers run; the last add of each key must be followed by a run."""
    queue, chance = WorkQueue(), random.Random(17)
    keys = [Key("FineTuneJob", f"n{number % 3}", str(number)) for number in range(10)]
    wanted, seen, running = dict.fromkeys(keys, 0), dict.fromkeys(keys, -1), set[Key]()
    settled = asyncio.Event()

    async def work() -> None:
        while True:
            key = await queue.get()
            assert key not in running
            running.add(key)
            seen[key] = wanted[key]
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            running.discard(key)
            queue.done(key)
            if seen == wanted:
                settled.set()

    async with asyncio.TaskGroup() as group:
        workers = [group.create_task(work()) for _ in range(8)]
        for _ in range(2000):
            key = chance.choice(keys)
            wanted[key] += 1
            queue.add(key)
            if chance.random() < 0.5:
                await asyncio.sleep(0)
        settled.clear()
        queue.add(keys[0])
        await asyncio.wait_for(settled.wait(), 30)
        for worker in workers:
            worker.cancel()


async def test_a_worker_that_is_cancelled_just_as_a_key_comes_ends_and_does_not_go_on_with_the_key(queue: WorkQueue) -> None:
    queue.add_after(B, 60)
    worker = asyncio.create_task(queue.get())
    for _ in range(3):
        await asyncio.sleep(0)
    queue.add(A)
    worker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await worker
    assert queue.take() == A
