"""`make bench-operator`: what the operator costs and how fast it is, on a real API server and controller-manager.

    python -m tests.bench.operator [--sizes 200 1000] [--lives 200] [--rate 10] [--seconds 5] [--idle 60] [--json FILE]

The figures are read from the API server's audit log and from /proc. Nodes are fake: pods are bound by the real scheduler, run and
end because the bench says so. kube-controller-manager keeps its default client limits (20 requests a second for each controller),
which is what most of a burst's wait for pods is, so what is timed ends at the child Job, which is ours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dev.bench.audit import READS, Audit
from dev.bench.view import Client, wait_until
from dev.cluster.controlplane import ControlPlane
from tests.bench.kubelet import Kubelet, make_nodes
from tests.integration.operators import FINE_TUNE_JOB, OperatorProcess
from tests.integration.schema_server import Server
from tunesmith.api.conditions import is_true

NAMESPACE = "bench"
JOBS = f"/apis/tunesmith.dev/v1alpha1/namespaces/{NAMESPACE}/finetunejobs"
CHILDREN = ("jobs", "services")
TICKS = os.sysconf("SC_CLK_TCK")
# Seconds. The pauses are long: reading the audit log takes from what is measured.
PATIENCE, PAUSE = 900.0, 5.0
FLAGS = ("--node-monitor-grace-period=2h",)

REFERENCE = {
    "writes, whole life": "12.7 (16 one at a time)",
    "webhook calls": "6",
    "CPU, ms an object": "45",
    "peak memory, MiB": "217 for 1000",
    "burst: create to Job, p50 / p99, s": "4.6 / 7.1 for 200",
    "one at a time: create to Job, p50, ms": "35",
}
"""Kubeflow Trainer 2.3 with JobSet, measured the same way on such a machine (fake nodes, the same default client limits)."""

AIM = {
    "writes, whole life": "<= 6 beside children and Events",
    "GETs, whole life": "0",
    "CPU, ms an object": "<= 20",
    "peak memory, MiB": "< 120 at 1000",
    "10 a second: create to Job, p50 / p99, ms": "p99 < 1000",
    "idle: writes but the Lease's": "0",
    "idle: CPU, % of a core": "<= 0.5",
    "restart: writes but the Lease's": "0",
}

Rows = dict[str, str]


@dataclass
class Bench:
    """One control plane with an operator, to be loaded."""

    control_plane: ControlPlane
    api: Client
    operator: OperatorProcess
    made: int = 0
    rows: Rows = field(default_factory=dict)

    def audit(self) -> Audit:
        """What is asked from now on."""
        return Audit(self.control_plane.audit_log)

    async def create(self, count: int, rate: float | None) -> list[str]:
        """Make FineTuneJobs, so many a second (None: as fast as the API server takes them); their names."""
        names = [f"tune-{number}" for number in range(self.made, self.made + count)]
        self.made += count
        start, pending = time.monotonic(), []
        for number, name in enumerate(names):
            body = {"apiVersion": "tunesmith.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}, "spec": FINE_TUNE_JOB}
            if rate:
                await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
            pending.append(asyncio.create_task(self.api.write("POST", JOBS, body)))
        await asyncio.gather(*pending)
        return names

    async def wait_jobs(self, audit: Audit, names: Sequence[str], pause: float = PAUSE) -> list[float]:
        """Seconds from each FineTuneJob's request to its first child Job's answer, sorted."""

        async def latencies() -> list[float]:
            jobs = audit.created("jobs")
            first = {name.partition("-prepare-")[0]: there for name, (_, there) in jobs.items() if "-prepare-1-" in name}
            if not first.keys() >= set(names):
                return []
            asked = audit.created("finetunejobs")
            return sorted(first[name] - asked[name][0] for name in names)

        return await wait_until(latencies, "a Job of each", PATIENCE, pause)

    async def wait_finished(self, names: Sequence[str]) -> None:
        """Wait until all are Finished."""

        async def finished() -> bool:
            items = (await self.api.send("GET", JOBS))[1]["items"]
            return {item["metadata"]["name"] for item in items if is_true(item.get("status", {}), "Finished")} >= set(names)

        await wait_until(finished, "all to be Finished", PATIENCE, PAUSE)


@asynccontextmanager
async def bench(seconds: float | None) -> AsyncIterator[Bench]:
    """A fresh control plane with fake nodes whose pods end after `seconds` (None: never), and the operator."""
    with tempfile.TemporaryDirectory() as folder:
        with ControlPlane(Path(folder) / "control-plane", controller_manager_flags=FLAGS) as control_plane:
            Server.with_kinds(control_plane)
            async with Client(control_plane, connections=50) as api:
                await api.write("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
                claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}, "volumeName": "models"}
                path = f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims"
                body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"}, "spec": claim}
                await bind(api, await api.write("POST", path, body))
                await wait_until(partial(is_bound, api, f"{path}/models"), "the claim to be bound", PATIENCE, PAUSE)
                await make_nodes(api)
                operator = OperatorProcess(control_plane, Path(folder))
                # As in the chart; the tests have it shorter.
                del operator.environment["TUNESMITH_RESYNC_SECONDS"]
                operator.start()
                kubelet = asyncio.create_task(Kubelet(api, seconds).run())
                try:
                    yield Bench(control_plane, api, operator)
                finally:
                    kubelet.cancel()
                    operator.kill()


async def is_bound(api: Client, path: str) -> bool:
    """Whether the claim has its volume."""
    return bool((await api.send("GET", path))[1]["status"]["phase"] == "Bound")


async def bind(api: Client, claim: dict[str, Any]) -> None:
    """Give the claim a volume, or the scheduler would not bind the pods that mount it."""
    reference = {key: claim["metadata"][key] for key in ("namespace", "name", "uid")}
    spec = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteMany"],
        "hostPath": {"path": "/nowhere"},
        "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **reference},
    }
    await api.write(
        "POST", "/api/v1/persistentvolumes", {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "models"}, "spec": spec}
    )


def cpu_seconds(operator: OperatorProcess) -> float:
    """User and system time of the process until now."""
    fields = Path(f"/proc/{operator.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak_mib(operator: OperatorProcess) -> float:
    """The most memory that the process ever held."""
    lines = Path(f"/proc/{operator.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def quantiles(seconds: Sequence[float], scale: float = 1000.0, digits: int = 0) -> str:
    """Median and 99th percentile of sorted values."""
    p50, p99 = statistics.median(seconds), seconds[min(len(seconds) - 1, int(len(seconds) * 0.99))]
    return f"{p50 * scale:.{digits}f} / {p99 * scale:.{digits}f}"


def count_requests(requests: Counter[tuple[str, str]], objects: int) -> Rows:
    """Requests per object; the Lease's renewals and the reviews of progress tokens are not the objects'."""
    left = {key: count for key, count in requests.items() if key[1] not in ("leases", "tokenreviews")}
    writes = {key: count for key, count in left.items() if key[0] not in READS}
    beside = sum(count for (_, resource), count in writes.items() if resource not in (*CHILDREN, "events"))
    told = ", ".join(f"{verb} {resource} {count / objects:.2f}" for (verb, resource), count in sorted(writes.items()))
    return {
        "writes, whole life": f"{sum(writes.values()) / objects:.2f}, {beside / objects:.2f} beside children and Events",
        "writes by verb and resource": told,
        "GETs, whole life": f"{sum(count for (verb, _), count in left.items() if verb == 'get') / objects:.2f}",
        "LISTs, whole life": f"{sum(count for (verb, _), count in left.items() if verb == 'list') / objects:.2f}",
        "webhook calls": "0 (there are none)",
    }


async def one_at_a_time(count: int, rows: Rows) -> None:
    """Each object made when the one before it has its Job."""
    async with bench(None) as run:
        took = []
        for _ in range(count):
            audit = run.audit()
            took += await run.wait_jobs(audit, await run.create(1, None), pause=1.0)
        rows["one at a time: create to Job, p50, ms"] = f"{statistics.median(took) * 1000:.0f}"


async def steady(size: int, options: argparse.Namespace, rows: Rows) -> None:
    """Objects at a fixed rate, for their whole lives if asked for; then an idle time and a restart with all of them standing."""
    whole = size <= options.lives
    async with bench(options.seconds if whole else None) as run:
        before, audit = cpu_seconds(run.operator), run.audit()
        names = await run.create(size, options.rate)
        rows[f"{options.rate:.0f} a second: create to Job, p50 / p99, ms"] = quantiles(await run.wait_jobs(audit, names))
        if whole:
            await run.wait_finished(names)
            rows |= count_requests(audit.operator(), size)
            rows["CPU, ms an object"] = f"{(cpu_seconds(run.operator) - before) / size * 1000:.1f}"
        await settled(run)
        rows["peak memory, MiB"] = f"{peak_mib(run.operator):.0f}"
        await idle(run, options.idle, rows)
        await restart(run, rows)


async def settled(run: Bench) -> None:
    """Wait until the operator has written nothing for five seconds."""
    while True:
        audit = run.audit()
        await asyncio.sleep(5)
        if not writes_of(audit):
            return


def writes_of(audit: Audit) -> int:
    """The operator's writes, but the Lease's."""
    return sum(count for (verb, resource), count in audit.operator().items() if verb not in READS and resource != "leases")


async def idle(run: Bench, seconds: float, rows: Rows) -> None:
    """Nothing is asked for."""
    audit, before = run.audit(), cpu_seconds(run.operator)
    await asyncio.sleep(seconds)
    used = cpu_seconds(run.operator) - before
    rows["idle: writes but the Lease's"] = f"{writes_of(audit)} in {seconds:.0f} s"
    rows["idle: CPU, % of a core"] = f"{used / seconds * 100:.2f}"


async def restart(run: Bench, rows: Rows) -> None:
    """End the operator and start it again with everything standing."""
    run.operator.stop()
    audit, start = run.audit(), time.monotonic()
    run.operator.start()
    rows["restart: seconds to ready"] = f"{time.monotonic() - start:.1f}"
    await asyncio.sleep(10)
    rows["restart: writes but the Lease's"] = str(writes_of(audit))


async def burst(size: int, rows: Rows) -> None:
    """All objects at once, up to the child Job."""
    async with bench(None) as run:
        before, audit = cpu_seconds(run.operator), run.audit()
        names = await run.create(size, None)
        took = await run.wait_jobs(audit, names)
        asked = audit.created("finetunejobs").values()
        rows["burst: the API server took them in, s"] = f"{max(there for _, there in asked) - min(at for at, _ in asked):.1f}"
        rows["burst: create to Job, p50 / p99, s"] = quantiles(took, 1.0, 2)
        rows["burst: CPU to the Job, ms an object"] = f"{(cpu_seconds(run.operator) - before) / size * 1000:.1f}"
        rows["burst: peak memory, MiB"] = f"{peak_mib(run.operator):.0f}"


def show(columns: dict[str, Rows]) -> None:
    """A table of what was measured, beside the aim and the reference."""
    names = list(dict.fromkeys(name for rows in columns.values() for name in rows))
    heads = [*columns, "aim", "Trainer 2.3 + JobSet"]
    table = [["", *heads]]
    for name in names:
        table.append([name, *(rows.get(name, "") for rows in columns.values()), AIM.get(name, ""), REFERENCE.get(name, "")])
    long = [row for row in table if max(map(len, row[1:])) > 60]
    table = [row for row in table if row not in long]
    widths = [max(len(row[column]) for row in table) for column in range(len(heads) + 1)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for row in long:
        print(f"{row[0]}: {' | '.join(cell for cell in row[1:] if cell)}")


def say(text: str) -> None:
    """Tell what is being measured: the table comes at the end, after minutes."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


