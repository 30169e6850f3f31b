"""Running a stage: read the stage file, run the stage it names, answer with a result and an exit code.

Each stage is a module of this package named like it, in lower case, with `INPUT` (its input model) and `run(input) -> Answer`.
Stage modules import torch and its friends inside functions: an input that is wrong is then told within a second.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from pydantic import ValidationError

from tunesmith_contract.results import Answer
from tunesmith_contract.stages import JobInput, RunInput
from tunesmith_trainer import device, result, stage_input, store
from tunesmith_trainer.errors import Interruption, StageError
from tunesmith_trainer.failure import classify

STAGES = ("Prepare", "Train", "Finalize", "Quantize", "Evaluate", "Compare")


class StageModule(Protocol):
    """What runner.py needs of a stage's module."""

    INPUT: type[JobInput]

    def run(self, stage: Any) -> Answer:
        """Do the stage's work; raises StageError."""


def stage_file() -> Path:
    """Return the path of the stage's input."""
    return Path(os.environ.get("TUNESMITH_STAGE_FILE", "/etc/tunesmith/stage.json"))


def load(name: str) -> StageModule:
    """Return the module of the stage `name`; raises StageError(InvalidSettings) for a name that is no stage."""
    if name not in STAGES:
        raise StageError("InvalidSettings", f"unknown stage {name!r}; this image knows {', '.join(STAGES)}")
    module: Any = importlib.import_module(f"tunesmith_trainer.{name.lower()}")
    return module  # type: ignore[no-any-return]


def read_file() -> dict[str, Any]:
    """Return the stage file's object; raises StageError(InvalidSettings) where it is missing or not a JSON object."""
    value = store.read_json(stage_file())
    if not isinstance(value, dict):
        raise StageError("InvalidSettings", f"{stage_file()} is missing or is not a JSON object")
    return value


def parse(model: type[JobInput], value: dict[str, Any]) -> Any:
    """Return the stage file's object as a model; raises StageError(InvalidSettings) naming each wrong field."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        wrong = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()]
        raise StageError("InvalidSettings", "the stage file is wrong: " + "; ".join(wrong)) from None


def is_leader() -> bool:
    """Return whether this pod writes the result: always, but in an Indexed Job only the first."""
    return os.environ.get("JOB_COMPLETION_INDEX", "0") == "0"


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise Interruption(f"stopped by {signal.Signals(number).name}; the next attempt starts this stage again")


def leave_out(names: Iterable[str]) -> None:
    """Let this process's libraries find these modules not installed, as far as they have not imported them.

    Each imports others that take seconds: bitsandbytes the compiler of torch (8 s of CPU time), scikit-learn scipy's statistics (2 s).
    """
    for name in names:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def execute(value: dict[str, Any], start_time: str, own_process: bool = False) -> dict[str, Any]:
    """Run the stage that `value` describes and return its whole result; raises StageError and whatever a bug raises."""
    module = load(str(value.get("stage")))
    stage: JobInput = parse(module.INPUT, value)
    if own_process:
        leave_out(stage_input.unused(stage))
    if isinstance(stage, RunInput) and stage_input.reuses_result(stage):
        finished = result.read_finished(stage.run_uri, stage_input.result_name(stage))
        if finished:
            return finished
    require_devices(stage)
    whole = result.succeed(stage, module.run(stage), start_time)
    if is_leader():
        # Prepare is not told where the run lies: it finds out and answers with it.
        path = result.result_path(stage.run_uri if isinstance(stage, RunInput) else whole["runURI"], stage_input.result_name(stage))
        store.persevere(lambda: store.write_json(path, whole), "the result")
    return whole


def require_devices(stage: JobInput) -> None:
    """Return where a stage has the GPUs that it asked for, and hide them from one that asked for none; raises StageError.

    DeviceUnavailable: they cannot be used as asked for, which nothing may mend by computing on the CPU.
    """
    if stage.device == "CPU":
        device.hide(os.environ)
        return
    processes = stage_input.processes_per_pod(stage)
    if stage.gpus is not None and processes > stage.gpus:
        raise StageError("InvalidSettings", f"{processes} processes of a pod cannot share {stage.gpus} GPUs: each needs one of its own")
    facts = device.look()
    if wrong := device.problem(facts, device.Wanted(stage.gpus, processes, stage_input.needs_bf16(stage))):
        raise StageError("DeviceUnavailable", f"{device.node()} ({device.describe(facts)}): {wrong}")
    print("devices: " + ", ".join(gpu.name for gpu in facts.gpus) + f"; {device.describe(facts)}, torch {facts.torch}", flush=True)


def record_failure(value: dict[str, Any], failure: dict[str, Any]) -> None:
    """Write a failure's result file where the run's folder is known; what goes wrong here is only printed.

    The stage's module may be what failed, when it was imported: that must not keep its failure from being told.
    """
    try:
        module = load(str(value.get("stage")))
        stage: JobInput = parse(module.INPUT, value)
        if isinstance(stage, RunInput) and is_leader() and failure["reason"] != "Superseded":
            store.write_json(result.result_path(stage.run_uri, stage_input.result_name(stage)), failure)
    except Exception as error:
        print(f"no result file was written: {error!r}", flush=True)


def main(own_process: bool = False) -> int:
    """Run the stage, write its result, and return the exit code. `own_process`: nothing else runs in this process, before or after."""
    # As process 1 of a container Python would ignore SIGTERM.
    signal.signal(signal.SIGTERM, _interrupt)
    start_time = result.timestamp()
    value: dict[str, Any] = {}
    try:
        value = read_file()
        answer = execute(value, start_time, own_process)
        code = 0
    except (Exception, Interruption) as error:  # whatever happened, the operator is owed a result
        failure = classify(error, str(value.get("stage")))
        attempt = value.get("attempt")
        whole = attempt if isinstance(attempt, int) and attempt > 0 else 1
        answer = result.fail(str(value.get("stage", "Unknown")), whole, failure, start_time)
        record_failure(value, answer)
        code = failure.exit_code
    print(result.cut(answer, 1 << 20).decode(), flush=True)
    result.write_termination(answer)
    return code
