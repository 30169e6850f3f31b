"""How far Prepare's estimate of a step's memory is from what a real step takes: real trainings of two steps, on the CPU.

    make bench-memory                                             # ARGS="--only llama" for one architecture

Each case trains a model of few layers, wide enough that tensors of weights and activations outweigh all else, with the Train stage's own
trainer. What torch's CPU allocator gives out and takes back is recorded, and its peak, with the weights, is compared with the estimate.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

MOST_ERROR = 0.25
WIDE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 4096}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": WIDE | {"vocab_size": 4096, "tie_word_embeddings": False},
    "qwen3_moe": WIDE | {"vocab_size": 4096, "head_dim": 64, "moe_intermediate_size": 512, "num_experts": 8, "num_experts_per_tok": 2},
    "gemma3_text": WIDE | {"vocab_size": 4096, "head_dim": 64, "sliding_window": 256},
}


@dataclass(frozen=True)
class Case:
    """A training: what is trained, how, and on which batches. `rest` are further changes of the run's training block."""

    kind: str
    method: str
    rows: int
    length: int
    precision: str = "FP32"
    checkpointing: bool = False
    packing: bool = False
    rest: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """The columns of the table."""
        flags = [name for name, on in (("checkpointing", self.checkpointing), ("packed", self.packing), *((key, True) for key in self.rest)) if on]
        return f"{self.kind:12}{self.method:14}{self.rows:>2} x {self.length:<6}{self.precision:10}{' '.join(flags):26}"

    @property
    def mixed(self) -> bool:
        """Whether it computes in bf16 by autocast, as on GPUs."""
        return self.precision == "autocast"

    def blocks(self) -> dict[str, Any]:
        """The run's blocks."""
        from tests.trainer import bench

        lora = {"r": 16, "loraAlpha": 32, "loraDropout": "0.05" if self.method == "LoRA, dropout" else "0", "targetModules": ["all-linear"]}
        training = bench.training(
            perDeviceTrainBatchSize=self.rows, maxLength=self.length, precision="FP32" if self.precision == "FP32" else "BF16", maxSteps=2,
            gradientCheckpointing=self.checkpointing, **self.rest,
        )  # fmt: skip
        full = self.method == "full"
        return {
            "training": training,
            "adapter": None if full else {"lora": lora},
            "method": {"sft": {"packing": self.packing, "assistantOnlyLoss": False}},
            "datasets": [{"name": "words", "uri": "pvc://data/train.jsonl", "format": "Text"}],
            "output": {"uri": "pvc://models/out", "artifacts": ["Merged"]},
            "validation": None,
        }


