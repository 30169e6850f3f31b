"""A small training in two pods, its files, and how to hurt it, for test_drills.py, test_long_faults.py and test_long_drills.py."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from dev.cluster import paths
from dev.cluster.processes import wait_until
from dev.demo import follow, seed
from dev.demo.kube import Kube, Object, ours
from dev.rows import WORDS, write_rows
from tests.e2e.tiny import make_model

STEPS, EVERY = 140, 10
CANARY = "canary-6d20c1"
"""In a row, and never to be told."""
_WORKERS = """
import os, signal, time
def commands():
    return {int(name): open(f"/proc/{name}/cmdline", "rb").read() for name in os.listdir("/proc") if name.isdigit()}
workers = [pid for pid, line in commands().items() if b"-m\\0tunesmith_trainer.training.worker" in line]
"""
"""For the pod's python: its training processes. (torchrun's own arguments name that module too, but not after -m.)"""
KILL = _WORKERS + "[os.kill(pid, signal.SIGKILL) for pid in workers]"
STOP = _WORKERS + "[os.kill(pid, signal.SIGSTOP) for pid in workers]"
"""They stand still, as in a call that never returns."""
EXHAUST = (
    _WORKERS
    + """
(worker,) = workers
def ended():
    # torchrun may have waited for it before it is seen to be a zombie.
    try:
        return open(f"/proc/{worker}/stat").read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
open(f"/proc/{worker}/oom_score_adj", "w").write("1000")
hogs = []
while not ended() and len(hogs) < 64:
    hogs.append(os.fork())
    if not hogs[-1]:
        taken = b"x" * (64 << 20)
        time.sleep(60)
        os._exit(0)
    time.sleep(0.1)
[os.kill(pid, signal.SIGKILL) for pid in hogs]
"""
)
"""Memory is taken until the kernel ends the training process, as if that had asked for too much."""
KILL_IN_SAVE = (
    _WORKERS
    + """
import glob, sys
def unfinished():
    # Of old ones that are cleared away the manifest goes first.
    steps = {int(path.rpartition("-")[2]): os.path.exists(path + "/manifest.json") for path in glob.glob(sys.argv[1])}
    newest = max(steps, default=0)
    return newest if newest and not steps[newest] else 0
def stand_still(pid):
    return all(open(path).read().rpartition(")")[2].split()[0] == "T" for path in glob.glob(f"/proc/{pid}/task/*/stat"))
def tell(number):
    for pid in workers:
        os.kill(pid, number)
deadline = time.monotonic() + 120
while True:
    if unfinished():
        # Standing still, they cannot end it between the look and the blow.
        tell(signal.SIGSTOP)
        while not all(map(stand_still, workers)):
            pass
        if step := unfinished():
            break
        tell(signal.SIGCONT)
    assert time.monotonic() < deadline, "no save was met"
    time.sleep(0.0005)
tell(signal.SIGKILL)
print(step)
"""
)
"""They are killed while a checkpoint below the argument (a pattern) has not got its manifest yet; its step is printed."""
TERMINATE = "import os; os.kill(1, 15)"
"""SIGTERM to the pod's process 1, as the kubelet sends it."""


