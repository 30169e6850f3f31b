"""A training process that shards although it is alone, and says of what its parameters are: what torchrun starts in the step `fsdp`.

The product trains without FSDP where a process has nobody to share with (tunesmith_trainer/training/strategy.py). Here its code is to be run on
the one GPU that there is. The arguments are torchrun's for a Python interpreter: `-u -m MODULE`.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any


def report(measure: Any) -> Any:
    """Have what measures the shares print how many parameters are sharded tensors."""
    from torch.distributed.tensor import DTensor

    def measured(model: Any, optimizer: Any) -> Any:
        parameters = list(model.parameters())
        sharded = sum(isinstance(parameter, DTensor) for parameter in parameters)
        print(f"fsdp: {'all' if sharded == len(parameters) else sharded} of {len(parameters)} parameters are sharded tensors", flush=True)
        return measure(model, optimizer)

    return measured


def main(arguments: list[str]) -> None:
    """Run the module that the interpreter's arguments name."""
    from tunesmith_trainer.training import sharding_check, strategy

    vars(strategy)["in_effect"] = lambda stage: stage.parallelism
    vars(sharding_check)["measure"] = report(sharding_check.measure)
    module = arguments[arguments.index("-m") + 1]
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
