"""Finalize: turn the last checkpoint into the artefacts that the user gets, and check that they say what was trained."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tunesmith_contract.results import Artifact, Fidelity, FinalizeAnswer
from tunesmith_contract.stages import FinalizeInput, JobInput
from tunesmith_trainer import store
from tunesmith_trainer.data import dataset
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.model import card, fidelity, generation, loading
from tunesmith_trainer.model.base import load_config, load_tokenizer
from tunesmith_trainer.model.weights import quantization
from tunesmith_trainer.quantization import calibration
from tunesmith_trainer.training import checkpoint

INPUT: type[JobInput] = FinalizeInput
# Files that make up a tokenizer. They are copied, not saved anew: the artefact speaks the base model's own template.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
# Chat templates by name, but the default one (transformers' name for the folder).
TEMPLATES = "additional_chat_templates"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
# How far the logits of Merged may be from those trained (fidelity.py), without an adapter and with one, whose sum with the base is rounded.
BOUNDS = (0.01, 0.25)
# How much of training's step in the logits Merged may have made, where the step is larger than rounding: computing with
# the adapter beside the base in bf16, instead of in it, moves logits by 0.04 of their size (SmolLM2-135M) where the adapter is next to zero.
SHARES = (0.4, 1.6)
SMALLEST_STEP = 0.1
NO_EFFECT = (
    "the learning rate may be too small, every token may be outside the loss (see data/sample.json), or the adapter could not be added to the base"
)


def run(stage: FinalizeInput) -> FinalizeAnswer:
    """Write the artefacts asked for; raises StageError (DigestMismatch, InvalidSettings, NoEffect, OutputDiffers)."""
    base = store.open_artifact(stage.model.uri, stage.model.digest)
    saved = store.existing(stage.checkpoint.uri)
    if checkpoint.damage(saved):
        raise StageError("DigestMismatch", f"the checkpoint {stage.checkpoint.uri} is damaged or not complete")
    if stage.adapter is None and "Adapter" in stage.artifacts:
        raise StageError("InvalidSettings", "full fine-tuning makes no Adapter: ask for Merged alone")
    check_effect(stage, saved)
    written = [_write(stage, name, base, saved) for name in stage.artifacts]
    artifacts = [artifact for artifact, _ in written]
    card.write_lineage(store.path_of(stage.run_uri), stage, artifacts)
    return FinalizeAnswer(artifacts=artifacts, fidelity=next((found for _, found in written if found), None))


def _write(stage: FinalizeInput, name: str, base: Path, saved: Path) -> tuple[Artifact, Fidelity | None]:
    uri = store.join(stage.run_uri, name.lower())
    folder = store.path_of(uri)
    # What an attempt that was cut off left behind must not become part of this one.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found = None
    if name == "Adapter":
        write_adapter(saved, folder, stage.model.uri)
    else:
        found = write_merged(stage, base, saved, folder)
    generation.carry(base, folder, generation.recorded_ends(store.path_of(stage.run_uri)))
    copy_tokenizer(base, folder)
    manifest = store.write_manifest(folder)
    artifact = Artifact(
        name=name,
        uri=uri,
        digest=manifest.digest,
        size_bytes=manifest.size_bytes,
        format="PEFT" if name == "Adapter" else "Safetensors",
        base_digest=str(stage.model.digest),
    )
    card.write_card(folder, store.path_of(stage.run_uri), stage, artifact)
    return artifact, found


def copy_tokenizer(base: Path, folder: Path) -> None:
    """Copy the base's tokenizer with all of its chat templates: what is served renders as what was trained."""
    for file in TOKENIZER_FILES:
        if (base / file).is_file():
            shutil.copyfile(base / file, folder / file)
    if (base / TEMPLATES).is_dir():
        shutil.copytree(base / TEMPLATES, folder / TEMPLATES, copy_function=shutil.copyfile)


def write_adapter(saved: Path, folder: Path, base_uri: str) -> None:
    """Copy the checkpoint's adapter; its config names the base by URI instead of a path inside some pod."""
    for name in ADAPTER_FILES:
        shutil.copyfile(saved / name, folder / name)
    config = store.read_json(folder / "adapter_config.json") | {"base_model_name_or_path": base_uri}
    store.write_json(folder / "adapter_config.json", config)


