"""What the Train stage costs beside the same TRL script run by hand: tokens per second, and the time that checkpoints take.

    make bench-train                                              # ARGS="--steps 20 --every 5 --repeats 1" for a short run

Both train one model on the same tokens with the same settings, in turns; the script by hand saves no checkpoints at all. Quiet
machines only: the ratio of the medians is worth what the spread of each column allows.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dev.checks import python
from dev.cluster.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
# By its module's name: run by its path, its folder's operator.py would stand in for Python's own.
BY_HAND = "dev.bench.by_hand"
OBJECT = {"kind": "FineTuneJob", "namespace": "bench", "name": "bench", "uid": "bench"}
LEAST_RATIO, MOST_BLOCKED = 0.98, 0.01
BLOCKED = re.compile(r"checkpoints held training up for ([0-9.]+) s of ([0-9.]+) s")


def options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m dev.bench.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of one training (default 100)")
    parser.add_argument("--every", type=int, default=20, help="steps between checkpoints of the Train stage (default 20)")
    parser.add_argument("--repeats", type=int, default=3, help="trainings of each kind (default 3)")
    parser.add_argument("--processes", type=int, default=1, help="processes, over gloo (default 1)")
    parser.add_argument("--hidden", type=int, default=384, help="the model's width (default 384)")
    parser.add_argument("--layers", type=int, default=6, help="the model's layers (default 6)")
    return parser.parse_args()


class Bench:
    """A folder with a store, one run in it, and the trainer's python."""

    def __init__(self, folder: Path, chosen: argparse.Namespace) -> None:
        """Write model and data, and prepare the run."""
        self.folder, self.chosen, self.interpreter = folder, chosen, python("trainer")
        training = {"maxSteps": chosen.steps, "learningRate": "1e-3", "perDeviceTrainBatchSize": 4, "gradientAccumulationSteps": 1}
        training |= {"maxLength": 256, "precision": "FP32", "seed": 17, "loggingSteps": 10, "numTrainEpochs": 1, "lrSchedulerType": "linear"}
        training |= {"warmupSteps": 0, "weightDecay": "0", "maxGradNorm": "1", "gradientCheckpointing": False, "overrides": {}}
        own = {"rows": 4000, "hidden": chosen.hidden, "layers": chosen.layers, "method": chosen.method, "training": training}
        self.claim = folder / "claim"
        self.claim.mkdir()
        (self.claim / "settings.json").write_text(json.dumps(own))
        self.call(["-m", BY_HAND, "make", str(self.claim)])
        lora = (
            {"adapter": {"lora": {"r": 16, "loraAlpha": 32, "loraDropout": "0", "targetModules": ["all-linear"]}}} if chosen.method == "lora" else {}
        )
        self.blocks = {"method": {"sft": {"packing": True, "assistantOnlyLoss": False}}, "training": training, **lora}
        spread = {"nodes": 1, "processesPerNode": chosen.processes, "ddp": {}}
        data = [{"name": "text", "uri": "pvc://claim/text.jsonl", "format": "Text"}]
        output = {"uri": "pvc://claim/out", "artifacts": ["Adapter" if lora else "Merged"]}
        run = {"images": {"trainer": "bench"}, "model": {"uri": "pvc://claim/model"}, "datasets": data, "parallelism": spread, "output": output}
        self.prepared = self.stage({"stage": "Prepare", "outputURI": "pvc://claim/out", "run": run | self.blocks})[0]
        self.spread = spread

    def call(self, arguments: list[str], **extra: str) -> str:
        """Run the trainer's python; returns what it printed, and ends the benchmark with that where it failed."""
        threads = str(max(1, (os.cpu_count() or 1) // self.chosen.processes))
        environment = (
            os.environ
            | {"PYTHONPATH": f"{ROOT / 'trainer-image'}:{ROOT / 'contract'}:{ROOT}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads}
            | extra
        )
        done = subprocess.run([self.interpreter, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(arguments)} failed with {done.returncode}:\n{done.stdout[-4000:]}")
        return done.stdout

    def stage(self, value: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """Run a stage; returns its result and what it printed."""
        place, answer = self.folder / "stage.json", self.folder / "answer.json"
        place.write_text(json.dumps({"schemaVersion": 1, "attempt": 1, "device": "CPU", "object": OBJECT} | value))
        extra = {"TUNESMITH_STAGE_FILE": str(place), "TUNESMITH_TERMINATION_LOG": str(answer), "TUNESMITH_PVC_ROOT": str(self.folder)}
        log = self.call(["-m", "tunesmith_trainer"], **extra)
        return json.loads(answer.read_text()), log

    def measure_stage(self) -> tuple[int, float, float]:
        """Train as the stage does, from the start; returns tokens, seconds, and the seconds in which checkpoints held it up."""
        run_folder = self.folder / self.prepared["runURI"].removeprefix("pvc://")
        for name in ("checkpoints", "results"):
            shutil.rmtree(run_folder / name, ignore_errors=True)
        (run_folder / "metrics.jsonl").unlink(missing_ok=True)
        rendezvous = {"endpoint": f"127.0.0.1:{free_port()}", "nodes": 1, "processesPerNode": self.chosen.processes}
        model = {key: self.prepared["model"][key] for key in ("uri", "digest")}
        value = {"stage": "Train", "runURI": self.prepared["runURI"], "model": model, "parallelism": self.spread, "rendezvous": rendezvous}
        told, log = self.stage(value | self.blocks | {"checkpoints": {"everySteps": self.chosen.every, "keep": 2, "gracePeriodSeconds": 120}})
        blocked = BLOCKED.search(log)
        assert blocked, log[-2000:]
        return round(told["tokensPerSecond"] * told["trainRuntimeSeconds"]), told["trainRuntimeSeconds"], float(blocked[1])

    def measure_by_hand(self) -> tuple[int, float]:
        """Train as the script by hand does; returns tokens and seconds."""
        launch = ["-m", "torch.distributed.run", f"--nproc-per-node={self.chosen.processes}", f"--master-port={free_port()}"]
        self.call([*launch, "--module", BY_HAND, "train", str(self.claim)])
        told = json.loads((self.claim / "by-hand.json").read_text())
        return told["tokens"], told["seconds"]


def main() -> int:
    """Measure and print; 0 where the aims are met."""
    chosen = options()
    speeds: dict[str, list[float]] = {"stage": [], "by hand": []}
    shares = []
    with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:
        bench = Bench(Path(folder), chosen)
        print(f"{chosen.method}, {bench.prepared['model']['parameters']:,} parameters, {chosen.steps} steps, a checkpoint every {chosen.every}")
        print(f"{'':8}{'tokens':>10}{'seconds':>10}{'tokens/s':>10}{'blocked':>10}")
        for repeat in range(chosen.repeats):
            # Who goes first changes: what the machine learns from the first helps the second.
            for kind in ("stage", "by hand") if repeat % 2 == 0 else ("by hand", "stage"):
                tokens, seconds, *blocked = bench.measure_stage() if kind == "stage" else bench.measure_by_hand()
                speeds[kind].append(tokens / seconds)
                shares += [value / seconds for value in blocked]
                cost = f"{shares[-1]:>10.2%}" if blocked else ""
                print(f"{kind:8}{tokens:>10}{seconds:>10.2f}{tokens / seconds:>10.0f}{cost}", flush=True)
    medians = {kind: statistics.median(values) for kind, values in speeds.items()}
    ratio, taken = medians["stage"] / medians["by hand"], statistics.median(shares)
    print(f"medians: stage {medians['stage']:.0f}, by hand {medians['by hand']:.0f} tokens/s")
    print(f"stage / by hand: {ratio:.3f} (aim: at least {LEAST_RATIO})")
    print(f"blocked by checkpoints: {taken:.2%} of the time (aim: at most {MOST_BLOCKED:.0%})")
    return 0 if ratio >= LEAST_RATIO and taken <= MOST_BLOCKED else 1


if __name__ == "__main__":
    sys.exit(main())
