"""Killed after any write and run again, the operator comes to the same end and makes nothing twice.

The controller runs in this process, fed by its relists alone. That makes "after the n-th write" exact, and shows beside it that a
missed watch event is a delay and no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress

from kubernetes.aio import config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from dev.bench.life import CHILDREN
from dev.cluster.controlplane import ControlPlane
from tests.integration.operators import FINE_TUNE_JOB, Namespace, OperatorProcess, play_all
from tests.integration.schema_server import Server
from tunesmith.cluster import JSON, Cluster, Query
from tunesmith.controller import Controller
from tunesmith.kinds import KINDS
from tunesmith.settings import Settings
from tunesmith.values import Images, Object

WRITES_OF_A_LIFE = 20
"""The writes that a FineTuneJob without variants takes, or a few more."""


class Killed(BaseException):
    """No Exception, so that nothing may catch it: the process is dead."""


class Mortal(Cluster):
    """Dies with its n-th write: the server has taken it, nobody sees the answer. 0: lives. Events come beside the work and are not counted."""

    def __init__(self, client: ApiClient, dies_at: int = 0) -> None:
        super().__init__(client)
        self.dies_at = dies_at
        self.writes = 0

    async def request(self, method: str, path: str, body: Object | None = None, query: Query = (), content_type: str = JSON) -> Object:
        """A request; a write counts."""
        if self.dies_at and self.writes >= self.dies_at:
            raise Killed
        answer = await super().request(method, path, body, query, content_type)
        if path.endswith("/events"):
            return answer
        self.writes += method != "GET"
        if self.dies_at and self.writes >= self.dies_at:
            raise Killed
        return answer


def controller(space: Namespace, cluster: Cluster) -> Controller:
    """An operator of that namespace alone."""
    settings = Settings(images=Images("trainer:1", "serving:1"), namespaces=(space.name,), resync_seconds=0.5)
    return Controller(settings, cluster, KINDS)


def user(space: Namespace) -> Object:
    """What a user and a kubelet do: ask for a FineTuneJob and run its pods. Returns the end that it comes to."""
    space.claim("models")
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    play_all(space, tune)
    space.wait_condition("FineTuneJob", "tune", "Finished")
    return end(space, tune)


async def live(client: ApiClient, space: Namespace, threads: Executor, dies_at: int) -> tuple[Object, int]:
    """Take a FineTuneJob to its end, with an operator that dies once on the way; return that end and the writes it took."""
    ending = asyncio.get_running_loop().run_in_executor(threads, user, space)
    processes = [Mortal(client, dies_at), Mortal(client)]
    for process in processes:
        run = asyncio.create_task(controller(space, process).run())
        await asyncio.wait((ending, run), return_when=asyncio.FIRST_COMPLETED)
        run.cancel()
        with suppress(asyncio.CancelledError, BaseExceptionGroup, Killed):
            await run
    return await ending, sum(process.writes for process in processes)


def end(space: Namespace, tune: Object) -> Object:
    """What must be the same after every life: what exists, and what the status tells, without times and uids."""
    status = space.status("FineTuneJob", "tune")
    uid = tune["metadata"]["uid"][:5]
    return {
        "children": sorted(name.replace(uid, "uid") for name in space.names(*(kind for kind in CHILDREN if kind != "Pod"))),
        "pods": len(space.all("Pod")),
        "attempts": [(entry["stage"], entry["attempt"], entry["outcome"]) for entry in status["attempts"]],
        "artifacts": status["artifacts"],
        "conditions": [(entry["type"], entry["status"], entry["reason"]) for entry in status["conditions"]],
    }


async def test_killed_after_any_write_and_run_again_the_end_is_the_same_and_nothing_is_made_twice(
    operator_process: OperatorProcess, api: Server, control_plane: ControlPlane, new_namespace: Callable[[], str]
) -> None:
    operator_process.stop()
    configuration = Configuration()
    await config.load_kube_config(str(control_plane.kubeconfig), client_configuration=configuration)
    spaces = [Namespace(api, new_namespace(), interval=0.2) for _ in range(WRITES_OF_A_LIFE + 1)]
    async with ApiClient(configuration) as client:
        with ThreadPoolExecutor(1) as threads:
            # One after another: side by side in this one process, a life was seen to stand still in every other run.
            (reference, needed), *others = [await live(client, space, threads, dies_at) for dies_at, space in enumerate(spaces)]
    assert needed <= WRITES_OF_A_LIFE, "else the last writes would not have been cut off"
    assert [ending for ending, _ in others] == [reference] * len(others)
    assert reference["attempts"] == [(stage, 1, "Succeeded") for stage in ("Prepare", "Train", "Finalize")]
