"""The Quantize stage: calibrates and quantizes the merged model with llmcompressor, and checks on disk that it did."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tunesmith_trainer import chat, dataset, generation, loading, store
from tunesmith_trainer.contract import Artifact, Device
from tunesmith_trainer.contract_eval import QuantizeAnswer, QuantizeInput
from tunesmith_trainer.device import node
from tunesmith_trainer.effect import measure
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.model import DEFAULT_GROUP_SIZE, check_group_sizes, inspect, load_tokenizer
from tunesmith_trainer.spec import Quantization

INPUT = QuantizeInput
# Which rows calibrate must not change from one attempt to the next.
CALIBRATION_SEED = 42
# As in llmcompressor's own W8A8 recipes: most of the difficulty of outlying activations moves into the weights.
SMOOTHING_STRENGTH = 0.8
CARD = """---
base_model: {model}
tags: [compressed-tensors, {scheme}]
---
# {title}

Quantized by Tunesmith with llmcompressor: scheme {scheme}, algorithm {algorithm}, calibrated on {samples} rows of the training
data. {modules} linear layers are quantized, at {bits} bits per weight with their scales.

| | |
|---|---|
| made from | `{model}` |
| digest of that | `{base_digest}` |
"""


def run(stage: QuantizeInput) -> QuantizeAnswer:
    """Quantize the merged model as the variant says and return the artefact.

    Raises StageError: SourceNotFound and DigestMismatch for the model, GroupSizeMismatch, InvalidSettings for an algorithm
    that does not fit the scheme, EmptyDataset without calibration rows, NoEffect when no layer was quantized on disk.
    """
    settings = stage.variant.quantization
    check_settings(settings)
    source, base_digest = store.verify(stage.model.uri, stage.model.digest)
    check_group_sizes(inspect(source), [stage.variant])
    uri = store.join(stage.run_uri, "variants", stage.variant.name)
    target = store.path_of(uri)
    # What an interrupted attempt left has no manifest and would end up in ours.
    shutil.rmtree(target, ignore_errors=True)
    samples = calibrate_and_save(stage, source, target)
    effect = measure(target)
    if effect.quantized_modules == 0:
        raise StageError("NoEffect", f"{settings.algorithm} {settings.scheme} left every layer of {stage.model.uri} as it was")
    card = CARD.format(
        title=f"{stage.object.name} {stage.variant.name}",
        model=stage.model.uri,
        scheme=settings.scheme,
        algorithm=settings.algorithm,
        samples=samples,
        modules=effect.quantized_modules,
        bits=effect.bits_per_weight,
        base_digest=base_digest,
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
    return QuantizeAnswer(artifacts=[artifact], effect=effect)


def check_settings(settings: Quantization) -> None:
    """Refuse combinations that mean nothing: StageError(InvalidSettings)."""
    if settings.algorithm == "SmoothQuantGPTQ" and settings.scheme != "W8A8":
        raise StageError("InvalidSettings", "SmoothQuantGPTQ smooths activations, which W4A16 does not quantize: use GPTQ")
    if settings.group_size is not None and settings.scheme != "W4A16":
        raise StageError("InvalidSettings", "groupSize is for W4A16: W8A8 has one scale for each output channel")


def calibrate_and_save(stage: QuantizeInput, source: Path, target: Path) -> int:
    """Quantize the model at `source` into `target`, without manifest, and return how many rows calibrated it."""
    import torch
    from llmcompressor.entrypoints.oneshot import oneshot
    from llmcompressor.utils.dev import get_main_device

    settings = stage.variant.quantization
    tokenizer = load_tokenizer(source)
    rows = calibration_rows(store.path_of(stage.run_uri) / "data" / "train.jsonl", settings.num_calibration_samples)
    encoded = [ids[: stage.training.max_length] for ids in encode(rows, tokenizer)]
    sequences = list(packed(encoded, stage.training.max_length))
    model = loading.load(source, dtype="auto")
    require_device(stage.device, get_main_device().type)
    oneshot(
        model=model,
        recipe=recipe(settings),
        dataset=_dataset(sequences),
        max_seq_length=stage.training.max_length,
        num_calibration_samples=len(sequences),
        shuffle_calibration_samples=False,
    )
    if stage.device == "GPU":
        require_device(stage.device, "cuda" if torch.cuda.max_memory_allocated() else "cpu")
    generation.make_savable(model).save_pretrained(target, save_compressed=True)
    generation.carry(source, target, generation.recorded_ends(store.path_of(stage.run_uri)))
    tokenizer.save_pretrained(target)
    # It names Python objects by YAML tag, which a careless reader would run; config.json has all that loading needs.
    (target / "recipe.yaml").unlink(missing_ok=True)
    for path in store.listed_files(target):
        path.chmod(0o644)  # llmcompressor's writer leaves weights readable by their owner alone
    return len(encoded)


def require_device(asked: Device, kind: str) -> None:
    """Refuse to calibrate on another kind of device than was asked for, which llmcompressor only logs: StageError(DeviceUnavailable)."""
    wanted = "cuda" if asked == "GPU" else "cpu"
    if kind != wanted:
        raise StageError("DeviceUnavailable", f"{node()}: llmcompressor would calibrate on {kind}, and {wanted} was asked for")


def encode(rows: list[dataset.Placed], tokenizer: Any) -> Iterator[list[int]]:
    """Yield rows as tokens, rendered whole; raises StageError(InvalidDataset) naming a row that cannot be."""
    encoder = chat.Encoder(tokenizer, answers=False)
    for item in rows:
        with dataset.placed(item.place):
            yield encoder.whole(item.row)


def calibration_rows(path: Path, count: int) -> list[dataset.Placed]:
    """Return `count` training rows drawn with a fixed seed, or all where there are fewer; EmptyDataset where there are none."""
    rows = list(dataset.read_normal(path))
    if not rows:
        raise StageError("EmptyDataset", f"{path.name} has no rows to calibrate on: has Prepare finished for this run?")
    return random.Random(CALIBRATION_SEED).sample(rows, min(count, len(rows)))


def packed(rows: Iterable[list[int]], length: int) -> Iterator[list[int]]:
    """Yield rows of tokens joined to sequences of at most `length`, none of them cut.

    Calibration sums over tokens, and what it costs is a forward pass of each layer for each sequence: joined, chat rows take
    a fraction of the time. Padding them into batches instead would calibrate on tokens that no request has.
    """
    sequence: list[int] = []
    for ids in rows:
        if sequence and len(sequence) + len(ids) > length:
            yield sequence
            sequence = []
        sequence = sequence + ids
    if sequence:
        yield sequence


def _dataset(sequences: list[list[int]]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": sequences, "attention_mask": [[1] * len(ids) for ids in sequences]})


def recipe(settings: Quantization) -> list[Any]:
    """Return llmcompressor's modifiers for a variant; the output head stays as it is, as in its own recipes."""
    from compressed_tensors.quantization import preset_name_to_scheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    scheme = preset_name_to_scheme(settings.scheme, ["Linear"])
    if settings.scheme == "W4A16":
        scheme.weights.group_size = settings.group_size or DEFAULT_GROUP_SIZE
    gptq = GPTQModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])
    return [SmoothQuantModifier(smoothing_strength=SMOOTHING_STRENGTH), gptq] if settings.algorithm == "SmoothQuantGPTQ" else [gptq]
