"""What the runner has to know of a stage's input before it runs the stage."""

from __future__ import annotations

from tunesmith_contract.adapters import BaseQuantization
from tunesmith_contract.stages import CompareInput, EvaluateInput, FinalizeInput, JobInput, PrepareInput, QuantizeInput, TrainInput
from tunesmith_contract.training import Training

UNUSED = frozenset(("bitsandbytes", "sklearn"))


def result_name(stage: JobInput) -> str:
    """Return the name of the stage's result file in `results/`, without `.json`; each variant and each model has one of its own."""
    part = stage.variant.name if isinstance(stage, QuantizeInput) else stage.model.name if isinstance(stage, EvaluateInput) else ""
    return f"{stage.stage.lower()}-{part}" if part else stage.stage.lower()


def reuses_result(stage: JobInput) -> bool:
    """Return whether a finished result found in the store is the answer (docs/contract.md, Idempotent).

    Prepare has to read its inputs to know which run this is, so it looks for the result itself. Evaluate goes through its cache, which
    knows what changes a figure. Comparing is cheap, and a baseline may have been measured again.
    """
    return not isinstance(stage, PrepareInput | EvaluateInput | CompareInput)


def processes_per_pod(stage: JobInput) -> int:
    """Return the processes of this pod that take a GPU each."""
    return stage.rendezvous.processes_per_node if isinstance(stage, TrainInput) else 1


def needs_bf16(stage: JobInput) -> bool:
    """Return whether the stage was asked to compute in bf16."""
    precision = stage.training.precision if isinstance(stage, TrainInput) else stage.precision if isinstance(stage, EvaluateInput) else None
    return precision == "BF16"


def unused(stage: JobInput) -> frozenset[str]:
    """Return the modules that PEFT and transformers would import because they are installed, and that this stage does not use."""
    if isinstance(stage, FinalizeInput):
        # The base is loaded unquantized.
        return UNUSED
    run = stage.run if isinstance(stage, PrepareInput) else stage if isinstance(stage, TrainInput) else None
    return _unused_in_training(run.training, run.base_quantization) if run else frozenset()


def _unused_in_training(training: Training, base_quantization: BaseQuantization | None) -> frozenset[str]:
    # An optimizer that the user names may be one of bitsandbytes'.
    return UNUSED - ({"bitsandbytes"} if base_quantization or "optim" in training.overrides else set())
