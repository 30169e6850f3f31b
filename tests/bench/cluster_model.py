"""A cluster for `goodput.py`: what schedulers, kubelets and controllers do to a training's pods, as events on a simulated clock.

What decides is the operator's own code: `World.step` runs FineTuneJob's `status` and `build` and carries out the plan. Only what is
around it is modelled: when a pod runs, what a fault does to it, and what the Job, node and taint controllers then say.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tests.unit.operator.makers import START, World, answer, checkpoint, finetunejob, refusal
from tunesmith.api.conditions import timestamp
from tunesmith.core.objects import Object, Observed
from tunesmith.finetunejob.build import build
from tunesmith.finetunejob.status import status
from tunesmith.stages.attempt import StageKey, attempt_of
from tunesmith.workload import podspec as manifests
from tunesmith.workload.observation import is_finished
from tunesmith.workload.podstatus import is_live

TRAIN = StageKey("Train")
KEPT = 3
"""Attempts whose Jobs and pods stay in view."""


@dataclass(frozen=True)
class Setting:
    """The training and the machines; seconds unless said."""

    days: float = 7
    nodes: int = 8
    spares: int = 1
    """Nodes that stand by."""
    min_nodes: int = 0
    """Down to so many an attempt may shrink that does not find all nodes; 0: it may not."""
    repair: float = 900
    """Until a node that stopped is back."""
    between_faults: float = 3 * 3600
    """Mean of an exponential distribution, over all nodes together."""
    step: float = 6
    every_steps: int = 20
    """Steps between checkpoints; 0: none, not even on SIGTERM."""
    saving: float = 1
    """How long a checkpoint holds the training up."""
    scheduling: float = 5
    """From a Job to running containers, where there are nodes; the image is there."""
    loading: float = 60
    """From running containers to the first step: imports, weights, rendezvous, checkpoint."""
    watchdog: float = 60
    """Until the other processes give up on one that is silent."""
    closed: float = 5
    """Until the other processes notice that one has ended."""
    echo: float = 30
    """For which a pod that only lost its peers lets these speak first."""
    seed: int = 0


FAULTS = {"node stops": 0.4, "pod preempted": 0.2, "collective fails": 0.2, "process killed": 0.1, "process hangs": 0.1}
"""Share of each fault."""


@dataclass
class Attempt:
    """When what happened to one attempt of Train, in seconds from the start."""

    number: int
    nodes: int
    created: float
    base: int
    """Steps in the checkpoint that it starts from."""
    running: float | None = None
    """All of its pods run."""
    loaded: float | None = None
    """It does its first step."""
    struck: float | None = None
    """It did its last."""
    saved_at_end: bool = False


@dataclass(frozen=True)
class Steps:
    """What an attempt did."""

    done: int
    saved: int
    """Of these, the ones in a checkpoint."""
    saving: float
    """Seconds for which checkpoints held it up."""


class Cluster(World):
    """One FineTuneJob on nodes that fail."""

    def __init__(self, setting: Setting) -> None:
        parallelism = {"nodes": setting.nodes, "minNodes": setting.min_nodes or setting.nodes, "ddp": {}}
        # A batch that can be spread evenly over seven nodes, too.
        batch = {"perDeviceTrainBatchSize": 4, "gradientAccumulationSteps": 7}
        super().__init__(status, build, finetunejob(parallelism=parallelism, training=batch, resources={"gpus": 8}, retries=100))
        self.setting = setting
        self.random = random.Random(setting.seed)
        self.seconds = 0.0
        self.attempts: list[Attempt] = []
        self.saved = 0
        """Steps in the newest checkpoint."""
        self.faults: list[str] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._free = {f"node-{number}" for number in range(setting.nodes + setting.spares)}

    def run_until(self, end: float) -> Cluster:
        """Let time pass up to `end` seconds."""
        if not self.created:
            self.reconcile()
            self.end("Prepare", answer("Prepare"))
            self.reconcile()
            self._at(self.random.expovariate(1 / self.setting.between_faults), self.strike)
        while self._events and self._events[0][0] <= end:
            self.seconds, _, happen = heapq.heappop(self._events)
            self.now = START + timedelta(seconds=self.seconds)
            happen()
            self.reconcile()
        self.seconds = end
        return self

    def observed(self) -> Observed:
        """What the operator sees; without the copies that would catch a core that changes what it is shown: they take most of the time."""
        return Observed(self.owner, self.now, self.config, tuple(self.children.values()), self.references)

    def reconcile(self) -> None:
        """Let the operator look at things until it has nothing more to do, and wake it when it asked for that."""
        while True:
            before, made = json.dumps(self.owner["status"]), len(self.created)
            self.step()
            for _ in self.created[made:]:
                self._job_made(self.job(*self._newest()))
            if json.dumps(self.owner["status"]) == before and len(self.created) == made and not self.plan.delete:
                break
        if self.plan.wake_after is not None:
            self._at(self.plan.wake_after, lambda: None)

    def remove(self, kind: str, name: str) -> World:
        """The operator deletes something: a Job's pods get the grace period, a pod that is given up is gone at once."""
        gone = self.children.pop((kind, name))
        if kind == "Job":
            self._end_gracefully(gone)
            self._at(2, lambda: self._end(self._pods(), 75, "Interrupted"))
        if kind == "Pod":
            self._free_node(gone)
            self._follow_up(gone["metadata"]["labels"])
        return self

    def strike(self, fault: str = "") -> None:
        """A fault hits a running pod of the training, if there is one; and the next one is drawn."""
        if not fault:
            self._at(self.random.expovariate(1 / self.setting.between_faults), self.strike)
            fault = self.random.choices(list(FAULTS), list(FAULTS.values()))[0]
        attempt = self.attempts[-1]
        victims = [pod for pod in self._pods() if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]]
        if attempt.struck is not None or not victims:
            return
        self.faults.append(fault)
        victim = self.random.choice(sorted(victims, key=lambda pod: str(pod["metadata"]["name"])))
        if fault == "pod preempted":
            self._preempt(attempt, victim)
            return
        attempt.struck = self.seconds
        self.saved += self.steps(attempt).saved
        others = [pod for pod in self._pods() if pod is not victim]
        if fault == "node stops":
            self._stop_node(victim, others)
        elif fault == "process hangs":
            self._at(self.setting.watchdog, lambda: self._end(self._pods(), 69, "Hung"))
        else:
            code, reason, after = (70, "ProcessLost", 1.0) if fault == "process killed" else (69, "PeerUnavailable", self.setting.echo)
            self._at(after, lambda: self._end([victim], code, reason))
            self._at(max(after, self.setting.closed), lambda: self._end(others, 69, "PeerUnavailable"))

    def steps(self, attempt: Attempt) -> Steps:
        """What the attempt has done up to its end, or up to now."""
        if attempt.loaded is None:
            return Steps(0, 0, 0.0)
        setting = self.setting
        each = setting.step * setting.nodes / attempt.nodes
        took = (self.seconds if attempt.struck is None else attempt.struck) - attempt.loaded
        if not setting.every_steps:
            return Steps(int(took // each), 0, 0.0)
        if attempt.saved_at_end:
            took -= setting.saving
        cycle = setting.every_steps * each + setting.saving
        whole, rest = divmod(took + 1e-6, cycle)
        begun = min(rest, setting.every_steps * each)
        done = int(whole) * setting.every_steps + int(begun // each)
        saves = int(whole) + attempt.saved_at_end
        return Steps(done, done if attempt.saved_at_end else int(whole) * setting.every_steps, saves * setting.saving + rest - begun)

    def _at(self, delay: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.seconds + delay, next(self._order), happen))

    def _newest(self) -> StageKey:
        return attempt_of(self.children["Job", self.created[-1]])[0]

    def _pods(self) -> list[Object]:
        """Live pods of the newest attempt."""
        number = str(self.attempts[-1].number)
        pods = [child for child in self.children.values() if child["kind"] == "Pod" and is_live(child)]
        return [pod for pod in pods if pod["metadata"]["labels"]["tunesmith.dev/attempt"] == number]

    def _job_made(self, job: Object) -> None:
        key, number = attempt_of(job)
        if key != TRAIN:
            return
        for old in [key for key, child in self.children.items() if key[0] in ("Job", "Pod") and attempt_of(child)[1] <= number - KEPT]:
            del self.children[old]
        self.attempts.append(Attempt(number, job["spec"]["parallelism"], self.seconds, self.saved))
        self.run("Train", phase="Pending")
        self._at(self.setting.scheduling, self._place)

    def _place(self) -> None:
        """The scheduler looks at the pods that wait, and the kubelets start those that have a node."""
        attempt, pods = self.attempts[-1], self._pods()
        if self.seconds - attempt.created < self.setting.scheduling - 1e-6:
            return  # A node has become free, but nobody has looked at these pods yet.
        for pod in pods:
            if pod["status"]["phase"] == "Pending" and "deletionTimestamp" not in pod["metadata"]:
                self._bind(pod)
        running = [pod for pod in pods if pod["status"]["phase"] == "Running"]
        if len(running) == attempt.nodes and attempt.running is None and attempt.struck is None:
            attempt.running = self.seconds
            self._at(self.setting.loading, lambda: self._load(attempt))

    def _bind(self, pod: Object) -> None:
        scheduled = {"type": "PodScheduled", "lastTransitionTime": timestamp(self.now)}
        if self._free:
            pod["spec"] = {"nodeName": self._take()}
            ready = [{"type": name, "status": "True", "lastTransitionTime": timestamp(self.now)} for name in ("ContainersReady", "Ready")]
            pod["status"] = {"phase": "Running", "conditions": [scheduled | {"status": "True"}, *ready]}
        elif "conditions" not in pod["status"]:
            pod["status"]["conditions"] = [scheduled | {"status": "False", "reason": "Unschedulable", "message": "no node is free"}]

    def _take(self) -> str:
        node = min(self._free)
        self._free.remove(node)
        return node

    def _free_node(self, pod: Object) -> None:
        node = pod.get("spec", {}).get("nodeName")
        if node and not pod.get("stopped"):
            self._free.add(node)
            self._at(1, self._place)

    def _load(self, attempt: Attempt) -> None:
        if attempt.struck is None and len([pod for pod in self._pods() if "deletionTimestamp" not in pod["metadata"]]) == attempt.nodes:
            attempt.loaded = self.seconds

    def _preempt(self, attempt: Attempt, victim: Object) -> None:
        """SIGTERM to one pod: all save at the end of the step."""
        disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "a more important pod"}
        victim["status"]["conditions"].append(disrupted)
        self._mark_deleted(victim)
        delay = 1.0
        saves = attempt.loaded is not None and self.setting.every_steps > 0
        if saves and attempt.loaded is not None:
            each = self.setting.step * self.setting.nodes / attempt.nodes
            attempt.struck = self.seconds
            done = self.steps(attempt)
            worked = self.seconds - attempt.loaded - done.saving
            delay = each - (worked - done.done * each) + self.setting.saving
        attempt.struck, attempt.saved_at_end = self.seconds + delay, saves
        self.saved += self.steps(attempt).saved
        told: dict[str, Any] = {"checkpoint": checkpoint(attempt.number, self.saved)} if saves else {}
        self._at(delay, lambda: self._end(self._pods(), 75, "Interrupted", **told))

    def _stop_node(self, victim: Object, others: list[Object]) -> None:
        """The node is silent: its peers give up, and after 40 to 60 s the node controller marks and taints it."""
        victim["stopped"] = True
        node = victim["spec"]["nodeName"]
        self._at(self.setting.repair, lambda: self._repaired(node))
        self._at(self.setting.watchdog, lambda: self._end(others, 69, "Hung"))

        def mark() -> None:
            for condition in victim["status"]["conditions"]:
                if condition["type"] == "Ready":
                    condition |= {"status": "False", "lastTransitionTime": timestamp(self.now)}
            self._at(manifests.TRAINING_UNREACHABLE_SECONDS, taint)

        def taint() -> None:
            if "deletionTimestamp" not in victim["metadata"]:
                disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": "tainted"}
                victim["status"]["conditions"].append(disrupted)
                self._mark_deleted(victim)
                self._follow_up(victim["metadata"]["labels"])

        self._at(self.random.uniform(40, 60), mark)

    def _repaired(self, node: str) -> None:
        self._free.add(node)
        self._place()

    def _end(self, pods: list[Object], code: int, reason: str, **facts: Any) -> None:
        """The containers of these pods end and tell why."""
        for pod in [pod for pod in pods if is_live(pod) and not pod.get("stopped")]:
            attempt = self.attempts[-1]
            # Where nothing is ever saved the operator would soon give up, and there would be nothing to compare with.
            begun_at = attempt.base if self.setting.every_steps else attempt.number
            place = {"resumedFromStep": begun_at} if attempt.loaded is not None else {}
            told = refusal("Train", code, reason, "simulated", "Interrupted" if code == 75 else "Failed", **place | facts)
            ended = {"exitCode": code, "reason": "Error", "message": json.dumps(told)}
            pod["status"] |= {"phase": "Failed", "containerStatuses": [{"name": "stage", "state": {"terminated": ended}}]}
            self._free_node(pod)
            self._follow_up(pod["metadata"]["labels"])

    def _follow_up(self, labels: Object) -> None:
        """The Job controller: one pod failed, so all are to end; when all have, so has the Job."""
        job = next((child for child in self.children.values() if child["kind"] == "Job" and child["metadata"]["labels"] == labels), None)
        if job is None or is_finished(job):
            return
        self._end_gracefully(job)
        if not any(is_live(pod) for pod in self.children.values() if pod["kind"] == "Pod" and pod["metadata"]["labels"] == labels):
            job["status"] = {"conditions": [{"type": "Failed", "status": "True"}]}

    def _end_gracefully(self, job: Object) -> None:
        """All live pods of the Job are asked to end; those that never began are gone."""
        for key, pod in list(self.children.items()):
            if key[0] == "Pod" and pod["metadata"]["labels"] == job["metadata"]["labels"] and is_live(pod):
                self._mark_deleted(pod)
                if pod["status"]["phase"] == "Pending":
                    del self.children[key]

    def _mark_deleted(self, pod: Object) -> None:
        if "deletionTimestamp" not in pod["metadata"]:
            grace = 120
            pod["metadata"] |= {"deletionTimestamp": timestamp(self.now + timedelta(seconds=grace)), "deletionGracePeriodSeconds": grace}
