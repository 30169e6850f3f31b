"""Random lives of a FineTuneJob: whatever happens in whatever order, the laws hold (docs/DESIGN.md section 2)."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable

import pytest

from tests.unit.operator.finetunejobs import avoided_by
from tests.unit.operator.makers import World, answer, finetunejob, refusal, variant
from tunesmith.core.objects import Object
from tunesmith.finetunejob.build import build
from tunesmith.finetunejob.status import status
from tunesmith.stages.attempt import attempt_of, key_of
from tunesmith.stages.tracker import ATTEMPTS_KEPT
from tunesmith.workload.observation import is_finished
from tunesmith.workload.podstatus import is_live

RETRIES = 3
SPEC: Object = {"retries": RETRIES, "resources": {"gpus": 3}, "parallelism": {"nodes": 2, "ddp": {}}, "variants": [variant("w8a8")]}


class Walk:
    """One random life; `check` is called after every reconcile."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = World(status, build, finetunejob(**SPEC))
        self.finished: set[str] = set()
        self.end: Object | None = None

    def jobs(self) -> list[Object]:
        return [child for child in self.world.children.values() if child["kind"] == "Job"]

    def unfinished(self) -> Object | None:
        return self.random.choice([job for job in self.jobs() if not is_finished(job)] or [None])

    def run(self) -> None:
        if (job := self.unfinished()) and not self.world.pods(*attempt_of(job)[0]):
            self.world.run(*attempt_of(job)[0])
            for pod in self.world.pods(*attempt_of(job)[0]):
                pod["spec"] = {"nodeName": self.random.choice("abcdef")}

    def tell(self) -> None:
        if job := self.unfinished():
            key, attempt = attempt_of(job)
            lost = refusal(key.name, 75, "Interrupted", outcome="Interrupted")
            faults = [refusal(key.name, 69, reason) for reason in ("DeviceUnavailable", "DeviceFailed", "CommunicationFailed")]
            told = self.random.choice([answer(key.name, key.part, attempt)] * 5 + [None, lost, refusal(key.name, 70, "InternalError"), *faults])
            self.world.end(key.name, told, key.part)

    def delete(self) -> None:
        if self.world.children:
            self.world.remove(*self.random.choice(sorted(self.world.children)))

    def suspend(self) -> None:
        self.world.edit(suspend=not self.world.owner["spec"].get("suspend", False))

    def step(self) -> None:
        before = copy.deepcopy(self.world.owner["status"])
        self.world.step()
        if self.end:
            assert self.world.truths() == self.end
        self.check()
        if self.world.condition("Finished")["status"] == "True":
            self.end = self.world.truths()
        self.finished |= {name for name, state in self.world.states().items() if state == "Succeeded"}
        assert self.finished == {name for name, state in self.world.states().items() if state == "Succeeded"}
        further = self.world.status.get("lastCheckpoint", {}).get("step", 0) > before.get("lastCheckpoint", {}).get("step", 0)
        assert (0 if further else before.get("retriesSpent", 0)) <= self.world.status["retriesSpent"] <= RETRIES + 1

    def check(self) -> None:
        children = self.world.children.values()
        alive = {
            attempt_of(child)
            for child in children
            if (child["kind"] == "Job" and not is_finished(child)) or (child["kind"] == "Pod" and is_live(child))
        }
        assert max(Counter(key for key, _ in alive).values(), default=0) <= 1, "two attempts of a stage are alive"
        assert not {str(attempt_of(job)[0]) for job in self.world.plan.create} & self.finished, "a finished stage runs again"
        if self.world.truths()["Suspended"] == "True":
            assert not alive, "suspended, but something lives"
        for job in self.world.plan.create:
            (entry,) = (entry for entry in self.world.status["stages"] if key_of(entry) == attempt_of(job)[0])
            assert avoided_by(job) == entry.get("avoidNodes", []), "a Job avoids other nodes than are on record"
        self.check_account()

    def check_account(self) -> None:
        """No GPU-second is counted twice, and none is forgotten."""
        attempts = self.world.status["attempts"]
        if len(attempts) < ATTEMPTS_KEPT:
            held, queued = (sum(each.get("gpus", 0) * each[name] for each in attempts) for name in ("runningSeconds", "queuedSeconds"))
            account = self.world.status.get("gpuSeconds", {"useful": 0, "queued": 0, "lost": 0})
            assert (account["useful"] + account["lost"], account["queued"]) == (held, queued)
            assert min(account.values()) >= 0

    def deeds(self) -> list[Callable[[], object]]:
        pause = lambda: self.world.later(20)  # noqa: E731
        return [*[self.run] * 3, *[self.tell] * 4, self.delete, self.suspend, self.world.vanish, self.world.vanish, pause, *[self.step] * 8]


@pytest.mark.parametrize("seed", range(20))
def test_the_laws_hold_and_the_job_comes_to_an_end(seed: int) -> None:
    walk = Walk(seed)
    walk.step()
    for _ in range(40):
        walk.random.choice(walk.deeds())()
    walk.world.edit(suspend=False)
    for _ in range(60):
        for deed in (walk.run, walk.tell, walk.world.vanish, lambda: walk.world.later(300), walk.step):
            deed()
        if walk.end:
            break
    walk.step()
    assert walk.end
