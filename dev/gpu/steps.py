"""The steps of the smoke test, each to be run in a process of its own: `python -m dev.gpu.steps NAME FOLDER DEVICE SIZE`.

A step prints what it does, and writes its figures to `FOLDER/NAME.figures`. It fails by an exception.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev.gpu import stages
from dev.gpu.stages import LORA, ROOT, Json, Shop, StageFailed, figures

TRAINER = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "pydantic", "psutil", "safetensors")


def devices(shop: Shop) -> Json:
    """The check that every stage on GPUs begins with."""
    done = subprocess.run([sys.executable, "-P", ROOT / "trainer-image/tunesmith_trainer/device.py"], capture_output=True, text=True, check=True)
    facts: Json = json.loads(done.stdout.splitlines()[-1].partition(":")[2])
    if shop.device == "cuda" and (facts["error"] or not facts["gpus"] or any(gpu["wrong"] for gpu in facts["gpus"])):
        raise StageFailed(f"the devices cannot be used: {facts}")
    return facts


def compiles(shop: Shop) -> Json:
    """Triton's and torch.compile's build steps; on a GPU, a compiled kernel is launched too."""
    options = ["--torch", *(["--device", "cuda"] if shop.device == "cuda" else [])]
    subprocess.run([sys.executable, ROOT / "dev/gpu/compiles.py", *options], check=True)
    return {}


def material(shop: Shop) -> Json:
    """Random weights and data."""
    size = "tiny" if shop.tiny else sys.argv[4]
    subprocess.run([sys.executable, "-m", "dev.gpu.material", str(shop.store), size], check=True, cwd=ROOT)
    return {"size": size}


def full(shop: Shop) -> Json:
    """Full fine-tuning in bf16."""
    prepared = shop.prepare(training=shop.training(maxSteps=4 if shop.tiny else 10))
    return figures(prepared, shop.run(shop.train_input(prepared)))


def lora(shop: Shop) -> Json:
    """LoRA, stopped by SIGTERM after its first checkpoint, and gone on with to its end."""
    prepared = shop.prepare(adapter=LORA)
    run = shop.store / prepared["runURI"].removeprefix("pvc://")
    # Long steps are few: it is stopped when it has logged the first one, and saves where it stands.
    stopped = shop.interrupt(shop.train_input(prepared), lambda: (run / "metrics.jsonl").exists() and '"loss"' in (run / "metrics.jsonl").read_text())
    if (stopped.code, stopped.result.get("reason")) != (75, "Interrupted"):
        raise StageFailed(f"the training that was stopped ended with code {stopped.code}: {stopped.result}")
    ended = shop.run(shop.train_input(prepared, attempt=2))
    saved, resumed = stopped.result["globalStep"], ended.result["resumedFromStep"]
    if not 0 < saved == resumed:
        raise StageFailed(f"step {saved} was saved, and training went on from step {resumed}")
    (shop.folder / "lora.json").write_text(json.dumps({"prepared": prepared, "trained": ended.result}))
    return figures(prepared, ended) | {"resumedFromStep": resumed, "globalStep": ended.result["globalStep"]}


def qlora(shop: Shop) -> Json:
    """LoRA on a base in 4 bits."""
    prepared = shop.prepare(adapter=LORA, baseQuantization="NF4", training=shop.training(maxSteps=4 if shop.tiny else 10))
    return figures(prepared, shop.run(shop.train_input(prepared)))


def fsdp(shop: Shop) -> Json:
    """FSDP2 on one rank, which the product itself trains without; on CPUs, where it needs several, on two."""
    processes = 1 if shop.device == "cuda" else 2
    spread = {"nodes": 1, "processesPerNode": processes, "fsdp": {}}
    prepared = shop.prepare(adapter=LORA, training=shop.training(maxSteps=4 if shop.tiny else 10), parallelism=spread)
    # torchrun starts its processes by the program that this names.
    python = shop.folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "dev/gpu/fsdp_worker.py"} "$@"\n')
    python.chmod(0o755)
    ended = shop.run(shop.train_input(prepared), PYTHON_EXEC=str(python))
    if "fsdp: all" not in ended.log:
        raise StageFailed("the parameters are no sharded tensors; see the log")
    return figures(prepared, ended) | {"sharding": ended.result.get("sharding")}


def finalize(shop: Shop) -> Json:
    """The merged model of the LoRA training, made on the CPU."""
    made = json.loads((shop.folder / "lora.json").read_text())
    train = shop.train_input(made["prepared"])
    common = {name: train[name] for name in ("runURI", "model", "adapter")}
    value = shop.common("Finalize", on_gpu=False) | common | {"checkpoint": made["trained"]["checkpoint"], "artifacts": ["Merged"]}
    ended = shop.run(value)
    (shop.folder / "merged.json").write_text(json.dumps({"runURI": train["runURI"], "artifact": ended.result["artifacts"][0]}))
    return {"stageSeconds": round(ended.seconds, 1)}


def quantize(shop: Shop) -> Json:
    """GPTQ W4A16 of the merged model."""
    made = json.loads((shop.folder / "merged.json").read_text())
    quantization = {"scheme": "W4A16", "algorithm": "GPTQ", "numCalibrationSamples": 8 if shop.tiny else 32, "groupSize": 32}
    model = {name: made["artifact"][name] for name in ("uri", "digest")}
    own = {"variant": {"name": "w4a16", "quantization": quantization}, "training": {"maxLength": shop.training()["maxLength"]}}
    ended = shop.run(shop.common("Quantize") | {"runURI": made["runURI"], "model": model} | own)
    return {"stageSeconds": round(ended.seconds, 1), "effect": ended.result["effect"]}


def evaluate(shop: Shop) -> Json:
    """Perplexity of the merged model."""
    made = json.loads((shop.folder / "merged.json").read_text())
    length = shop.training()["maxLength"]
    suite = {"name": "words", "perplexity": {"dataset": {"uri": "pvc://data/test.jsonl", "format": "Text"}, "maxLength": length}}
    model = {"name": "tested", **{name: made["artifact"][name] for name in ("uri", "digest")}}
    own = {"runURI": "pvc://models/out/eval", "outputURI": "pvc://models/out", "model": model, "suites": [suite], "precision": "BF16"}
    ended = shop.run(shop.common("Evaluate") | own)
    return {"stageSeconds": round(ended.seconds, 1), "metrics": json.loads(_result_file(shop, ended.result))["metrics"]}


def _result_file(shop: Shop, result: Json) -> str:
    return (shop.store / str(result["resultURI"]).removeprefix("pvc://")).read_text()


@dataclass(frozen=True)
class Step:
    """A step: what it needs beside the steps named, and the seconds that it may take."""

    run: Callable[[Shop], Json]
    seconds: float
    modules: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name on the command line."""
        return self.run.__name__


STEPS = {
    step.name: step
    for step in (
        Step(devices, 60, ("torch",)),
        Step(compiles, 90, ("torch", "triton")),
        Step(material, 60, ("torch", "transformers", "tokenizers")),
        Step(lora, 150, TRAINER, ("material",)),
        Step(full, 120, TRAINER, ("material",)),
        Step(qlora, 120, (*TRAINER, "bitsandbytes"), ("material",)),
        Step(fsdp, 120, TRAINER, ("material",)),
        Step(finalize, 60, TRAINER, ("lora",)),
        Step(quantize, 120, (*TRAINER, "llmcompressor"), ("finalize",)),
        Step(evaluate, 90, (*TRAINER, "lm_eval", "compressed_tensors"), ("finalize",)),
    )
}


def main(arguments: list[Any]) -> None:
    """Run one step."""
    name, folder, device, size = arguments
    shop = stages.Shop(Path(folder), device, size == "tiny", {} if device == "cuda" else {"OMP_NUM_THREADS": "1"})
    Path(folder, f"{name}.figures").write_text(json.dumps(STEPS[name].run(shop)))


if __name__ == "__main__":
    main(sys.argv[1:])