class Measured:
    """A store with one model, on which steps are estimated and done."""

    def __init__(self, folder: Path, kind: str, config: dict[str, Any]) -> None:
        """Write a model with random weights, and a tokenizer."""
        import torch
        from transformers import CONFIG_MAPPING, AutoModelForCausalLM

        from tests.trainer import bench

        base = folder / "made"
        torch.manual_seed(1)
        made = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**config | ENDS))
        made.to(torch.bfloat16).save_pretrained(base)
        bench.make_tokenizer().save_pretrained(base)
        self.store = bench.Bench(folder, base)
        shutil.rmtree(base)

    def estimate(self, case: Case, **blocks: Any) -> int:
        """What Prepare says, with the precision of the case; `blocks` of the run are changed."""
        from tests.trainer import bench
        from tunesmith_contract.stages import Run
        from tunesmith_trainer.training import memory

        run = Run.model_validate(bench.run_block(**case.blocks() | blocks))
        with computing_in(case):
            need = memory.device_need(self.store.root / "models" / "base", run, "CPU", case.length)
        assert isinstance(need, memory.Need), need
        return int(need.total)

    def real(self, case: Case) -> int:
        """The bytes of tensors at the peak of two real steps: of the weights, and what torch's allocator has given out beside them."""
        from torch.profiler import ProfilerActivity, profile

        from tests.trainer import bench

        self.write_rows(case)
        prepared = {"runURI": "pvc://models/run", "model": {"uri": "pvc://models/base", "digest": "sha256:" + "0" * 64}}
        value = bench.train_input(prepared, 1, **case.blocks())
        with bench.training_alone(self.store) as build, computing_in(case):
            trainer = build(value)
            recorded = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            trainer.add_callback(started(recorded.start))
            gc.collect()
            with redirect_stdout(sys.stderr):
                trainer.train()
            recorded.stop()
            held = [tensor.untyped_storage() for tensor in (*trainer.model.parameters(), *trainer.model.buffers())]
        now = most = 0
        events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
        for event in sorted(events, key=lambda event: event.start_ns()):
            now += event.nbytes()
            most = max(most, now)
        return int(sum({storage._cdata: storage.nbytes() for storage in held}.values()) + most)

    def write_rows(self, case: Case) -> None:
        """Rows of one length; all but one of each batch are whole, so that batches have padding, and packed rows are short."""
        from dev.rows import WORDS, write_rows

        texts = [" ".join(WORDS[(number + place) % len(WORDS)] for place in range(case.length * 2)) for number in range(4 * case.rows)]
        if case.packing:
            texts = [" ".join(text.split()[: case.length // 8]) for text in texts * 16]
        elif case.rows > 1:
            texts[:: case.rows] = [text[: len(text) // 8] for text in texts[:: case.rows]]
        write_rows(self.store.root / "models" / "run" / "data" / "train.jsonl", [{"text": text} for text in texts])
        shutil.rmtree(self.store.folder / "alone", ignore_errors=True)


def started(start: Callable[[], None]) -> Any:
    """A callback that starts recording at the first step: before it other threads free what this one has made, which is not recorded.

    What DDP has made before, its buckets, it makes again in the second step.
    """
    from transformers import TrainerCallback

    class Start(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, _arguments: Any, state: Any, _control: Any, **_: Any) -> None:
            if state.global_step == 0:
                start()

    return Start()


@contextmanager
def computing_in(case: Case) -> Iterator[None]:
    """Have trainings, and estimates, use autocast on the CPU where GPUs would: with a frozen base too."""
    from tunesmith_trainer.training import arguments, loop

    real = arguments.training_arguments

    def changed(*given: Any, **named: Any) -> dict[str, Any]:
        return dict(real(*given, **named)) | {"bf16": case.mixed}

    with mock.patch.object(loop, "training_arguments", changed), mock.patch.object(arguments, "training_arguments", changed):
        yield


def grid() -> list[Case]:
    """The cases of the benchmark."""
    kinds = product(("LoRA", "full"), ("FP32", "autocast"), (False, True))
    found = [Case("llama", method, 2, 384, precision, checkpointing) for method, precision, checkpointing in kinds]
    found += [Case("llama", "LoRA, dropout", 2, 384, precision) for precision in ("FP32", "autocast")]
    found += [Case("llama", method, *batch, "autocast") for method in ("LoRA", "full") for batch in ((1, 256), (4, 384))]
    found += [Case("llama", method, 4, 256, "autocast", packing=True) for method in ("LoRA", "full")]
    found += [Case("llama", "full", 2, 384, "autocast", rest={"gradientAccumulationSteps": 2})]
    for kind, method in product(("qwen3_moe", "gemma3_text"), ("LoRA", "full")):
        found += [Case(kind, method, 2, 384, precision, checkpointing) for precision, checkpointing in (("FP32", False), ("autocast", True))]
    return found


class Table:
    """Prints a line for each case, and keeps the greatest error."""

    def __init__(self) -> None:
        """Print the head."""
        self.errors: list[float] = []
        print(f"{'model':12}{'trained':14}{'batch':11}{'precision':10}{'':26}{'estimate':>10}{'measured':>10}{'error':>8}")

    def add(self, name: str, estimate: int, real: int) -> None:
        """Print a case."""
        self.errors.append(estimate / real - 1)
        print(f"{name}{estimate / 1e6:>7.0f} MB{real / 1e6:>7.0f} MB{self.errors[-1]:>+8.1%}", flush=True)


def main() -> int:
    """Print the table; 0 where every error is within the bound."""
    from tests.bench import memory_shared

    parser = argparse.ArgumentParser(prog="python -m tests.bench.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*CONFIGS, "shared"], help="cases of one architecture, or those of two processes")
    chosen = parser.parse_args()
    table = Table()
    for kind, config in CONFIGS.items():
        with tempfile.TemporaryDirectory(prefix="bench-memory-") as folder:
            measured = Measured(Path(folder), kind, config)
            for case in (case for case in grid() if case.kind == kind and chosen.only in (None, kind)):
                table.add(str(case), measured.estimate(case), measured.real(case))
            for number, (name, case) in enumerate(memory_shared.CASES if chosen.only in (None, "shared") else []):
                if case.kind == kind:
                    estimate = measured.estimate(case, parallelism=memory_shared.parallelism(name))
                    table.add(f"{str(case).rstrip():50}{f'2 processes, {name}':23}", estimate, memory_shared.real(measured, number))
    worst = max(table.errors, key=abs)
    print(f"{len(table.errors)} cases; the greatest error is {worst:+.1%} (aim: within {MOST_ERROR:.0%})")
    return 0 if abs(worst) <= MOST_ERROR else 1


if __name__ == "__main__":
    sys.exit(main())
