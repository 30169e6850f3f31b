"""What the operator does when what it sees of the cluster is old, late, twice or nothing: it recovers or ends, and makes nothing twice.

A real operator sees a real API server through a proxy that lies. Where it ends, the test starts it again, as its kubelet would.
More of it: test_refusals.py.
"""

from __future__ import annotations

import asyncio
import json
import random
from urllib.parse import quote

from aiohttp import web

from dev.bench.proxy import Exchange
from dev.cluster.controlplane import ControlPlane
from tests.integration.meddler import (
    ENDS,
    RECOVERY,
    Meddled,
    ends,
    hang,
    is_list,
    is_watch,
    no_lists,
    nothing,
    refusal,
    unchanged,
    untouched,
)
from tests.integration.operators import FINE_TUNE_JOB, RESULTS, Namespace, Writes, settle
from tunesmith.core.objects import Object
from tunesmith.runtime.resources import RESOURCES


def test_a_deletion_that_no_watch_told_is_seen_by_the_next_relist(meddled: Meddled, space: Namespace) -> None:
    async def without_deletions(event: Object) -> list[Object]:
        return [] if event["type"] == "DELETED" else [event]

    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    (pod,) = space.wait_pods(tune, "Prepare")
    space.run_pod(pod)
    meddled.wait(lambda: "jobUID" in space.status("FineTuneJob", "tune")["stages"][0], "the Job to be on record")
    meddled.meddler.events = without_deletions
    (job,) = space.all("Job")
    space.delete("Job", job["metadata"]["name"])
    # kopf lists anew after this, and does not notice what is missing.
    meddled.meddler.tell({"type": "ERROR", "object": json.loads(refusal(410).text or "")})
    space.wait_pods(tune, "Prepare", attempt=2)
    space.delete("FineTuneJob", "tune")
    again = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    space.wait_pods(again, "Prepare")
    assert meddled.exits == 0


def test_events_that_come_twice_and_late_cost_no_write_and_make_nothing_twice(
    meddled: Meddled, space: Namespace, control_plane: ControlPlane
) -> None:
    chance = random.Random(4)

    async def twice_and_late(event: Object) -> list[Object]:
        # Each kind has a watch of its own, so this also changes the order between kinds.
        await asyncio.sleep(chance.random() * 0.7)
        return [event, event]

    meddled.meddler.events = twice_and_late
    writes = Writes(control_plane, space.name)
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    meddled.play_all(tune)
    assert ends(space) == ENDS
    seen = writes.seen()
    assert sum("/jobs" in write for write in seen) == len(RESULTS)
    # Each stage begins, is told to be unschedulable (no node is there), and runs; the end.
    assert sum("/status" in write for write in seen) <= 3 * len(RESULTS) + 1


def test_a_watch_that_falls_silent_is_replaced_within_ten_seconds(meddled: Meddled, space: Namespace) -> None:
    meddled.meddler.requests = no_lists
    meddled.meddler.silence_watches()
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    assert meddled.wait(lambda: space.stage_pods(tune, "Prepare", 1), "the first pod") < RECOVERY
    assert meddled.exits == 0


def test_when_the_watches_fall_silent_the_relists_carry_on(meddled: Meddled, space: Namespace) -> None:
    meddled.meddler.events = nothing
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    meddled.play_all(tune)
    assert (ends(space), meddled.exits) == (ENDS, 0)
    assert meddled.process.probe("/healthz") == 200


def test_an_operator_that_is_blind_says_that_it_is_not_alive(meddled: Meddled, space: Namespace) -> None:
    meddled.process.stop()
    meddled.process.environment["TUNESMITH_STALE_SECONDS"] = "3"
    meddled.process.start()
    assert meddled.process.probe("/healthz") == 200
    meddled.meddler.events, meddled.meddler.requests = nothing, no_lists
    meddled.wait(lambda: meddled.process.probe("/healthz") == 503, "liveness to fail")
    assert meddled.exits == 0, "the Lease is still renewed, so that alone would not have told"
    meddled.meddler.events, meddled.meddler.requests = unchanged, untouched
    meddled.process.kill()
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    meddled.wait(lambda: space.stage_pods(tune, "Prepare", 1), "work to go on")


def test_a_view_from_before_all_was_done_makes_nothing_again(meddled: Meddled, space: Namespace, control_plane: ControlPlane) -> None:
    """The lists of a fresh process are those of the moment before the first Job: the object waits for a Job that is long gone."""
    old: dict[str, bytes] = {}

    def lists(kind: str) -> Object:
        selector = RESOURCES[kind].selector
        return space.api.send("GET", f"{space.path(kind)}?labelSelector={quote(selector)}").body

    def resource(exchange: Exchange) -> str:
        return exchange.request.path.rpartition("/")[2]

    async def remember(exchange: Exchange) -> None:
        if exchange.is_write and resource(exchange) == "jobs" and not old:
            for kind in RESOURCES:
                old[RESOURCES[kind].plural] = json.dumps(await asyncio.to_thread(lists, kind)).encode()

    async def lie(exchange: Exchange) -> web.StreamResponse | None:
        if is_list(exchange):
            return web.Response(body=old[resource(exchange)], content_type="application/json")
        if is_watch(exchange):
            await hang(exchange)
        return None

    meddled.meddler.requests = remember
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    meddled.play_all(tune)
    status = space.status("FineTuneJob", "tune")
    for job in space.all("Job"):
        space.delete("Job", job["metadata"]["name"])
    space.wait(lambda: not space.all("Pod"), "the pods to go with their Jobs")
    meddled.process.kill()
    meddled.meddler.requests = lie
    writes = Writes(control_plane, space.name)
    meddled.process.start()
    assert settle(3, lambda: meddled.process.running and not space.all("Job"))
    assert writes.seen() == []
    meddled.meddler.requests = untouched
    meddled.process.wait_resyncs(2)
    assert (space.all("Job"), space.status("FineTuneJob", "tune")) == ([], status)
