"""The operator as a process, a namespace as a test sees it, and the part of a kubelet."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev.bench.audit import READS, Audit, is_operator
from dev.bench.life import DIGEST, MERGED, RESULTS, RUN, answer, ended
from dev.cluster.controlplane import ControlPlane
from dev.cluster.pki import Identity
from dev.cluster.ports import free_ports
from dev.cluster.processes import wait_until
from tests.integration import rights
from tests.integration.schema_server import MERGE, Answer, Server
from tunesmith.api.conditions import is_true
from tunesmith.core.objects import LABEL_ATTEMPT, LABEL_PART, LABEL_STAGE, LABEL_UID, Object
from tunesmith.runtime.resources import RESOURCES

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 120.0
"""Seconds that anything may take on a busy machine. What must come sooner has a limit of its own."""
DRAIN_SECONDS = 6
"""How long a revision that was replaced runs on, instead of 30 s: what happens until then takes a fraction of a second."""
PATIENT_LEASE = {"TUNESMITH_LEASE_DURATION_SECONDS": "40", "TUNESMITH_LEASE_DEADLINE_SECONDS": "30"}
"""Long, so that a machine that stands still for some seconds ends no operator."""


class OperatorProcess:
    """`python -m tunesmith`, to be ended, killed and started again."""

    def __init__(self, control_plane: ControlPlane, folder: Path, identity: str = "first") -> None:
        self.health, self.progress = free_ports(2)
        self.log = folder / f"operator-{identity}.log"
        self.command = [sys.executable, "-m", "tunesmith"]
        self._process: subprocess.Popen[bytes] | None = None
        secrets = control_plane.pki
        secrets.issue(Identity("progress", "/CN=progress", "serverAuth", "DNS:localhost,IP:127.0.0.1"))
        self.ca = secrets.path("ca.crt")
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}/operator:{ROOT}/contract",
            "KUBECONFIG": str(rights.kubeconfig(control_plane)),
            "TUNESMITH_LEASE_NAMESPACE": rights.SYSTEM,
            "TUNESMITH_TRAINER_IMAGE": "trainer:1",
            "TUNESMITH_SERVING_IMAGE": "serving:1",
            "TUNESMITH_HEALTH_ADDRESS": "127.0.0.1",
            "TUNESMITH_HEALTH_PORT": str(self.health),
            "TUNESMITH_PROGRESS_ADDRESS": "127.0.0.1",
            "TUNESMITH_PROGRESS_PORT": str(self.progress),
            "TUNESMITH_PROGRESS_URL": f"https://localhost:{self.progress}",
            "TUNESMITH_PROGRESS_CERTIFICATE": str(secrets.path("progress.crt")),
            "TUNESMITH_PROGRESS_KEY": str(secrets.path("progress.key")),
            "TUNESMITH_PROGRESS_CA": str(self.ca),
            # Short, so that a test sees several relists.
            "TUNESMITH_RESYNC_SECONDS": "1",
            "TUNESMITH_BACKOFF_SECONDS": "1",
            "TUNESMITH_DRAIN_SECONDS": str(DRAIN_SECONDS),
            "TUNESMITH_IDENTITY": identity,
            **PATIENT_LEASE,
        }

    def start(self, ready: bool = True) -> None:
        """Start it; by default wait until it has seen everything once."""
        assert self._process is None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self.command, env=self.environment, stdout=log, stderr=log)
        if ready:
            wait_until(self.is_ready, "the operator to be ready", TIMEOUT)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it; return its exit status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(how)
        try:
            return process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def kill(self) -> None:
        """End it without a chance to tidy up."""
        self.stop(signal.SIGKILL)

    @property
    def pid(self) -> int:
        """The process's id; it must have been started."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def is_ready(self) -> bool:
        """Whether /readyz says so; an error if the process has ended."""
        assert self.running, self.log.read_text()[-4000:]
        return self.probe("/readyz") == 200

    def probe(self, path: str) -> int:
        """The status of a GET at the health port; 0 if nobody answers."""
        return self._get(path)[0]

    def metric(self, name: str) -> float:
        """The value of a metric without labels, 0 if it is not there."""
        lines = self._get("/metrics")[1].splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))

    def wait_resyncs(self, count: int) -> None:
        """Wait for so many complete relists from now."""
        name = "tunesmith_resync_seconds_count"
        wanted = self.metric(name) + count
        wait_until(lambda: self.metric(name) >= wanted, f"{count} relists", TIMEOUT)

    def _get(self, path: str) -> tuple[int, str]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self.health}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, ""
        except OSError:
            return 0, ""


