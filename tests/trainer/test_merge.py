"""Merged says what was trained, or Finalize ends with an error."""

import shutil

import pytest

from tests.trainer.models import OBJECT
from tunesmith_contract.stages import FinalizeInput
from tunesmith_trainer import finalize
from tunesmith_trainer.errors import StageError

LORA = {"lora": {"r": 4, "loraAlpha": 8, "loraDropout": "0", "targetModules": ["all-linear"]}}


@pytest.fixture(scope="module")
def adapter(zoo, tmp_path_factory):
    """An adapter of the tiny model that changes what it says, as a checkpoint holds it."""
    import torch
    from peft import LoraConfig, get_peft_model

    tuned = get_peft_model(finalize.load(zoo.root / "models" / "base"), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    chance = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=chance))
    folder = tmp_path_factory.mktemp("adapter")
    tuned.save_pretrained(folder)
    return folder


def write(zoo, target, base="models/base", adapter=None, saved=None):
    stage = FinalizeInput.model_validate({
        "schemaVersion": 2, "stage": "Finalize", "attempt": 1, "device": "CPU", "object": OBJECT, "runURI": "pvc://models/run",
        "model": {"uri": f"pvc://{base}", "digest": "sha256:" + "0" * 64},
        "adapter": adapter, "checkpoint": {"uri": "pvc://x", "step": 7}, "artifacts": ["Merged"],
    })  # fmt: skip
    return finalize.write_merged(stage, zoo.root / base, saved, target)


def test_merged_has_what_the_adapter_changed(in_zoo, adapter, tmp_path):
    found = write(in_zoo, tmp_path, adapter=LORA, saved=adapter)
    assert 0.9 < found.effect_share < 1.1
    assert 0 < found.logits_error < finalize.BOUNDS[1] / 3
    assert found.tokens > 50


def test_quantized_base_merge_has_what_the_adapter_changed(in_zoo, adapter, tmp_path):
    found = write(in_zoo, tmp_path, base="models/run/variants/w8a8", adapter=LORA, saved=adapter)
    assert 0.9 < found.effect_share < 1.1


def test_quantized_base_merge_that_cannot_be_read_is_no_success(in_zoo, adapter, tmp_path):
    """Prepare refuses such a base; a run that was prepared by an older release may have one."""
    with pytest.raises(StageError, match="weight_shape") as caught:
        write(in_zoo, tmp_path, base="models/run/variants/w4a16", adapter=LORA, saved=adapter)
    assert caught.value.reason == "InvalidModel"


@pytest.mark.parametrize(("times", "reason"), [(0.0, "NoEffect"), (0.2, "OutputDiffers"), (2.0, "OutputDiffers")])
def test_a_merge_that_adds_another_than_the_adapter_is_an_error(in_zoo, adapter, tmp_path, monkeypatch, times, reason):
    own = finalize.merge

    def wrong(tuned):
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.data *= times
        return own(tuned)

    monkeypatch.setattr(finalize, "merge", wrong)
    with pytest.raises(StageError) as caught:
        write(in_zoo, tmp_path, adapter=LORA, saved=adapter)
    assert caught.value.reason == reason


def test_a_checkpoint_without_the_adapter_of_one_layer_is_an_error(in_zoo, adapter, tmp_path):
    from safetensors.torch import load_file, save_file

    saved = shutil.copytree(adapter, tmp_path / "saved")
    tensors = load_file(saved / "adapter_model.safetensors")
    del tensors[next(name for name in sorted(tensors) if "layers.1." in name and "lora_B" in name)]
    save_file(tensors, saved / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(StageError, match=r"Found missing adapter keys.*layers\.1\.") as caught:
        write(in_zoo, tmp_path / "merged", adapter=LORA, saved=saved)
    assert caught.value.reason == "OutputDiffers"


def test_a_tensor_that_is_not_read_as_it_was_merged_is_an_error(in_zoo, adapter, tmp_path, monkeypatch):
    """One layer of many hardly moves the logits."""
    own = finalize.load

    def load(folder, config_of=None):
        model = own(folder, config_of)
        if folder == tmp_path:
            model.get_submodule("model.layers.1.mlp.up_proj").weight.data *= 1.01
        return model

    monkeypatch.setattr(finalize, "load", load)
    with pytest.raises(StageError, match=r"layers\.1\.mlp\.up_proj\.weight") as caught:
        write(in_zoo, tmp_path, adapter=LORA, saved=adapter)
    assert caught.value.reason == "OutputDiffers"


def test_full_fine_tuning_that_changed_nothing_in_bf16_is_no_success(in_zoo, tmp_path):
    with pytest.raises(StageError) as caught:
        write(in_zoo, tmp_path, saved=in_zoo.root / "models" / "base")
    assert caught.value.reason == "NoEffect"


def test_rows_that_cannot_be_rendered_whole_do_not_lose_a_training(in_zoo, adapter, tmp_path, monkeypatch):
    def refuse(rows, _):
        list(rows)
        raise StageError("InvalidDataset", "the model's chat template refuses this row")

    monkeypatch.setattr(finalize.calibration, "encode", refuse)
    assert write(in_zoo, tmp_path, adapter=LORA, saved=adapter).tokens == 64


def test_a_step_that_is_smaller_than_rounding_does_not_lose_a_training():
    """A first step of AdamW with a learning rate of 5e-5: bf16 drops most of it, and logits cannot show what it keeps."""
    import torch

    chance = torch.Generator().manual_seed(3)
    base, step, noise = (torch.randn(64, 100, generator=chance) for _ in range(3))
    untrained, trained, written = [base], [base + 0.02 * step], [base + 0.004 * step + 0.04 * noise]
    found = finalize.compare(untrained, trained, written, finalize.BOUNDS[1])
    assert found.effect_share < finalize.SHARES[0]