def upload_inputs(kube: Kube) -> None:
    """Put a tiny model and rows for it on the volume `datasets`, below `drills`."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "drills"
        make_model(folder / "model")
        texts = [" ".join(WORDS[number * step % len(WORDS)] for step in range(1, 60)) for number in range(64)]
        write_rows(folder / "rows.jsonl", [{"text": f"{CANARY} {text}"} for text in texts])
        seed.upload(kube, Path(scratch), "datasets")


def spec(parallelism: Object | None = None, **training: Any) -> Object:
    """The spec, with that parallelism and changes to `training`.

    In 32 bits, with a fifth of a second to a step: a fault then meets a training, and the losses compare to the digit.
    """
    return {
        "model": {"uri": "pvc://datasets/drills/model"},
        "datasets": [{"name": "rows", "uri": "pvc://datasets/drills/rows.jsonl", "format": "Text"}],
        "method": {"sft": {}},
        "adapter": {"lora": {"r": 4}},
        "training": {
            "maxSteps": STEPS,
            "learningRate": "2e-3",
            "perDeviceTrainBatchSize": 2,
            "gradientAccumulationSteps": 4,
            "maxLength": 256,
            "loggingSteps": 1,
            "precision": "FP32",
            "seed": 17,
            **training,
        },
        "parallelism": parallelism or {"nodes": 2, "ddp": {}},
        "checkpoints": {"everySteps": EVERY, "keep": 3, "gracePeriodSeconds": 30},
        "resources": {"cpu": "300m", "memory": "3Gi"},
        "retries": 6,
        "output": {"uri": "pvc://models/drills"},
    }


class Run:
    """A FineTuneJob and its files, which are read where the development cluster keeps its volumes: exec is slow, and the node may be away."""

    def __init__(self, kube: Kube, name: str, wanted: Object | None = None, models: Path | None = None) -> None:
        """`models`: where the files of the claim that it writes to are seen from here; by default where the cluster keeps `models`."""
        self.kube = kube
        self.name = name
        (self.models,) = [models] if models else (paths.state_root() / "volumes").glob(f"*_{kube.namespace}_models")
        kube.apply(ours("FineTuneJob", name, wanted or spec()))

    def get(self) -> Object:
        """The object."""
        return self.kube.get("finetunejob", self.name)

    def suspend(self, wanted: bool) -> None:
        """Set `spec.suspend`."""
        self.kube.run("patch", "finetunejob", self.name, "--type=merge", "--patch", json.dumps({"spec": {"suspend": wanted}}))

    def finish(self, seconds: float) -> Any:
        """Wait until it is over; returns its status."""
        wait_until(lambda: follow.is_true(self.get(), "Finished"), f"the end of {self.name}", seconds, 1)
        return self.get()["status"]

    def pods(self, attempt: int) -> dict[int, Object]:
        """The training pods of an attempt by their index."""
        selector = f"--selector=tunesmith.dev/stage=Train,tunesmith.dev/attempt={attempt},tunesmith.dev/name={self.name}"
        found = self.kube.get("pods", selector)["items"]
        return {int(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]): pod for pod in found}

    def pod_name(self, attempt: int, index: int) -> str:
        """The name of one training pod."""
        name: str = self.pods(attempt)[index]["metadata"]["name"]
        return name

    def run_in(self, attempt: int, index: int, program: str, *arguments: str) -> str:
        """Run a Python program in a training pod; what it prints."""
        return self.kube.run("exec", self.pod_name(attempt, index), "--", "python3", "-c", program, *arguments)

    def token(self, attempt: int) -> str:
        """The secret of a training pod: what it shows when it reports its progress."""
        return self.kube.run("exec", self.pod_name(attempt, 0), "--", "sh", "-c", 'cat "$KUBEFLOW_TRAINER_SERVER_TOKEN"')

    def below(self, pattern: str) -> str:
        """The pattern of files of the run, from the root of its claim."""
        return f"drills/{self.kube.namespace}/{self.name}/*/{pattern}"

    def files(self, pattern: str) -> list[Path]:
        """Files of the run."""
        return list(self.models.glob(self.below(pattern)))

    def lines(self) -> list[Any]:
        """The loss curve: `step`, `loss` and `time` of each step, in the order of the file."""
        # The last line may be half written.
        text = "".join(path.read_text() for path in self.files("metrics.jsonl"))
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [line for line in lines if "loss" in line]

    def curve(self) -> list[tuple[int, float]]:
        """Step and loss, in the order of the file."""
        return [(line["step"], line["loss"]) for line in self.lines()]

    def reached(self) -> int:
        """The last step of the loss curve."""
        return max((line["step"] for line in self.lines()), default=0)

    def saved(self, attempt: int) -> int:
        """The step of the attempt's newest complete checkpoint; 0: none."""
        return max(self.checkpoints(str(attempt)), default=0)

    def checkpoints(self, attempt: str = "*") -> dict[int, Path]:
        """Folders of an attempt's complete checkpoints by step; by default of all attempts."""
        manifests = self.files(f"checkpoints/attempt-{attempt}/*/manifest.json")
        return {int(path.parent.name.removeprefix("step-")): path.parent for path in manifests}

    def damage(self) -> int:
        """Cut the largest file of the newest complete checkpoint in half; its step."""
        step, folder = max(self.checkpoints().items())
        largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        os.truncate(largest, largest.stat().st_size // 2)
        return step

    def entry(self, attempt: int) -> Object:
        """What the status tells of an attempt at Train that has ended; {} before."""
        told = self.get().get("status", {}).get("attempts", [])
        return next((entry for entry in told if (entry["stage"], entry["attempt"]) == ("Train", attempt)), {})