@dataclass
class Namespace:
    """A namespace: what a user does in it, what a test sees in it, and what a kubelet would do."""

    api: Server
    name: str
    interval: float = 0.05
    """Seconds between two looks when waiting."""

    def path(self, kind: str, name: str | None = None, subresource: str | None = None) -> str:
        """The path of an object here."""
        return RESOURCES[kind].path(self.name, name, subresource)

    def create(self, kind: str, name: str, spec: Object) -> Object:
        """Make an object of ours, or a claim."""
        body = {"apiVersion": RESOURCES[kind].api_version, "kind": kind, "metadata": {"name": name}, "spec": spec}
        answer = self.api.send("POST", self.path(kind) + "?fieldValidation=Strict", body)
        assert answer.code == 201, answer.body
        return answer.body

    def claim(self, name: str, mode: str = "ReadWriteMany") -> Object:
        """Make a PersistentVolumeClaim."""
        return self.create("PersistentVolumeClaim", name, {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}})

    def get(self, kind: str, name: str) -> Object | None:
        """The object, if it is there."""
        answer = self.api.send("GET", self.path(kind, name))
        return answer.body if answer.code == 200 else None

    def status(self, kind: str, name: str) -> Object:
        """The object's status; empty if there is none."""
        found = self.get(kind, name) or {}
        status: Object = found.get("status") or {}
        return status

    def patch(self, kind: str, name: str, body: Object, subresource: str | None = None) -> Answer:
        """Merge `body` into the object."""
        answer = self.api.send("PATCH", self.path(kind, name, subresource), body, MERGE)
        assert answer.code == 200, answer.body
        return answer

    def delete(self, kind: str, name: str) -> None:
        """Delete the object as kubectl does."""
        answer = self.api.send("DELETE", self.path(kind, name), {"propagationPolicy": "Background"})
        assert answer.code in (200, 202), answer.body

    def all(self, *kinds: str) -> list[Object]:
        """All objects of these kinds; the root certificates that every namespace has are left out."""
        found = []
        for kind in kinds:
            found += [{**item, "kind": kind} for item in self.api.send("GET", self.path(kind)).body["items"]]
        return [item for item in found if item["metadata"]["name"] != "kube-root-ca.crt"]

    def names(self, *kinds: str) -> set[str]:
        """Kind/name of all objects of these kinds."""
        return {f"{item['kind']}/{item['metadata']['name']}" for item in self.all(*kinds)}

    def wait_condition(self, kind: str, name: str, condition: str) -> Object:
        """Wait until the condition is True; return the status."""
        self.wait(lambda: is_true(self.status(kind, name), condition), f"{kind} {name} to be {condition}", lambda: self.status(kind, name))
        return self.status(kind, name)

    def wait(self, condition: Callable[[], Any], what: str, seen: Callable[[], Any] = lambda: "") -> None:
        """Wait until `condition` holds; `seen` is what there was instead."""
        try:
            wait_until(condition, what, TIMEOUT, self.interval)
        except Exception as error:
            raise AssertionError(f"{error}\n{json.dumps(seen(), indent=1)}") from error

    def stage_pods(self, owner: Object, stage: str, attempt: int, part: str = "") -> list[Object]:
        """The pods of an attempt."""
        wanted = {LABEL_UID: owner["metadata"]["uid"], LABEL_STAGE: stage, LABEL_ATTEMPT: str(attempt)} | ({LABEL_PART: part} if part else {})
        return [pod for pod in self.all("Pod") if wanted.items() <= pod["metadata"].get("labels", {}).items()]

    def wait_pods(self, owner: Object, stage: str, attempt: int = 1, part: str = "", count: int = 1) -> list[Object]:
        """Wait for the pods of an attempt."""
        self.wait(
            lambda: len(self.stage_pods(owner, stage, attempt, part)) == count,
            f"{count} pods of {stage} {part} attempt {attempt}",
            lambda: {"status": self.status(owner["kind"], owner["metadata"]["name"]), "have": sorted(self.names("Job", "Pod"))},
        )
        return self.stage_pods(owner, stage, attempt, part)

    def wait_running(self, owner: Object, stage: str) -> None:
        """Wait until the status tells that the stage runs."""
        kind, name = owner["kind"], owner["metadata"]["name"]

        def runs() -> bool:
            return any((entry["name"], entry["state"]) == (stage, "Running") for entry in self.status(kind, name)["stages"])

        self.wait(runs, f"{stage} to run", lambda: self.status(kind, name))

    def run_pod(self, pod: Object) -> None:
        """Say that the pod runs, as its kubelet would."""
        self.patch("Pod", pod["metadata"]["name"], {"status": {"phase": "Running"}}, "status")

    def end_pod(self, pod: Object, message: Object | str, code: int = 0) -> None:
        """Say that the pod's container has ended with that termination message."""
        self.patch("Pod", pod["metadata"]["name"], {"status": ended(message, code)}, "status")

    def remove_pod(self, pod: Object) -> None:
        """Say that the pod is gone, as its kubelet would, or as is done by force."""
        self.api.send("DELETE", self.path("Pod", pod["metadata"]["name"]), {"gracePeriodSeconds": 0})

    def play(self, owner: Object, stage: str, result: Object, attempt: int = 1, part: str = "") -> None:
        """Let an attempt of one pod succeed with `result` added to the common fields, as soon as its pod is there."""
        (pod,) = self.wait_pods(owner, stage, attempt, part)
        self.end_pod(pod, answer(stage, attempt, result))


