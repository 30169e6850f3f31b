"""The order of a reconcile, on a double of the API server: what is written, in which order, and what a refusal leads to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.unit.operator.edge import CONFIG, KINDS, changed, child, key, owner
from tunesmith.api.conditions import find
from tunesmith.core.objects import Key, Object
from tunesmith.runtime.cache import Store
from tunesmith.runtime.client import ApiError, Conflict, Refused, Unseen
from tunesmith.runtime.events import Event
from tunesmith.runtime.reconcile import CONFLICT_PATIENCE, Reconciler
from tunesmith.runtime.revert_limiter import PAUSE, Corrections

Write = tuple[str, str]


class Double:
    """Remembers what is written and answers as the API server would.

    `refuse` names the verbs or objects that fail, and how, `refuse_status` a member that a status may not have; `inject` is what an injector
    makes of all that is applied.
    """

    def __init__(self) -> None:
        self.version = 100
        self.writes: list[Write] = []
        self.refuse: dict[str, Exception] = {}
        self.pods: list[Object] = []
        self.lists: list[str] = []
        self.inject: Object = {}
        self.unseen: list[Object] = []
        self.confirmed: list[str] = []
        self.refuse_status = ""

    async def write_status(self, owner: Object, status: Object) -> Object:
        if self.refuse_status and self.refuse_status in status:
            raise Refused(422, "Invalid", f"{self.refuse_status}: Invalid value")
        self._write("status", owner)
        return {**changed(owner, self.version), "status": status}

    async def confirm(self, owner: Object) -> None:
        self.confirmed.append(owner["metadata"]["name"])
        if "confirm" in self.refuse:
            raise self.refuse["confirm"]

    async def apply(self, obj: Object, live: Object | None) -> Object:
        if live is None and self.unseen:
            raise Unseen(self.unseen.pop())
        self._write("apply", obj)
        return changed(obj, self.version, uid=f"uid-{obj['metadata']['name']}") | self.inject

    async def create(self, obj: Object) -> Object:
        self._write("create", obj)
        return changed(obj, self.version, uid=f"uid-{obj['metadata']['name']}")

    async def delete(self, obj: Object) -> Object | None:
        self._write("delete", obj)
        return None

    async def pages(self, kind: str, namespace: str, selector: str) -> AsyncIterator[tuple[list[Object], int]]:
        self.lists.append(f"{kind} {selector}")
        yield self.pods, self.version

    def _write(self, verb: str, obj: Object) -> None:
        for refused in {verb, obj["metadata"]["name"]} & self.refuse.keys():
            raise self.refuse[refused]
        self.version += 1
        self.writes.append((verb, obj["metadata"]["name"]))


class Bench:
    """A reconciler on a double."""

    def __init__(self, *objects: Object) -> None:
        self.cluster = Double()
        self.store = Store({name: kind.references for name, kind in KINDS.items()})
        self.woken: list[Key] = []
        self.seconds = 0.0
        for obj in objects:
            self.store.put(obj)
        self.today = datetime(2026, 1, 1, tzinfo=UTC)
        cluster: Any = self.cluster
        self.announced: list[str] = []
        self.reconciler = Reconciler(KINDS, self.store, cluster, CONFIG, self.woken.append, lambda: self.today, lambda: self.seconds, self._announce)

    def _announce(self, owner: Object, told: Sequence[Event]) -> None:
        self.announced += [event.reason for event in told]

    async def run(self, obj: Object) -> list[Write]:
        """Reconcile once; return what was written."""
        self.cluster.writes.clear()
        await self.reconciler.reconcile(key(obj))
        return list(self.cluster.writes)

    def status(self, obj: Object) -> Object:
        """The recorded status."""
        stored = self.store.get(key(obj))
        assert stored is not None
        status: Object = stored["status"]
        return status


async def test_status_comes_first_then_what_is_applied_then_what_is_created() -> None:
    bench, tune = Bench(owner()), owner()
    assert await bench.run(tune) == [("status", "tune"), ("apply", "config"), ("create", "job")]


async def test_a_reconcile_with_nothing_changed_writes_nothing() -> None:
    bench, tune = Bench(owner()), owner()
    await bench.run(tune)
    assert await bench.run(tune) == [("status", "tune")]
    assert bench.status(tune)["phase"] == "Done"
    for _ in range(3):
        assert await bench.run(tune) == []


async def test_each_write_wakes_those_whom_it_concerns() -> None:
    run = owner("run", kind="EvalRun", names={"FineTuneJob": "tune"})
    bench, tune = Bench(owner(), run), owner()
    await bench.run(tune)
    assert set(bench.woken) == {key(tune), key(run)}


async def test_an_object_being_deleted_or_gone_is_left_to_garbage_collection() -> None:
    dying = changed(owner(), 5, deletionTimestamp="2026-01-01T00:00:00Z")
    assert await Bench(dying).run(dying) == []
    assert await Bench().run(owner()) == []


async def test_a_created_object_is_never_written_again_whatever_others_did_to_it() -> None:
    tune = owner()
    bench = Bench(tune, child("Job", "job", tune, spec={"suspend": True}))
    assert ("create", "job") not in await bench.run(tune)


async def test_an_edited_object_is_applied_again() -> None:
    bench, tune = Bench(owner()), owner()
    await bench.run(tune)
    await bench.run(tune)
    live = bench.store.get(Key("Service", "team", "config"))
    assert live is not None
    bench.store.put({**changed(live, 500), "spec": {"phase": "edited"}})
    assert await bench.run(tune) == [("apply", "config")]


async def test_what_is_there_unseen_is_looked_at_before_it_is_written() -> None:
    bench, tune = Bench(owner()), owner()
    bench.cluster.unseen = [child("Service", "config", tune, 50, spec={"phase": "edited"})]
    assert ("apply", "config") not in await bench.run(tune)
    assert bench.store.get(Key("Service", "team", "config")) is not None
    assert key(tune) in bench.woken
    assert ("apply", "config") in await bench.run(tune), "at once: nothing of it was put back before"


async def test_a_field_that_somebody_else_sets_again_and_again_is_put_back_once_a_minute() -> None:
    bench, tune = Bench(owner()), owner()
    await bench.run(tune)
    await bench.run(tune)

    def edit(version: int, **fields: Any) -> None:
        live = bench.store.get(Key("Service", "team", "config"))
        assert live is not None
        bench.store.put({**changed(live, version), **fields})

    edit(500, spec={"phase": "edited"})
    assert await bench.run(tune) == [("apply", "config")]
    bench.seconds += 15
    bench.cluster.version = 600
    edit(601, spec={"phase": "edited"})
    assert await bench.run(tune) == []
    assert await bench.reconciler.reconcile(key(tune)) == PAUSE - 15
    edit(602, spec={})
    assert await bench.run(tune) == [], "the same field, taken away"
    edit(603)
    bench.seconds += PAUSE - 15
    bench.cluster.version = 700
    assert await bench.run(tune) == [("apply", "config")]


async def test_a_field_that_was_not_put_back_lately_is_put_back_at_once() -> None:
    bench, tune = Bench(owner()), owner()
    await bench.run(tune)
    await bench.run(tune)
    config = bench.store.get(Key("Service", "team", "config"))
    assert config is not None
    bench.store.put({**changed(config, 500), "spec": {"phase": "edited"}})
    assert await bench.run(tune) == [("apply", "config")]
    bench.cluster.version = 600
    bench.store.put(changed(config, 601, labels={}))
    assert await bench.run(tune) == [("apply", "config")]


async def test_what_an_injector_changes_on_the_way_in_is_not_applied_again_at_once() -> None:
    bench, tune = Bench(owner()), owner()
    bench.cluster.inject = {"spec": {"phase": "injected"}}
    assert ("apply", "config") in await bench.run(tune)
    assert ("apply", "config") not in await bench.run(tune) + await bench.run(tune)
    bench.seconds += PAUSE
    assert await bench.run(tune) == [("apply", "config")]
    assert await bench.run(tune) == []


async def test_a_new_wish_is_carried_out_at_once_though_its_fields_were_just_put_back() -> None:
    corrections = Corrections(lambda: 0.0)
    corrections.note(Key("Service", "team", "config"), "old", {".spec.phase"})
    assert corrections.wait(Key("Service", "team", "config"), "old", {".spec.phase"}) == PAUSE
    assert corrections.wait(Key("Service", "team", "config"), "new", {".spec.phase"}) == 0.0


async def test_a_deletion_is_asked_for_once() -> None:
    tune = owner(drop="Job")
    dying = child("Job", "job", tune)
    dying["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert ("delete", "job") in await Bench(tune, child("Job", "job", tune)).run(tune)
    assert ("delete", "job") not in await Bench(tune, dying).run(tune)


async def test_a_pod_that_was_told_to_end_is_told_again_when_it_is_given_up() -> None:
    tune = owner(drop="Pod")
    pod = child("Pod", "pod", tune)
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:59Z"
    assert ("delete", "pod") in await Bench(tune, pod).run(tune)


async def test_nothing_is_done_when_the_status_could_not_be_written() -> None:
    bench, tune = Bench(owner()), owner()
    bench.cluster.refuse["status"] = Conflict(409, "Conflict", "the object has been modified")
    with pytest.raises(Conflict):
        await bench.run(tune)
    assert bench.cluster.writes == []


@pytest.mark.parametrize(
    ("fail", "reason", "condition"),
    [("status", "Impossible", "Stalled"), ("build", "Awaiting", "Reconciling"), ("dependency", "DependencyFailed", "Stalled")],
)
async def test_an_error_of_the_core_is_told_once_and_changes_nothing(fail: str, reason: str, condition: str) -> None:
    tune = owner(fail=fail)
    bench = Bench(tune)
    assert await bench.run(tune) == [("status", "tune")]
    told = find(bench.status(tune), condition)
    assert told is not None
    assert (told["status"], told["reason"]) == ("True", reason)
    assert await bench.run(tune) == []


async def test_a_refused_write_is_told_in_the_status_and_taken_back_when_it_succeeds() -> None:
    bench, tune = Bench(owner()), owner()
    bench.cluster.refuse["create"] = Refused(403, "Forbidden", "exceeded quota")
    for _ in range(2):
        with pytest.raises(Refused):
            await bench.run(tune)
    told = find(bench.status(tune), "Stalled")
    assert told is not None
    assert (told["status"], told["reason"]) == ("True", "Forbidden")
    bench.woken.clear()
    with pytest.raises(Refused):
        await bench.run(tune)
    assert bench.woken == []
    bench.cluster.refuse.clear()
    await bench.run(tune)
    assert key(tune) in bench.woken
    await bench.run(tune)
    told = find(bench.status(tune), "Stalled")
    assert told is not None
    assert told["status"] == "False"


async def test_a_refused_apply_keeps_no_deletion_from_happening() -> None:
    """What is superfluous may hold the GPUs, or the quota, that what is refused asks for."""
    tune = owner(drop="Deployment")
    bench = Bench(tune, child("Deployment", "old", tune), child("Deployment", "older", tune))
    bench.cluster.refuse = {"config": Refused(409, "NameConflict", "belongs to another"), "old": Refused(403, "Forbidden", "a webhook says no")}
    for seconds in (-CONFLICT_PATIENCE, 0.0):
        bench.seconds = seconds
        with pytest.raises(Refused, match="NameConflict"):
            await bench.run(tune)
    assert bench.store.children("uid-tune") == (child("Deployment", "old", tune),)
    with pytest.raises(Refused, match="NameConflict"):
        await bench.run(tune)
    told = find(bench.status(tune), "Stalled")
    assert told and (told["status"], told["reason"]) == ("True", "NameConflict"), "of several refusals the first is told"


async def test_after_a_refusal_what_is_there_is_kept_right_and_nothing_new_is_made() -> None:
    tune = owner(configs=["first", "refused", "there", "new"])
    bench = Bench(tune, child("Service", "there", tune, spec={"phase": "edited"}))
    bench.cluster.refuse["refused"] = Refused(403, "Forbidden", "exceeded quota")
    with pytest.raises(Refused):
        await bench.run(tune)
    assert bench.cluster.writes == [("status", "tune"), ("apply", "first"), ("apply", "there")]
    bench.cluster.refuse.clear()
    assert await bench.run(tune) == [("status", "tune"), ("apply", "refused"), ("apply", "new"), ("create", "job")]


async def test_a_taken_name_is_a_conflict_only_after_a_while() -> None:
    """The child of a namesake that was just deleted goes by itself."""
    bench, tune = Bench(owner()), owner()
    bench.cluster.refuse["apply"] = Refused(409, "NameConflict", "belongs to another")
    phases = []
    for seconds in (0.0, CONFLICT_PATIENCE / 2, CONFLICT_PATIENCE + 1, CONFLICT_PATIENCE + 2):
        bench.seconds = seconds
        with pytest.raises(Refused):
            await bench.run(tune)
        told = find(bench.status(tune), "Stalled")
        phases.append(told and told["status"])
    assert phases == ["False", "False", "False", "True"]


async def test_before_an_attempt_is_called_over_its_pods_are_looked_at_and_only_then() -> None:
    """The watch of pods may be behind that of Jobs: the pod that told the result has not been seen yet."""
    tune = owner(judge=True)
    bench = Bench(tune, child("Job", "job", tune))
    bench.cluster.pods = [child("Pod", "pod", tune)]
    await bench.run(tune)
    assert bench.cluster.lists == ["Pod tunesmith.dev/uid=uid-tune"]
    assert [entry["outcome"] for entry in bench.status(tune)["attempts"]] == ["Succeeded"]
    await bench.run(tune)
    assert len(bench.cluster.lists) == 1


async def test_a_pod_that_a_watch_tells_of_while_its_attempts_pods_are_looked_at_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    tune = owner(judge=True)
    bench = Bench(tune, child("Job", "job", tune))

    async def told_before_the_answer(kind: str, namespace: str, selector: str) -> AsyncIterator[tuple[list[Object], int]]:
        bench.store.put(child("Pod", "pod", tune))
        yield [child("Pod", "pod", tune)], bench.cluster.version

    monkeypatch.setattr(bench.cluster, "pages", told_before_the_answer)
    await bench.run(tune)
    assert [entry["outcome"] for entry in bench.status(tune)["attempts"]] == ["Succeeded"]


async def test_the_plan_says_when_to_look_again() -> None:
    tune = owner(wake=12.5)
    bench = Bench(tune)
    assert await bench.reconciler.reconcile(key(tune)) == 12.5


async def test_what_was_not_just_written_is_confirmed_before_anything_is_created_or_deleted() -> None:
    tune = owner()
    bench = Bench(tune)
    bench.cluster.refuse["create"] = ApiError(503, "ServiceUnavailable", "later")
    with pytest.raises(ApiError):
        await bench.run(tune)
    assert bench.cluster.confirmed == []
    bench.cluster.refuse = {"confirm": Conflict(409, "Stale", "it has changed")}
    with pytest.raises(Conflict):
        await bench.run(tune)
    assert bench.cluster.writes == []
    bench.cluster.refuse = {}
    assert await bench.run(tune) == [("create", "job")]
    assert bench.cluster.confirmed == ["tune", "tune"]


async def test_a_child_that_is_seen_to_go_before_its_owner_is_not_made_again() -> None:
    bench, tune = Bench(owner()), owner()
    await bench.run(tune)
    await bench.run(tune)
    config = bench.store.get(Key("Service", "team", "config"))
    assert config is not None
    bench.store.remove(config)
    bench.cluster.refuse = {"confirm": Conflict(409, "Conflict", "it is gone")}
    with pytest.raises(Conflict):
        await bench.run(tune)
    assert bench.cluster.writes == []
    bench.cluster.refuse = {}
    assert await bench.run(tune) == [("apply", "config")], "deleted by hand: the owner is still there"


async def test_a_status_that_the_server_refuses_is_told_in_a_condition_an_event_and_the_log(caplog: pytest.LogCaptureFixture) -> None:
    tune = owner()
    bench = Bench(tune)
    bench.cluster.refuse_status = "phase"
    with pytest.raises(Refused):
        await bench.run(tune)
    told = find(bench.status(tune), "Stalled")
    assert told and (told["status"], told["reason"], told["message"]) == ("True", "StatusRefused", "phase: Invalid value")
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    with pytest.raises(Refused):
        await bench.run(tune)
    assert (bench.cluster.writes, bench.announced) == ([], ["StatusRefused"]), "the refusal is told once, and nothing else is done"
    bench.cluster.refuse_status = ""
    await bench.run(tune)
    stalled = find(bench.status(tune), "Stalled")
    assert stalled and stalled["status"] == "False"
