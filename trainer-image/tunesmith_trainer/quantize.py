"""The Quantize stage: calibrates and quantizes the merged model, and checks on disk that it did, and that the variant says what the model says."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith_contract.quantization import Quantization
from tunesmith_contract.results import Artifact, Fidelity, QuantizeAnswer
from tunesmith_contract.stages import Device, QuantizeInput
from tunesmith_trainer import store
from tunesmith_trainer.data import dataset
from tunesmith_trainer.device import node
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.failure import raise_surroundings
from tunesmith_trainer.model import fidelity, generation, loading
from tunesmith_trainer.model.base import load_tokenizer
from tunesmith_trainer.model.fidelity import Distance
from tunesmith_trainer.quantization import calibration, compression
from tunesmith_trainer.quantization.measure import measure

INPUT = QuantizeInput
# How far logits may move, in parts of their own size (fidelity.py). Measured in bf16 (docs/contract.md, Quantize): smoothing alone moves
# them by up to 0.07 where it fits and by 0.55 or more where it does not; W8A8 by up to 0.16, W4A16 by up to 0.60, and a variant of which
# something is lost when it is read by 0.94 or more.
SMOOTHING_BOUND = 0.25
BOUNDS = {"W8A8": 0.4, "W4A16": 0.75}
# How far the outputs of one layer may be in parts of what it adds (fidelity.worst_layer). SmolLM2-135M with each weight rounded to the
# nearest, which is worse than GPTQ: 0.14 in 8 bits and 0.29 in 4; with the rows of one projection in another order 0.80 and more.
LAYER_BOUND = 0.6
CARD = """---
base_model: {model}
tags: [compressed-tensors, {scheme}]
---
# {title}

Quantized by Tunesmith with llmcompressor: scheme {scheme}, algorithm {algorithm}, calibrated on {tokens} tokens of {rows} rows.
{modules} linear layers are quantized, at {bits} bits per weight with their scales. Over {probed} of these tokens its logits are off by {error}
of their own size, and the likeliest next token is the same at {same} %.