class Writes:
    """What the audit log says that the operator wrote in a namespace, from now on: what earlier tests left may go on in theirs."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self._audit, self._namespace = Audit(control_plane.audit_log), namespace

    def seen(self) -> list[str]:
        """Verb and path of each write since."""
        return [
            f"{entry['verb']} {entry['requestURI']}"
            for entry in self._audit.entries()
            if entry["verb"] not in READS and is_operator(entry) and entry.get("objectRef", {}).get("namespace") == self._namespace
        ]


FINE_TUNE_JOB: Object = {
    "model": {"uri": "pvc://models/base"},
    "datasets": [{"name": "chat", "uri": "pvc://models/chat.jsonl", "format": "Messages"}],
    "method": {"sft": {}},
    "output": {"uri": "pvc://models/out"},
}
EVAL_RUN: Object = {
    "model": {"fineTuneJobRef": {"name": "tune"}, "artifact": "Merged"},
    "suites": [{"name": "heldOut", "perplexity": {"dataset": {"uri": "pvc://models/test.jsonl", "format": "Messages"}}}],
    "gate": [{"metric": "heldOut/perplexity", "max": "100"}],
}
EVALUATED = {"model": {"name": "tested", "uri": MERGED["uri"], "digest": DIGEST}, "resultURI": f"{RUN}/results/evaluate-tested.json"}
MODEL_DEPLOYMENT: Object = {
    "model": {"fineTuneJobRef": {"name": "tune"}, "artifact": "Merged"},
    "gate": {"evalRunRefs": [{"name": "judge"}]},
}


def play_all(space: Namespace, tune: Object) -> None:
    """Let each stage of a FineTuneJob succeed in its turn."""
    for stage, result in RESULTS.items():
        space.play(tune, stage, result)


def settle(seconds: float, holds: Callable[[], bool]) -> bool:
    """Whether `holds` was true all that time: for what must not happen there is nothing to wait for."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not holds():
            return False
        time.sleep(0.1)
    return True