def write_merged(stage: FinalizeInput, base: Path, saved: Path, folder: Path) -> Fidelity:
    """Write the whole model in bf16, the base with the adapter added or the weights that full fine-tuning made, and read it again.

    Its config.json is the base's: training sets some of it for itself (the end tokens, a router's loss). Raises StageError: NoEffect
    where it is the base, OutputDiffers where it does not say what was trained. One model at a time is in memory.
    """
    rows = probes(stage, base)
    model = load(base)
    before, untrained = fingerprints(model), fidelity.logits(model, rows)
    if stage.adapter:
        tuned = adapted(model, saved)
        trained = fidelity.logits(tuned, rows)
        model = merge(tuned)
        del tuned
    else:
        del model
        model = load(saved, config_of=base)
        trained = fidelity.logits(model, rows)
    made = fingerprints(model)
    generation.make_savable(model).save_pretrained(folder)
    del model
    again = load(folder)
    read = fingerprints(again)
    # A quantized base, which older releases let pass, is in memory otherwise than in its file.
    if not quantization(base) and (lost := sorted(name for name in made if read.get(name) != made[name])):
        message = f"{len(lost)} of {len(made)} tensors of the merged model ({', '.join(lost[:3])}) are not in its files as they were merged"
        raise StageError("OutputDiffers", message)
    if read == before:
        raise StageError("NoEffect", f"the model at step {stage.checkpoint.step} is its base, tensor for tensor in bf16: {NO_EFFECT}")
    return compare(untrained, trained, fidelity.logits(again, rows), BOUNDS[stage.adapter is not None])


def probes(stage: FinalizeInput, base: Path) -> list[list[int]]:
    """Return tokens of the run's first rows, or any where none can be rendered whole: that is not a reason to lose a training."""
    tokenizer = load_tokenizer(base)
    rows = fidelity.probes(_rendered(store.path_of(stage.run_uri) / "data" / "train.jsonl", tokenizer))
    return rows or [list(range(min(len(tokenizer), fidelity.PROBE_TOKENS)))]


def _rendered(path: Path, tokenizer: Any) -> Iterator[list[int]]:
    for row in dataset.read_normal(path):
        with suppress(StageError):
            yield from calibration.encode([row], tokenizer)


def compare(untrained: list[Any], trained: list[Any], written: list[Any], bound: float) -> Fidelity:
    """Return how far the logits of the written model are from those that were trained; raises StageError(OutputDiffers)."""
    found, share = fidelity.compare(trained, written), fidelity.share(untrained, trained, written)
    fidelity.require(found, bound, "the merged model as it was written does not say what was trained")
    step = fidelity.compare(untrained, trained).error
    if share is not None and step >= SMALLEST_STEP and not SHARES[0] <= share <= SHARES[1]:
        raise StageError(
            "OutputDiffers", f"the merged model as it was written has {share:.2f} times what training changed in the logits, and once is right"
        )
    return Fidelity(
        logits_error=round(found.error, 4),
        same_token=round(found.same, 4),
        tokens=found.tokens,
        effect_share=None if share is None else round(share, 4),
    )


def fingerprints(model: Any) -> dict[str, str]:
    """Return a hash of each tensor of a model."""
    return {name: _hash(tensor) for name, tensor in model.state_dict().items()}


def _hash(tensor: Any) -> str:
    import torch

    return hashlib.blake2b(tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy()).hexdigest()


def adapted(model: Any, saved: Path) -> Any:
    """Return a model with a checkpoint's adapter; raises StageError(OutputDiffers) where that lacks a layer's, of which PEFT warns alone."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            return PeftModel.from_pretrained(model, str(saved))
        except UserWarning as error:
            raise StageError("OutputDiffers", f"the checkpoint's adapter does not fit the model: {error}") from error


def merge(model: Any) -> Any:
    """Return the base model with the adapter of a PEFT model added in fp32 and rounded to bf16 once.

    PEFT's merge of a bf16 model rounds twice, what is added and the sum: a tiny model's logits were off by up to 0.108, and by 0.043
    this way. A module at a time, so that no second copy of the model is needed.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in (module for module in model.modules() if isinstance(module, BaseTunerLayer)):
        layer.float()
        layer.merge(safe_merge=True)
        layer.bfloat16()
        if not layer.merged:
            raise StageError("OutputDiffers", f"PEFT did not merge the adapter into {type(layer).__name__}: ask for the artefact Adapter alone")
    return model.merge_and_unload()


def load(folder: Path, config_of: Path | None = None) -> Any:
    """Return a folder's model in bf16, with its own config.json or another folder's."""
    import torch

    return loading.load(folder, config=load_config(config_of or folder), dtype=torch.bfloat16)


def check_effect(stage: FinalizeInput, saved: Path) -> None:
    """Refuse an adapter that training did not change: StageError(NoEffect). It starts with B = 0, so all of these matrices are zero still."""
    if stage.adapter and not _adapter_moved(saved):
        raise StageError("NoEffect", f"training changed no weight up to step {stage.checkpoint.step}: {NO_EFFECT}")


def _adapter_moved(saved: Path) -> bool:
    from safetensors import safe_open

    with safe_open(saved / "adapter_model.safetensors", "pt") as tensors:
        return any(bool(tensors.get_tensor(name).any()) for name in tensors.keys() if "lora_B" in name)
