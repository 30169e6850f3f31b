"""A training of two processes that share the model, and the bytes of tensors that each holds at the peak: for tests.bench.memory.

`python -m tests.bench.memory_shared NUMBER` is one process of the case of that number. Threads of the collectives free
what others have made, which torch's recorder does not see: here storages are counted from the operation that makes them until they are
freed, as in the estimate, but of real tensors, of FSDP's shards and of DeepSpeed's flat buffers.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.bench.memory import Case, Measured, computing_in, started

STRATEGIES: dict[str, dict[str, Any]] = {
    "DDP": {"ddp": {}},
    "FSDP": {"fsdp": {}},
    "ZeRO-2": {"deepSpeed": {"zeroStage": 2}},
    "ZeRO-3": {"deepSpeed": {"zeroStage": 3}},
}
CASES = [(name, Case("llama", method, 2, 384, "autocast")) for method in ("full", "LoRA") for name in STRATEGIES]
PROCESSES = 2


def parallelism(name: str) -> dict[str, Any]:
    """The block of a strategy."""
    return {"nodes": 1, "processesPerNode": PROCESSES} | STRATEGIES[name]


def real(measured: Measured, number: int) -> int:
    """The bytes of the process that holds most, in the case of that number."""
    from tests.trainer import bench

    measured.write_rows(CASES[number][1])
    where = {"WORLD_SIZE": str(PROCESSES), "LOCAL_WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(bench.free_port())}
    where |= {"TUNESMITH_PVC_ROOT": str(measured.store.root), "HF_HUB_OFFLINE": "1"}
    processes = []
    for rank in range(PROCESSES):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "TUNESMITH_SCRATCH": str(measured.store.folder / f"shared-{number}-{rank}")}
        command = [sys.executable, "-m", "tests.bench.memory_shared", str(number)]
        processes.append(subprocess.Popen(command, env=os.environ | where | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    outputs = [process.communicate()[0] for process in processes]
    figures = [line.removeprefix("most ") for text in outputs for line in text.splitlines() if line.startswith("most ")]
    if len(figures) < PROCESSES:
        sys.exit("\n".join(text[-3000:] for text in outputs))
    return max(map(int, figures))


def train(number: int) -> None:
    """Train as one process of a case, and print the bytes of its tensors at the peak of its steps."""
    from types import SimpleNamespace

    import torch
    from torch.distributed.tensor import DTensor

    from tests.trainer import bench
    from tunesmith_contract.stages import TrainInput
    from tunesmith_trainer.training import footprint, loop
    from tunesmith_trainer.training.watchdog import Vitals

    class Meter(footprint.Meter):  # type: ignore[misc]
        def count(self, tensor: Any) -> None:
            super().count(tensor._local_tensor if isinstance(tensor, DTensor) else tensor)

        def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
            if operation is torch.ops.aten._local_scalar_dense.default:
                return operation(*arguments)
            return super().__torch_dispatch__(operation, types, arguments, named)

    name, case = CASES[number]
    prepared = {"runURI": "pvc://models/run", "model": {"uri": "pvc://models/base", "digest": "sha256:" + "0" * 64}}
    value = bench.train_input(prepared, 1, processes=PROCESSES, **case.blocks()) | {"parallelism": parallelism(name)}
    stage, scratch = TrainInput.model_validate(value), Path(os.environ["TUNESMITH_SCRATCH"])
    with Meter(masks_nothing=True) as meter, computing_in(case):
        trainer = loop.build(stage, stage.parallelism, None, scratch, Vitals())
        trainer.publisher = SimpleNamespace(wait=lambda: None, start=lambda _: None)

        def begin() -> None:
            gc.collect()
            for parameter in trainer.model.parameters():
                meter.count(parameter)
            meter.most = meter.now

        trainer.add_callback(started(begin))
        trainer.train()
    print(f"\nmost {meter.most}", flush=True)
    os._exit(0)


if __name__ == "__main__":
    train(json.loads(sys.argv[1]))