async def main(options: argparse.Namespace) -> None:
    """Measure every size and print the table."""
    load = os.getloadavg()
    print(
        f"{os.cpu_count()} cores, {platform.machine()}, load before {load[0]:.1f}, rate {options.rate:.0f}/s, a stage takes {options.seconds:.0f} s"
    )
    columns: dict[str, Rows] = {}
    for size in options.sizes:
        rows = columns[f"{size} FineTuneJobs"] = Rows()
        if size == min(options.sizes):
            say("20 FineTuneJobs one at a time")
            await one_at_a_time(20, rows)
        say(f"{size} FineTuneJobs at {options.rate:.0f} a second, then {options.idle:.0f} s of nothing and a restart")
        await steady(size, options, rows)
        say(f"{size} FineTuneJobs at once")
        await burst(size, rows)
    show(columns)
    print(f"load after {os.getloadavg()[0]:.1f}")
    if options.json:
        options.json.write_text(json.dumps(columns, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="bench-operator", description="Costs and speed of the operator.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 1000], help="numbers of FineTuneJobs")
    parser.add_argument("--lives", type=int, default=200, help="up to this size the whole lives are played")
    parser.add_argument("--rate", type=float, default=10.0, help="FineTuneJobs a second")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long a stage's pod runs")
    parser.add_argument("--idle", type=float, default=120.0, help="seconds of idling that are measured")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    asyncio.run(main(parser.parse_args()))
