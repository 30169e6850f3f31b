"""Runs of the real stages for the smoke test: their input files, a store in a folder, processes as pods start them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OBJECT = {"kind": "FineTuneJob", "namespace": "gpu", "name": "smoke", "uid": "smoke"}
PEAK = re.compile(r"peak of this process's GPU memory: (\d+) bytes in tensors, (\d+) bytes taken")
LORA = {"lora": {"r": 16, "loraAlpha": 32, "loraDropout": "0", "targetModules": ["all-linear"]}}
Json = dict[str, Any]


class StageFailed(Exception):
    """A stage answered otherwise than it should; the text says how."""


@dataclass(frozen=True)
class Ended:
    """How a stage's process ended."""

    code: int
    result: Json
    log: str
    seconds: float


@dataclass(frozen=True)
class Shop:
    """A folder with the store, and the kind of device that stages are told."""

    folder: Path
    device: str
    tiny: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        """Where the claims are."""
        return self.folder / "pvc"

    def common(self, stage: str, on_gpu: bool = True, attempt: int = 1) -> Json:
        """What every stage's input has."""
        gpus = {"device": "GPU", "gpus": 1} if self.device == "cuda" and on_gpu else {"device": "CPU"}
        return {"schemaVersion": 2, "stage": stage, "attempt": attempt, "object": OBJECT, **gpus}

    def training(self, **changes: Any) -> Json:
        """The spec's block of that name."""
        # The training that is stopped in the middle must not be over before it hears of it.
        length, steps = (64, 30) if self.tiny else (1024, 20)
        block = {"numTrainEpochs": 1, "maxSteps": steps, "learningRate": "1e-3", "perDeviceTrainBatchSize": 2 if self.tiny else 8}
        block |= {"gradientAccumulationSteps": 1, "maxLength": length, "precision": "BF16", "seed": 17, "loggingSteps": 1, "warmupSteps": 0}
        return (
            block | {"lrSchedulerType": "linear", "weightDecay": "0", "maxGradNorm": "1", "gradientCheckpointing": False, "overrides": {}} | changes
        )

    def start(self, value: Json, **variables: str) -> subprocess.Popen[str]:
        """Start a stage in a process of its own; its files are named after it."""
        path = self.folder / f"{value['stage'].lower()}-{value['attempt']}.json"
        path.write_text(json.dumps(value))
        own = {"TUNESMITH_PVC_ROOT": str(self.store), "TUNESMITH_STAGE_FILE": str(path), "TUNESMITH_TERMINATION_LOG": f"{path}.result"}
        own |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TUNESMITH_NODE": socket.gethostname(), "TUNESMITH_ECHO_SECONDS": "0"}
        path_to = os.pathsep.join(filter(None, [str(ROOT / "trainer-image"), str(ROOT / "contract"), os.environ.get("PYTHONPATH", "")]))
        environment = os.environ | self.variables | own | {"PYTHONPATH": path_to, "PYTHONUNBUFFERED": "1"} | variables
        with open(f"{path}.log", "w") as log:
            return subprocess.Popen([sys.executable, "-m", "tunesmith_trainer"], env=environment, stdout=log, stderr=subprocess.STDOUT, text=True)

    def wait(self, value: Json, process: subprocess.Popen[str], began: float) -> Ended:
        """Wait for a stage's end."""
        code, path = process.wait(), self.folder / f"{value['stage'].lower()}-{value['attempt']}.json"
        log, result = Path(f"{path}.log").read_text(), Path(f"{path}.result")
        sys.stdout.write(log)
        return Ended(code, json.loads(result.read_text()) if result.exists() else {}, log, time.monotonic() - began)

    def run(self, value: Json, **variables: str) -> Ended:
        """Run a stage to its end, which has to be a success."""
        began = time.monotonic()
        ended = self.wait(value, self.start(value, **variables), began)
        if ended.code or ended.result.get("outcome") != "Succeeded":
            raise StageFailed(f"{value['stage']} ended with code {ended.code}: {ended.result.get('reason')}: {ended.result.get('message')}")
        return ended

    def prepare(self, **blocks: Any) -> Json:
        """Prepare a run; returns Prepare's result with the blocks that Train needs again."""
        run = {
            "images": {"trainer": "smoke"},
            "model": {"uri": "pvc://models/base"},
            "datasets": [{"name": "words", "uri": "pvc://data/train.jsonl", "format": "Text"}],
            "method": {"sft": {"packing": not self.tiny, "assistantOnlyLoss": False}},
            "training": self.training(),
            "parallelism": {"nodes": 1, "processesPerNode": 1, "ddp": {}},
            "output": {"uri": "pvc://models/out", "artifacts": ["Merged"]},
        } | blocks
        ended = self.run(self.common("Prepare", on_gpu=False) | {"outputURI": "pvc://models/out", "run": run})
        return ended.result | {"blocks": run}

    def train_input(self, prepared: Json, attempt: int = 1, every: int = 1000) -> Json:
        """Train's input for a prepared run."""
        blocks = prepared["blocks"]
        taken = {name: blocks[name] for name in ("method", "adapter", "baseQuantization", "training", "parallelism") if name in blocks}
        processes = blocks["parallelism"]["processesPerNode"]
        return self.common("Train", attempt=attempt) | {
            "runURI": prepared["runURI"],
            "model": {name: prepared["model"][name] for name in ("uri", "digest")},
            "checkpoints": {"everySteps": every, "keep": 1, "gracePeriodSeconds": 120},
            "rendezvous": {"endpoint": f"127.0.0.1:{free_port()}", "nodes": 1, "processesPerNode": processes},
            **taken,
        }

    def interrupt(self, value: Json, reached: Callable[[], bool]) -> Ended:
        """Start a training, send it SIGTERM when `reached`, and wait for its end."""
        began = time.monotonic()
        process = self.start(value)
        while process.poll() is None and not reached():
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        return self.wait(value, process, began)


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def figures(prepared: Json, ended: Ended) -> Json:
    """What a training tells: speed, loss, devices, and its memory beside Prepare's estimate."""
    told = {name: ended.result.get(name) for name in ("tokensPerSecond", "trainLoss", "worldSize", "devices", "trainRuntimeSeconds")}
    told |= {"stageSeconds": round(ended.seconds, 1), "parameters": prepared["model"]["parameters"]}
    estimate = prepared.get("memoryEstimateBytes")
    if found := PEAK.search(ended.log):
        tensors, taken = int(found[1]), int(found[2])
        told |= {"peakTensorBytes": tensors, "peakTakenBytes": taken, "estimateBytes": estimate}
        told |= {"tensorsToEstimate": round(tensors / estimate, 2)} if estimate else {"estimate": prepared["memoryNeed"]}
    else:
        told["memory"] = "not measured: no GPU"
    return told