| | |
|---|---|
| made from | `{model}` |
| digest of that | `{base_digest}` |
"""


@dataclass(frozen=True)
class Made:
    """What a variant was calibrated on, and what the model said before and after smoothing."""

    rows: int
    tokens: int
    probes: list[list[int]]
    before: list[Any]
    layers: list[Any]
    """What its layers were given and made of it."""
    smoothing: Distance | None = None


def run(stage: QuantizeInput) -> QuantizeAnswer:
    """Quantize the merged model as the variant says and return the artefact.

    Raises StageError: SourceNotFound and DigestMismatch for the model, GroupSizeMismatch, InvalidSettings for an algorithm
    that does not fit the scheme, EmptyDataset without calibration rows, NoEffect when no layer was quantized on disk, OutputDiffers
    when the smoothed model, or the variant as it is read again, says something else than the model.
    """
    settings = stage.variant.quantization
    check_settings(settings)
    source, base_digest = store.verify(stage.model.uri, stage.model.digest)
    compression.check_group_sizes(compression.meta_model(source), [stage.variant])
    uri = store.join(stage.run_uri, "variants", stage.variant.name)
    target = store.path_of(uri)
    # What an interrupted attempt left has no manifest and would end up in ours.
    shutil.rmtree(target, ignore_errors=True)
    made = calibrate_and_save(stage, source, target)
    effect = measure(target)
    if effect.quantized_modules == 0:
        raise StageError("NoEffect", f"{settings.algorithm} {settings.scheme} left every layer of {stage.model.uri} as it was")
    moved = read_again(target, stage, made)
    card = CARD.format(
        title=f"{stage.object.name} {stage.variant.name}",
        model=stage.model.uri,
        scheme=settings.scheme,
        algorithm=settings.algorithm,
        rows=made.rows,
        tokens=made.tokens,
        modules=effect.quantized_modules,
        bits=effect.bits_per_weight,
        base_digest=base_digest,
        probed=moved.tokens,
        error=moved.logits_error,
        same=round(100 * moved.same_token),
    )
    store.write_bytes(target / "README.md", card.encode())
    manifest = store.write_manifest(target)
    artifact = Artifact(
        name=stage.variant.name,
        uri=uri,
        digest=manifest.digest,
        size_bytes=manifest.size_bytes,
        format="CompressedTensors",
        base_digest=base_digest,
    )
    return QuantizeAnswer(artifacts=[artifact], effect=effect, fidelity=moved)


def check_settings(settings: Quantization) -> None:
    """Refuse combinations that mean nothing: StageError(InvalidSettings)."""
    if settings.algorithm == "SmoothQuantGPTQ" and settings.scheme != "W8A8":
        raise StageError("InvalidSettings", "SmoothQuantGPTQ smooths activations, which W4A16 does not quantize: use GPTQ")
    if settings.group_size is not None and settings.scheme != "W4A16":
        raise StageError("InvalidSettings", "groupSize is for W4A16: W8A8 has one scale for each output channel")


def calibrate_and_save(stage: QuantizeInput, source: Path, target: Path) -> Made:
    """Quantize the model at `source` into `target`, without manifest; raises StageError (EmptyDataset, OutputDiffers)."""
    import torch
    from llmcompressor.utils.dev import get_main_device

    settings, length = stage.variant.quantization, stage.training.max_length
    tokenizer = load_tokenizer(source)
    path = calibration.path(store.path_of(stage.run_uri), stage.variant)
    placed = list(dataset.read_normal(path))
    if not placed:
        raise StageError("EmptyDataset", f"{path.name} has no rows to calibrate on: has Prepare finished for this run?")
    rows = calibration.tokens(placed, settings, tokenizer, length)
    batches, probes = calibration.batches(rows, length), fidelity.probes(rows)
    model = loading.load(source, dtype="auto")
    require_device(stage.device, get_main_device().type)
    before, layers = fidelity.pass_through(model, compression.decoder_layers(model), probes)
    smoothing = None
    if settings.algorithm == "SmoothQuantGPTQ":
        compression.smooth(model, batches)
        smoothing = fidelity.compare(before, fidelity.logits(model, probes))
        fidelity.require(smoothing, SMOOTHING_BOUND, f"smoothing alone changes what {type(model).__name__} says: take algorithm GPTQ")
    compression.quantize(model, settings, batches)
    if stage.device == "GPU":
        require_device(stage.device, "cuda" if torch.cuda.max_memory_allocated() else "cpu")
    compression.save(model, target)
    generation.carry(source, target, generation.recorded_ends(store.path_of(stage.run_uri)))
    tokenizer.save_pretrained(target)
    return Made(rows=len(rows), tokens=sum(map(len, rows)), probes=probes, before=before, layers=layers, smoothing=smoothing)


def read_again(target: Path, stage: QuantizeInput, made: Made) -> Fidelity:
    """Return how far the variant is from its model, read from its files as Evaluate reads it; raises StageError(OutputDiffers).

    On the CPU: a GPU that quantizes a layer at a time need not hold the whole model.
    """
    scheme = stage.variant.quantization.scheme
    advice = f"variant {stage.variant.name!r} cannot be trusted: take another scheme, or smaller groups"
    try:
        model = compression.read_again(target, "BF16")
        after, layers = fidelity.logits(model, made.probes), compression.decoder_layers(model)
        _, passed = fidelity.pass_through(model, layers, made.probes, made.layers)
        worst = fidelity.worst_layer(made.layers, passed, len(layers))
    except Exception as error:  # transformers raises many kinds here; but for what is around us, all mean that it cannot be loaded
        raise_surroundings(error)
        raise StageError("OutputDiffers", f"{scheme} as it was written cannot be read by transformers; {advice}") from error
    found = fidelity.compare(made.before, after)
    fidelity.require(found, BOUNDS[scheme], f"{scheme} as it was written does not say what its model says; {advice}")
    if worst is not None and not worst[1] <= LAYER_BOUND:
        message = f"layer {worst[0]} of {scheme} as it was written is off by {worst[1]:.2f} of what it adds, at most {LAYER_BOUND} is allowed"
        raise StageError("OutputDiffers", f"{message}; {advice}")
    return Fidelity(
        logits_error=round(found.error, 4),
        same_token=round(found.same, 4),
        tokens=found.tokens,
        layer_error=None if worst is None else round(worst[1], 4),
        smoothing_error=round(made.smoothing.error, 4) if made.smoothing else None,
    )


def require_device(asked: Device, kind: str) -> None:
    """Refuse to calibrate on another kind of device than was asked for, which llmcompressor only logs: StageError(DeviceUnavailable)."""
    wanted = "cuda" if asked == "GPU" else "cpu"
    if kind != wanted:
        raise StageError("DeviceUnavailable", f"{node()}: llmcompressor would calibrate on {kind}, and {wanted} was asked for")
