"""GPU-seconds: what an attempt held, for how long it waited, and what of it was of use.

The rule, from recorded facts alone, in whole seconds:

- An attempt waits from its beginning, and again after a queue took its pods away, until all its pods run: `queued` is that time,
  times the GPUs that its Job asks for.
- From then on until no pod of it lives it holds its GPUs. What is held is either `useful` or `lost`.
- Train earns with steps. An attempt that tells a checkpoint tells how fast it trained; each optimizer step that this checkpoint adds to
  the one told before is worth the seconds that a step took it, whichever attempt ran the step. All else that training held is lost:
  start-up, steps after the last checkpoint that was resumed from, attempts that ended without a trace.
- Any other stage earns what its successful attempt held.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from tunesmith.api.conditions import timestamp
from tunesmith.core.objects import Object
from tunesmith.workload.podstatus import container_in, container_of, moment
from tunesmith_contract.results import Result, Trained

Entry = Mapping[str, Any]


def asked(job: Object) -> dict[str, int]:
    """`{gpus}` that the pods of a Job ask for together; empty if they ask for none.

    Whatever device is named: an extended resource has a domain in its name and whole numbers for amounts, what nodes have by themselves has not.
    Only of our own container: others may be injected.
    """
    spec, limits = job["spec"], _limits(job)
    devices = sum(int(amount) for name, amount in limits.items() if "/" in name and str(amount).isdecimal())
    return {"gpus": devices * int(spec.get("parallelism", 1))} if devices else {}


def memory(job: Object | None) -> str:
    """The limit of host memory of the container that `asked` is about; empty if there is no Job to read it from."""
    return str(_limits(job).get("memory", "")) if job else ""


def _limits(job: Object) -> Mapping[str, Any]:
    limits: Mapping[str, Any] = (container_in(job).get("resources") or {}).get("limits") or {}
    return limits


def entered(entry: Entry, state: str, pods: Sequence[Object], now: datetime) -> dict[str, Any]:
    """What changes in the entry of an attempt under way that is now in `state` (Pending or Running)."""
    if state == entry["state"]:
        return {}
    if state == "Running":
        return {"state": state, "stateTime": timestamp(_started(pods, entry, now) or now)}
    return {"state": state, "stateTime": timestamp(now), "ranSeconds": ran_seconds(entry, now)}


def since(entry: Entry) -> datetime:
    """When the attempt under way came into its state."""
    return moment(entry.get("stateTime") or entry["attemptStartTime"])


def ran_seconds(entry: Entry, until: datetime) -> int:
    """Seconds for which the attempt under way has held its GPUs."""
    running = int((until - since(entry)).total_seconds()) if entry["state"] == "Running" else 0
    return int(entry.get("ranSeconds", 0)) + max(0, running)


def used(entry: Entry, pods: Sequence[Object], now: datetime) -> dict[str, int]:
    """What an attempt that has ended adds to its record: `{gpus?, queuedSeconds, runningSeconds}`."""
    over = _ended(pods, now)
    if entry["state"] == "Pending" and (started := _started(pods, entry, now)):
        # It began and ended while nobody looked.
        entry = {**entry, "state": "Running", "stateTime": timestamp(started)}
    running = ran_seconds(entry, over)
    whole = int((over - moment(entry["attemptStartTime"])).total_seconds())
    seconds = {"queuedSeconds": max(0, whole - running), "runningSeconds": running}
    return ({"gpus": entry["gpus"]} if entry.get("gpus") else {}) | seconds


def held(recorded: Mapping[str, Any], now: datetime) -> int:
    """GPU-seconds that an object has held so far, the attempts under way included."""
    told = recorded.get("gpuSeconds", {})
    under_way = [entry for entry in recorded.get("stages", ()) if entry["state"] in ("Pending", "Running")]
    return sum(int(told.get(name, 0)) for name in ("useful", "lost")) + sum(
        int(entry.get("gpus", 0)) * ran_seconds(entry, now) for entry in under_way
    )


def account(recorded: Mapping[str, Any], attempts: Iterable[Entry], trained: Result | None) -> dict[str, int]:
    """`status.gpuSeconds` once `attempts` are on record; `trained`: what Train told just now. Empty if no GPU was ever asked for."""
    told = recorded.get("gpuSeconds", {})
    useful, queued, lost = (int(told.get(name, 0)) for name in ("useful", "queued", "lost"))
    known = recorded.get("attempts", ())
    any_gpu = bool(told)
    for attempt in (attempt for attempt in attempts if attempt not in known and "gpus" in attempt):
        any_gpu = True
        gpus, busy = attempt["gpus"], attempt["gpus"] * attempt["runningSeconds"]
        queued += gpus * attempt["queuedSeconds"]
        if attempt["stage"] != "Train":
            earned = busy if attempt["outcome"] == "Succeeded" else 0
        elif isinstance(trained, Trained):
            earned = int(gpus * _worth(recorded, trained, attempt["runningSeconds"]))
        else:
            earned = 0
        # Steps of earlier attempts count too, hence may exceed what this one held, but never what all of them did.
        earned = min(earned, lost + busy)
        useful, lost = useful + earned, lost + busy - earned
    return {"useful": useful, "queued": queued, "lost": lost} if any_gpu else {}


def _worth(recorded: Mapping[str, Any], trained: Trained, running: int) -> float:
    """Seconds that the steps were worth which Train's answer adds to those told before."""
    if trained.checkpoint is None:
        return 0.0
    paid = next((int(entry.get("checkpointStep", 0)) for entry in recorded.get("stages", ()) if entry["name"] == "Train"), 0)
    kept = trained.checkpoint.step - paid
    done = (trained.global_step or trained.checkpoint.step) - (trained.resumed_from_step or 0)
    seconds = running if trained.train_runtime_seconds is None else trained.train_runtime_seconds
    return max(0, kept) * seconds / done if done > 0 else 0.0


def _started(pods: Sequence[Object], entry: Entry, now: datetime) -> datetime | None:
    """When the last of the stage's containers began, as their kubelets tell; None if none tells. Never before the attempt or after now."""
    told = [at for pod in pods if (at := _state(pod).get("startedAt"))]
    if not told:
        return None
    return min(now, max(moment(entry["attemptStartTime"]), *map(moment, told)))


def _ended(pods: Sequence[Object], now: datetime) -> datetime:
    """When the last of the stage's containers ended, as their kubelets tell; now where one does not tell."""
    told = [_state(pod).get("finishedAt") or timestamp(now) for pod in pods if container_of(pod)]
    return min(now, max(map(moment, told), default=now))


def _state(pod: Object) -> dict[str, Any]:
    """The running or terminated state of our container; empty where the kubelet has reported neither."""
    state = container_of(pod).get("state") or {}
    return dict(state.get("running") or state.get("terminated") or {})
