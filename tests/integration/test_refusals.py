"""What the operator does when the API server refuses, fails or is away: it recovers or ends, and makes nothing twice.

A real operator sees a real API server through a proxy that refuses. Where it ends, the test starts it again, as its kubelet would.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import Counter
from typing import Any

import pytest
from aiohttp import web

from dev.bench.proxy import Exchange, pass_on
from tests.integration.meddler import (
    ENDS,
    RECOVERY,
    Meddled,
    cut,
    ends,
    is_lease,
    is_list,
    is_watch,
    no_lists,
    refusal,
    untouched,
)
from tests.integration.operators import FINE_TUNE_JOB, RESULTS, Namespace, answer, settle
from tunesmith.api.conditions import find, is_true

STARTING = 10.0
"""What a start may take beside the recovery, on a busy machine."""
OUTAGE = float(os.environ.get("TUNESMITH_TEST_OUTAGE_SECONDS", "10"))
"""What an absence of the API server lasts once the Lease is lost; minutes make no difference that a test in `make test` should wait for."""
BUSY = [429, 500, 503, 504]
WRONG = [409, 422, 429, 500, 503]


def test_writes_that_fail_in_bursts_are_made_good_and_nothing_is_made_twice(meddled: Meddled, space: Namespace) -> None:
    asked = itertools.count()
    failed: list[int] = []
    lost: set[str] = set()

    async def mostly_failing(exchange: Exchange) -> web.StreamResponse | None:
        if not exchange.is_write or is_lease(exchange):
            return None
        if exchange.request.method == "POST" and exchange.request.path not in lost:
            # The server takes the first one of each kind, and the answer is lost.
            (await exchange.forward()).close()
            lost.add(exchange.request.path)
            failed.append(504)
            return refusal(504)
        # Two of three.
        if next(asked) % 3 == 2:
            return None
        failed.append(WRONG[len(failed) % len(WRONG)])
        return refusal(failed[-1])

    meddled.meddler.requests = mostly_failing
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    meddled.wait(lambda: len(failed) >= 5 and space.stage_pods(tune, "Prepare", 1), "five writes to fail, and one not to")
    space.play(tune, "Prepare", RESULTS["Prepare"])
    meddled.wait(lambda: len(failed) >= 12, "a dozen writes to fail")
    meddled.meddler.requests = untouched
    meddled.play_all(tune, ("Train", "Finalize"))
    assert any(path.endswith("/jobs") for path in lost)
    assert (ends(space), len(space.all("Job")), meddled.exits) == (ENDS, len(RESULTS), 0)


def test_lists_that_fail_in_bursts_hold_up_nothing_and_are_made_good(meddled: Meddled, space: Namespace) -> None:
    asked: Counter[str] = Counter()
    failed: list[int] = []

    async def mostly_failing(exchange: Exchange) -> web.StreamResponse | None:
        if not is_list(exchange):
            return None
        asked[exchange.request.path] += 1
        # Two of three of each kind.
        if asked[exchange.request.path] % 3 == 0:
            return None
        failed.append(BUSY[len(failed) % len(BUSY)])
        return refusal(failed[-1])

    meddled.meddler.requests = mostly_failing
    # So that not only our relists ask, but kopf too.
    meddled.meddler.tell({"type": "ERROR", "object": json.loads(refusal(410).text or "")})
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    meddled.play_all(tune)
    meddled.wait(lambda: len(failed) >= 20, "twenty lists to fail")
    meddled.meddler.requests = untouched
    again = space.create("FineTuneJob", "again", FINE_TUNE_JOB)
    assert meddled.wait(lambda: space.stage_pods(again, "Prepare", 1), "work to go on") < RECOVERY
    meddled.process.wait_resyncs(2)
    assert (ends(space), meddled.exits) == (ENDS, 0)


def test_watches_that_are_refused_for_a_while_go_on_within_ten_seconds(meddled: Meddled, space: Namespace) -> None:
    """The pause between two attempts grows, but not so far that the end of the trouble is slept through. No relist helps."""
    failed: Counter[str] = Counter()

    async def refuse_watches(exchange: Exchange) -> web.StreamResponse | None:
        if not is_watch(exchange):
            return await no_lists(exchange)
        failed[exchange.request.path] += 1
        return refusal(BUSY[failed[exchange.request.path] % len(BUSY)])

    meddled.meddler.requests = refuse_watches
    meddled.meddler.cut_watches()
    meddled.wait(lambda: failed[space.path("FineTuneJob")] >= 7, "a watch to be refused seven times")
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    meddled.meddler.requests = no_lists
    assert meddled.wait(lambda: space.stage_pods(tune, "Prepare", 1), "the first pod") < RECOVERY
    assert meddled.exits == 0


def test_a_lease_whose_renewals_are_refused_now_and_then_is_kept(meddled: Meddled, space: Namespace) -> None:
    asked, failed = itertools.count(), []
    meddled.process.stop()
    # As many renewals as by default, in twice the time: two seconds of a machine that stands still must not end it.
    meddled.process.environment |= {"TUNESMITH_LEASE_DURATION_SECONDS": "16", "TUNESMITH_LEASE_DEADLINE_SECONDS": "12"}
    meddled.process.environment["TUNESMITH_LEASE_RETRY_SECONDS"] = "4"
    meddled.process.start()

    async def one_in_three(exchange: Exchange) -> web.StreamResponse | None:
        # A renewal, then the read and the write of the next attempt.
        if not is_lease(exchange) or next(asked) % 3:
            return None
        failed.append(BUSY[len(failed) % len(BUSY)])
        return refusal(failed[-1])

    meddled.meddler.requests = one_in_three
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    meddled.play_all(tune)
    meddled.wait(lambda: len(failed) >= 3, "three renewals to fail")
    assert (ends(space), meddled.exits) == (ENDS, 0)


@pytest.mark.parametrize("code", [403, 500])
def test_an_error_within_a_watch_is_survived_or_ends_the_process_at_once(meddled: Meddled, space: Namespace, code: int) -> None:
    meddled.meddler.tell({"type": "ERROR", "object": json.loads(refusal(code).text or "")})
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    took = meddled.wait(lambda: space.stage_pods(tune, "Prepare", 1), "work to go on")
    assert took < RECOVERY + STARTING * meddled.exits
    assert meddled.exits <= 1


def test_when_the_api_server_comes_back_after_an_absence_work_goes_on(meddled: Meddled, space: Namespace) -> None:
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    (pod,) = space.wait_pods(tune, "Prepare")
    meddled.meddler.requests = cut
    meddled.meddler.cut_watches()
    space.end_pod(pod, answer("Prepare", 1, RESULTS["Prepare"]))
    # The process ends with its Lease, and a second one begins while there is no server.
    meddled.wait(lambda: meddled.exits, "the Lease to be lost")
    assert settle(OUTAGE, lambda: meddled.revive() and meddled.exits == 1), "an operator without an API server waits, and does not end again"
    meddled.meddler.requests = untouched
    assert meddled.wait(lambda: ends(space) == ENDS[:1], "the stage that ended to be seen") < RECOVERY
    meddled.play_all(tune, ("Train", "Finalize"))
    assert (ends(space), meddled.exits) == (ENDS, 1)


def test_a_status_that_is_refused_is_told_and_not_tried_again_and_again(meddled: Meddled, space: Namespace) -> None:
    refused: list[float] = []

    async def refuse_statuses(exchange: Exchange) -> web.StreamResponse | None:
        if exchange.request.method != "PUT" or not exchange.request.path.endswith("/status"):
            return None
        status: dict[str, Any] = json.loads(exchange.body)["status"]
        if "stages" not in status:
            return await pass_on(exchange)
        refused.append(time.monotonic())
        return refusal(422, "status.stages[0].attempt: Invalid value")

    meddled.meddler.requests = refuse_statuses
    space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    meddled.wait(lambda: is_true(space.status("FineTuneJob", "tune"), "Stalled"), "the refusal to be told")
    stalled = find(space.status("FineTuneJob", "tune"), "Stalled") or {}
    assert (stalled["reason"], "status.stages[0].attempt" in stalled["message"]) == ("StatusRefused", True)
    before = len(refused)
    meddled.process.wait_resyncs(4)
    assert len(refused) - before <= 4
    errors = [json.loads(line) for line in meddled.process.log.read_text().splitlines() if '"level": "ERROR"' in line]
    assert errors and {(entry["kind"], entry["name"]) for entry in errors} == {("FineTuneJob", "tune")}
    assert meddled.process.metric('tunesmith_statuses_refused_total{controller="FineTuneJob"}') == len(refused)
    assert space.all("Job") == []
    meddled.meddler.requests = untouched
    meddled.wait(lambda: space.all("Job"), "work to go on")
