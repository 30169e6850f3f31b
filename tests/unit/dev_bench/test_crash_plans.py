"""Crash plans: which there are, what each does to a write, and what counts as another end."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from dev.bench.crash import Options, Report
from dev.bench.lane import Lived, complaints
from dev.bench.mask import snapshot
from dev.bench.plans import FAULTS, Plan, Saboteur, Write, plans
from dev.bench.proxy import Proxy
from dev.bench.trail import AuditLog, Entry

UID = "0a1b2c3d-0000-4000-8000-000000000000"
STATUS = Write("update", "finetunejobs", "tune", "status")
JOB = Write("create", "jobs", "tune-train-1-<uid>", "")
LEASE = Write("update", "leases", "tunesmith-leader", "")
EVENT = Write("create", "events", "tune", "")
PATHS = {
    STATUS: "/apis/tunesmith.dev/v1alpha1/namespaces/lane/finetunejobs/tune/status",
    JOB: "/apis/batch/v1/namespaces/lane/jobs",
    LEASE: "/apis/coordination.k8s.io/v1/namespaces/lane/leases/tunesmith-leader",
    EVENT: "/apis/events.k8s.io/v1/namespaces/lane/events",
}


def entry(write: Write, code: int = 200, agent: str = "tunesmith/1") -> Entry:
    return Entry(write.verb, write.resource, write.subresource, write.name, code, agent)


def lived(*entries: Entry, end: str = "well", deaths: Sequence[int] = (), error: str = "") -> Lived:
    return Lived({"end": {"tune": end}}, entries, 1.0, True, deaths, error)


class Upstream:
    """A server that counts what reaches it."""

    def __init__(self) -> None:
        self.reached: list[str] = []

    async def handle(self, request: web.BaseRequest) -> web.Response:
        self.reached.append(request.method)
        return web.json_response({"seen": len(self.reached)})


class Stand:
    """Client, proxy and server in a row."""

    def __init__(self, upstream: Upstream, proxy: Proxy, saboteur: Saboteur, session: aiohttp.ClientSession) -> None:
        self.upstream, self.proxy, self.saboteur, self.session = upstream, proxy, saboteur, session
        self.kills = 0

    async def send(self, write: Write) -> int | str:
        """The status of the answer, or what became of it."""
        method = {"update": "PUT", "create": "POST"}[write.verb]
        body = {"metadata": {"name": "tune.0123456789abcdef" if write.resource == "events" else "tune-train-1-0a1b2"}}
        try:
            async with self.session.request(method, self.proxy.url + PATHS[write], json=body) as answer:
                await answer.read()
                return answer.status
        except aiohttp.ClientError:
            return "no answer"


@pytest.fixture
async def stand() -> AsyncIterator[Stand]:
    upstream = Upstream()
    runner = web.ServerRunner(web.Server(upstream.handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    stands: list[Stand] = []

    def kill() -> None:
        stands[0].kills += 1

    saboteur = Saboteur(kill)
    connector = aiohttp.TCPConnector(force_close=True)
    async with (
        Proxy("http://{}:{}".format(*runner.addresses[0][:2]), ssl.create_default_context(), saboteur) as proxy,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        stands.append(Stand(upstream, proxy, saboteur, session))
        yield stands[0]
    await runner.cleanup()


@pytest.mark.parametrize(
    ("fault", "answer", "reached", "kills"),
    [("before", "no answer", 2, 1), ("after", 200, 3, 1), ("lost", "no answer", 3, 1), ("reset", "no answer", 3, 0)],
)
async def test_a_fault_strikes_at_its_write_and_no_other(stand: Stand, fault: str, answer: int | str, reached: int, kills: int) -> None:
    # A POST: others are sent once more by the client library itself.
    stand.saboteur.load(Plan(JOB, 2, fault))
    assert [await stand.send(STATUS), await stand.send(JOB)] == [200, 200]
    assert not stand.saboteur.fired
    assert await stand.send(JOB) == answer
    assert (stand.saboteur.fired, len(stand.upstream.reached), stand.kills) == (True, reached, kills)
    assert await stand.send(JOB) == ("no answer" if kills else 200), "nothing of a dying operator gets through"
    stand.saboteur.cut_off = False
    assert await stand.send(JOB) == 200, "a fault strikes once"


async def test_a_created_object_is_known_by_its_name_without_the_owners_uid(stand: Stand) -> None:
    stand.saboteur.load(Plan(JOB, 1, "before"))
    assert await stand.send(STATUS) == 200
    assert await stand.send(JOB) == "no answer"


def test_there_is_a_plan_for_each_fault_at_each_write_that_all_lives_have_in_common() -> None:
    others = entry(Write("update", "jobs", "tune", "status"), agent="kube-controller-manager/1")
    made = plans([[entry(STATUS), entry(STATUS), entry(JOB), others], [entry(JOB), entry(STATUS)]], seed=1)
    assert sorted(map(str, made)) == sorted(f"{write}/1/{fault}" for write in (STATUS, JOB) for fault in FAULTS)


def test_of_leases_and_events_that_come_as_often_as_it_happens_there_are_plans_for_the_first() -> None:
    made = plans([[entry(LEASE), entry(EVENT, 201), entry(LEASE), entry(EVENT, 201)], [entry(LEASE), entry(EVENT, 201)]], seed=1)
    assert sorted(map(str, made)) == sorted(f"{write}/1/{fault}" for write in (LEASE, EVENT) for fault in FAULTS)


@pytest.mark.parametrize("write", [LEASE, EVENT])
async def test_a_fault_strikes_at_a_lease_and_at_an_event(stand: Stand, write: Write) -> None:
    stand.saboteur.load(Plan(write, 1, "before"))
    assert await stand.send(JOB) == 200
    assert await stand.send(write) == "no answer"


def test_the_audit_log_and_a_request_name_a_write_alike(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    log.touch()
    names = {JOB: f"tune-train-1-{UID[:5]}", Write("create", "pods", "", ""): "generated", EVENT: "tune.0123456789abcdef"}
    with closing(AuditLog(log)) as audit:
        for write, name in names.items():
            target = {"resource": write.resource, "namespace": "lane", "name": name}
            line = {"verb": write.verb, "objectRef": target, "responseStatus": {"code": 201}, "userAgent": "tunesmith/1"}
            log.write_text(log.read_text() + json.dumps(line, separators=(",", ":")) + "\n")
        taken = audit.take("lane")
    assert [Write(each.verb, each.resource, each.name, each.subresource) for each in taken] == list(names)
    assert [each.made for each in taken] == [True, True, False], "that an Event is lost is no other end"


@pytest.mark.parametrize(
    ("run", "options", "told"),
    [
        (300, Options(), ""),
        (299, Options(), "only 299 plans were run, not 300"),
        (60, Options(sample=60), ""),
        (59, Options(sample=60), "only 59 plans were run, not 60"),
        (1, Options(only="create/jobs/*"), ""),
    ],
)
def test_a_run_of_fewer_plans_than_were_asked_for_is_told(run: int, options: Options, told: str) -> None:
    assert Report(plans=run).shortfall(options) == told


def test_the_seed_decides_the_order() -> None:
    lives = [[entry(STATUS)] * 9]
    assert plans(lives, seed=1) == plans(lives, seed=1) != plans(lives, seed=2)


REFERENCE = lived(entry(JOB, 201), entry(Write("delete", "services", "old", "")))


@pytest.mark.parametrize(
    ("life", "complaint"),
    [
        (lived(*REFERENCE.entries, entry(JOB, 201)), "created 2 times, not 1"),
        (lived(*REFERENCE.entries, entry(JOB, 201, agent="kube-controller-manager/1")), "created 2 times, not 1"),
        (lived(entry(Write("delete", "services", "old", ""))), "created 0 times, not 1"),
        (lived(*REFERENCE.entries, entry(Write("delete", "jobs", "tune", ""))), "jobs/tune was deleted"),
        (lived(entry(JOB, 201)), "services/old was not deleted"),
        (lived(*REFERENCE.entries, end="badly"), '+ "tune": "badly"'),
        (lived(*REFERENCE.entries, deaths=[1]), "ended by itself with status 1"),
        (lived(*REFERENCE.entries, error="waited for nothing"), "waited for nothing"),
        (lived(*REFERENCE.entries, entry(JOB, 201), error="waited for nothing"), "created 2 times, not 1"),
    ],
)
def test_another_end_is_complained_about(life: Lived, complaint: str) -> None:
    assert complaint in "\n".join(complaints(life, REFERENCE))


def test_a_write_that_was_refused_or_made_again_to_no_effect_is_no_complaint() -> None:
    again = (entry(JOB, 409), entry(STATUS, 409), entry(Write("delete", "services", "old", ""), 404))
    assert complaints(lived(*REFERENCE.entries, *again), REFERENCE) == []


def test_a_write_whose_sender_was_killed_before_the_answer_may_have_been_done() -> None:
    cut = (entry(JOB, 504), entry(Write("delete", "services", "old", ""), 504))
    assert complaints(lived(*cut), REFERENCE) == []
    others = (entry(JOB, 504, agent="kube-controller-manager/1"), entry(Write("update", "services", "old", ""), 504))
    assert len(complaints(lived(*others), REFERENCE)) == 2
    assert complaints(lived(*cut, *REFERENCE.entries, entry(JOB, 201)), REFERENCE) == [f"jobs/{JOB.name} was created 2 times, not 1"]


def test_a_log_that_was_rotated_is_not_read_as_if_nothing_had_been_written(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_text("")
    with closing(AuditLog(path)) as log:
        path.rename(tmp_path / "audit-1.log")
        path.write_text("")
        with pytest.raises(RuntimeError, match="rotated"):
            log.take("lane")


def job(uid: str, number: int, image: str = "trainer:1") -> dict[str, object]:
    name = f"tune-train-1-{uid[:5]}"
    metadata = {"name": name, "uid": "of no account", "resourceVersion": str(number), "ownerReferences": [{"uid": uid}]}
    spec = {"image": image, "pod": f"{name}-0-x7k2{number}", "url": f"http://serve.lane-{number}.svc", "since": f"2026-01-01T00:00:0{number}Z"}
    return {
        "kind": "EvalRun",
        "metadata": metadata,
        "spec": spec,
        "status": {"attempts": [{"queuedSeconds": number}], "gpuSeconds": {"lost": number}},
    }


def test_a_masked_object_tells_no_uid_time_namespace_or_generated_name_but_all_else() -> None:
    def shown(uid: str, number: int, **changes: str) -> object:
        return snapshot([job(uid, number, **changes)], {uid: "FineTuneJob/tune"}, f"lane-{number}")

    reference = shown(UID, 1)
    assert reference == shown(UID.replace("0a1b2c3d", "fedcba98"), 2)
    assert reference != shown(UID, 1, image="trainer:2")
