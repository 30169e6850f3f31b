"""Whether variants can be made of an architecture: tried in Prepare on a tiny model of it, before anything is trained.

llmcompressor's mappings for smoothing, and what transformers makes of quantized weights when it reads them, hold for some architectures
and not for others, and fail in silence. No list of architectures is kept.
"""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from tunesmith_contract.quantization import Quantization, Variant
from tunesmith_trainer import evaluate
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.failure import raise_surroundings
from tunesmith_trainer.model import fidelity, shrink
from tunesmith_trainer.model.base import load_config
from tunesmith_trainer.quantization import calibration, compression

ROWS, LENGTH = 8, 32
# In 32 bits, rounding moves logits by far less than this part of their size when a model is written, read or smoothed.
ROUNDING = 1e-2
# Random weights are quantized worse than trained ones: 0.08 and 0.47 at most where all is read again, 0.82 or more where something is lost.
BOUNDS = {"W8A8": 0.3, "W4A16": 0.65}


class Trial:
    """A tiny model in a folder, in 32 bits, and what it says of some rows."""

    def __init__(self, config: Any, folder: Path) -> None:
        """Write a tiny model of a configuration; raises what torch and transformers raise."""
        import torch

        self.folder = folder
        model = _stir(shrink.build(config, "cpu"))
        model.save_pretrained(folder / "base")
        words = model.get_input_embeddings().weight.shape[0]
        chance = torch.Generator().manual_seed(1)
        self.rows = torch.randint(min(8, words - 1), words, (2 * ROWS, LENGTH), generator=chance).tolist()
        self.before = fidelity.logits(model.eval(), self.rows[:ROWS])
        self.holds = self.distance(evaluate.load_model(folder / "base", "FP32", "CPU")) <= ROUNDING

    def distance(self, model: Any) -> float:
        """How far what a model says is from what the tiny one says."""
        return fidelity.compare(self.before, fidelity.logits(model, self.rows[:ROWS])).error

    def refusal(self, settings: Quantization) -> str | None:
        """Return what is wrong with a way of quantizing it, and what to do; None: nothing is."""
        model = evaluate.load_model(self.folder / "base", "FP32", "CPU")
        batches = calibration.batches(self.rows, ROWS * LENGTH)
        if settings.algorithm == "SmoothQuantGPTQ":
            moved = _tried(lambda: compression.smooth(model, batches), lambda: self.distance(model))
            # Smoothing that changes nothing at all has found nothing to smooth.
            if not 0 < moved <= ROUNDING:
                found = "is not made for its layers" if moved == 0 or math.isinf(moved) else "changes what the model says"
                return f"smoothing {found}: take algorithm GPTQ"
        target = self.folder / "variant"
        shutil.rmtree(target, ignore_errors=True)
        error = _tried(
            lambda: _written(model, settings, batches, target),
            lambda: self.distance(compression.read_again(target, "FP32")),
        )
        if not error <= BOUNDS[settings.scheme]:
            lost = "cannot be written or read" if math.isinf(error) else "says something else when it is read again"
            return f"the quantized model {lost}: take another scheme, or leave the variant out"
        return None


def _written(model: Any, settings: Quantization, batches: list[Any], target: Path) -> None:
    group = math.gcd(16, *compression.widths(model)) if settings.scheme == "W4A16" else None
    compression.quantize(model, settings.model_copy(update={"group_size": group}), batches)
    compression.save(model, target)


def _tried(change: Any, distance: Any) -> float:
    """Return a distance after a change; infinite where one of the two fails, as it would with the whole model."""
    try:
        change()
        found: float = distance()
    except Exception as error:
        raise_surroundings(error)
        print("the trial failed:", flush=True)
        traceback.print_exc(file=sys.stdout)
        return math.inf
    return found


def _stir(model: Any) -> Any:
    """Give a model weights with which each layer has a say, and each channel of a norm another size."""
    import torch

    chance = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not name.endswith("A_log"):
                parameter.mul_(3)
            elif name.endswith("weight"):
                parameter.add_(2 * torch.rand(parameter.shape, generator=chance))
    return model


def begin(config: Any, folder: Path) -> Trial | None:
    """Return the trial of a configuration; None for an architecture of which no tiny model can be made that can be written and read."""
    for number, small in enumerate(shrink.tiny(config)):
        with suppress(Exception):  # as for shrink.candidates
            trial = Trial(small, folder / str(number))
            if trial.holds:
                return trial
    return None


def check(folder: Path, architecture: str, variants: list[Variant]) -> None:
    """Refuse variants that Quantize could not make of the model, or that would not say what it says: StageError(InvalidSettings)."""
    config = load_config(folder)
    with tempfile.TemporaryDirectory() as workspace:
        trial = begin(config, Path(workspace))
        if trial is None:
            print(f"no tiny model of {architecture} can be made: its variants were not tried", flush=True)
            return
        for variant in variants:
            settings = variant.quantization
            wrong = trial.refusal(settings)
            if wrong:
                raise StageError(
                    "InvalidSettings",
                    f"variant {variant.name!r}: {settings.algorithm} with {settings.scheme} does not work for {architecture}, as tried on a tiny "
                    f"model of it; {wrong}",
                )
