"""Finalize: turn the last checkpoint into the artefacts that the user gets, and check that training had an effect."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tunesmith_trainer import card, checkpoint, generation, loading, store
from tunesmith_trainer.contract import Artifact, FinalizeAnswer, FinalizeInput, StageInput
from tunesmith_trainer.errors import StageError

INPUT: type[StageInput] = FinalizeInput
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


def run(stage: FinalizeInput) -> FinalizeAnswer:
    """Write the artefacts asked for; raises StageError (DigestMismatch, InvalidSettings, NoEffect)."""
    base = store.open_artifact(stage.model.uri, stage.model.digest)
    saved = store.existing(stage.checkpoint.uri)
    if checkpoint.damage(saved):
        raise StageError("DigestMismatch", f"the checkpoint {stage.checkpoint.uri} is damaged or not complete")
    if stage.adapter is None and "Adapter" in stage.artifacts:
        raise StageError("InvalidSettings", "full fine-tuning makes no Adapter: ask for Merged alone")
    check_effect(stage, base, saved)
    artifacts = [_write(stage, name, base, saved) for name in stage.artifacts]
    card.write_lineage(store.path_of(stage.run_uri), stage, artifacts)
    return FinalizeAnswer(artifacts=artifacts)


def _write(stage: FinalizeInput, name: str, base: Path, saved: Path) -> Artifact:
    uri = store.join(stage.run_uri, name.lower())
    folder = store.path_of(uri)
    # What an attempt that was cut off left behind must not become part of this one.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if name == "Adapter":
        write_adapter(saved, folder, stage.model.uri)
    else:
        write_merged(stage, base, saved, folder)
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
    return artifact


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


def write_merged(stage: FinalizeInput, base: Path, saved: Path, folder: Path) -> None:
    """Write the whole model in bf16: the base with the adapter added, or the weights that full fine-tuning made.

    Its config.json is the base's: training sets some of it for itself (the end tokens, a router's loss).
    """
    merged = load(base if stage.adapter else saved, config_of=base)
    if stage.adapter:
        from peft import PeftModel

        merged = merge(PeftModel.from_pretrained(merged, str(saved)))
    generation.make_savable(merged).save_pretrained(folder)


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
    return model.merge_and_unload()


def load(folder: Path, config_of: Path | None = None) -> Any:
    """Return a folder's model in bf16, with its own config.json or another folder's."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(config_of or folder, local_files_only=True, trust_remote_code=False)
    return loading.load(folder, config=config, dtype=torch.bfloat16)


def check_effect(stage: FinalizeInput, base: Path, saved: Path) -> None:
    """Refuse a checkpoint in which training changed nothing: StageError(NoEffect).

    A LoRA adapter starts with B = 0, so an adapter without effect is one whose B matrices are all zero still.
    """
    if not (_adapter_moved(saved) if stage.adapter else _weights_moved(base, saved)):
        raise StageError(
            "NoEffect",
            f"training changed no weight up to step {stage.checkpoint.step}: the learning rate may be too small, or every "
            "token may be outside the loss (see data/sample.json)",
        )


def _adapter_moved(saved: Path) -> bool:
    from safetensors import safe_open

    with safe_open(saved / "adapter_model.safetensors", "pt") as tensors:
        return any(bool(tensors.get_tensor(name).any()) for name in tensors.keys() if "lora_B" in name)


def _weights_moved(base: Path, saved: Path) -> bool:
    """Compare the two models as loaded, in bf16: what rounding takes away had no effect on what is written."""
    import torch

    before, after = load(base).state_dict(), load(saved).state_dict()
    return any(not torch.equal(tensor, after[name]) for name, tensor in before.items())
