import json
import shutil

import pytest

from tests.trainer.models import VARIANTS, quantize_input
from tunesmith_trainer import evaluate, quantize, store
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.model import fidelity
from tunesmith_trainer.quantization import calibration, compression, measure

LINEARS = 14
"""Of the tiny model's two layers, without the head."""


def run(value):
    return quantize.run(quantize.INPUT.model_validate(value))


@pytest.mark.parametrize(("name", "least", "most"), [("w8a8", 8.0, 8.5), ("w4a16", 4.0, 5.0)])
def test_a_variant_is_quantized_on_disk_and_complete(in_zoo, name, least, most):
    answer = in_zoo.variants[name]
    folder = in_zoo.root / "models" / "run" / "variants" / name
    assert answer.effect.quantized_modules == LINEARS
    assert least <= answer.effect.bits_per_weight <= most
    assert store.is_intact(folder)
    assert answer.artifacts[0].digest == store.read_manifest(folder).digest
    assert {"tokenizer.json", "config.json", "generation_config.json", "model.safetensors"} <= set(store.read_manifest(folder).files)
    assert "SmoothQuant" in (folder / "README.md").read_text() or name == "w4a16"
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] == "compressed-tensors"


def test_no_file_of_a_variant_names_python_objects(in_zoo):
    files = [path for name in VARIANTS for path in (in_zoo.root / "models" / "run" / "variants" / name).rglob("*") if path.is_file()]
    assert not [path for path in files if b"!!python" in path.read_bytes()]


def test_the_effect_is_read_from_the_weights_and_not_from_what_the_config_claims(in_zoo, tmp_path):
    claims = json.loads((in_zoo.root / "models" / "run" / "variants" / "w8a8" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(claims))
    (tmp_path / "model.safetensors").symlink_to(in_zoo.root / "models" / "base" / "model.safetensors")
    assert measure.measure(tmp_path).quantized_modules == 0


def test_a_quantization_that_changed_nothing_is_an_error(in_zoo, monkeypatch):
    def do_nothing(_, source, target):
        shutil.copytree(source, target)
        return quantize.Made(rows=8, tokens=80, probes=[], before=[], layers=[])

    monkeypatch.setattr(quantize, "calibrate_and_save", do_nothing)
    with pytest.raises(StageError) as caught:
        run(quantize_input("none", VARIANTS["w8a8"]))
    assert caught.value.reason == "NoEffect"
    assert store.read_manifest(in_zoo.root / "models" / "run" / "variants" / "none") is None


def test_rows_of_one_length_share_a_batch_and_none_is_lost_cut_or_joined_to_another():
    rows = [[number] * length for number, length in enumerate((3, 4, 3, 10, 0, 3, 12))]
    found = calibration.batches(rows, 10)
    assert [batch["input_ids"].tolist() for batch in found] == [[rows[0], rows[2], rows[5]], [rows[1]], [rows[3]], [rows[6]]]
    assert all(batch["attention_mask"].shape == batch["input_ids"].shape and batch["attention_mask"].all() for batch in found)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"scheme": "W4A16", "algorithm": "GPTQ"}, "GroupSizeMismatch"),
        ({"scheme": "W4A16", "algorithm": "GPTQ", "groupSize": 48}, "GroupSizeMismatch"),
        ({"scheme": "W4A16", "algorithm": "SmoothQuantGPTQ", "groupSize": 32}, "InvalidSettings"),
        ({"scheme": "W8A8", "algorithm": "GPTQ", "groupSize": 32}, "InvalidSettings"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_loaded(in_zoo, settings, reason):
    with pytest.raises(StageError) as caught:
        run(quantize_input("odd", {"numCalibrationSamples": 8} | settings))
    assert caught.value.reason == reason


def test_a_model_that_is_not_the_one_asked_for_is_refused(in_zoo):
    value = quantize_input("w8a8", VARIANTS["w8a8"])
    value["model"]["digest"] = "sha256:" + "0" * 64
    with pytest.raises(StageError) as caught:
        run(value)
    assert caught.value.reason == "DigestMismatch"


def test_calibration_on_another_kind_of_device_is_refused():
    quantize.require_device("CPU", "cpu")
    quantize.require_device("GPU", "cuda")
    for asked, kind in (("GPU", "cpu"), ("CPU", "cuda"), ("GPU", "mps")):
        with pytest.raises(StageError, match=f"would calibrate on {kind}") as caught:
            quantize.require_device(asked, kind)
        assert caught.value.reason == "DeviceUnavailable"


@pytest.mark.parametrize("name", VARIANTS)
def test_the_result_says_how_far_a_variant_is_from_its_model(in_zoo, name):
    found = in_zoo.variants[name].fidelity
    assert 0 < found.logits_error < quantize.BOUNDS[name.upper()] / 2
    assert found.same_token > 0.5
    assert 0 < found.layer_error < quantize.LAYER_BOUND / 2
    assert (found.smoothing_error is None) == (name == "w4a16")
    assert f"{found.logits_error}" in (in_zoo.root / "models" / "run" / "variants" / name / "README.md").read_text()


def made_of(base):
    """What Quantize remembers of a model before it is quantized."""
    rows = [[3 + (7 * row + 5 * place) % 200 for place in range(20)] for row in range(4)]
    model = evaluate.load_model(base, "BF16", "CPU")
    before, layers = fidelity.pass_through(model, compression.decoder_layers(model), rows)
    return quantize.Made(rows=4, tokens=80, probes=rows, before=before, layers=layers)


def test_one_broken_layer_of_many_is_found_though_logits_hardly_move(tmp_path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 256}
    LlamaForCausalLM(LlamaConfig(num_hidden_layers=24, initializer_range=0.1, **sizes)).to(torch.bfloat16).save_pretrained(tmp_path)
    made, spoilt = made_of(tmp_path), evaluate.load_model(tmp_path, "BF16", "CPU")
    with torch.no_grad():
        weight = spoilt.model.layers[9].mlp.down_proj.weight
        weight.copy_(weight.flip(0))
    assert fidelity.compare(made.before, fidelity.logits(spoilt, made.probes)).error < quantize.BOUNDS["W4A16"]
    layers = compression.decoder_layers(spoilt)
    number, error = fidelity.worst_layer(made.layers, fidelity.pass_through(spoilt, layers, made.probes, made.layers)[1], len(layers))
    assert number == 9
    assert error > quantize.LAYER_BOUND
    _, whole = fidelity.pass_through(evaluate.load_model(tmp_path, "BF16", "CPU"), layers, made.probes, made.layers)
    assert fidelity.worst_layer(made.layers, whole, len(layers)) is None, "these are not the layers of that model"


@pytest.mark.parametrize("harm", ["a layer's scales are lost", "a tensor is not there"])
def test_a_variant_that_says_something_else_once_it_is_written_is_an_error(in_zoo, tmp_path, harm):
    from safetensors.torch import load_file, save_file

    stage = quantize.INPUT.model_validate(quantize_input("w8a8", VARIANTS["w8a8"]))
    made = made_of(in_zoo.root / "models" / "base")
    source = in_zoo.root / "models" / "run" / "variants" / "w8a8"
    quantize.read_again(source, stage, made)
    spoilt = shutil.copytree(source, tmp_path / "spoilt")
    tensors = load_file(spoilt / "model.safetensors")
    if harm == "a tensor is not there":
        del tensors["model.embed_tokens.weight"]
    else:
        tensors |= {name: tensor * 0 + 1 for name, tensor in tensors.items() if "down_proj.weight_scale" in name}
    save_file(tensors, spoilt / "model.safetensors", {"format": "pt"})
    with pytest.raises(StageError, match="W8A8 as it was written") as caught:
        quantize.read_again(spoilt, stage, made)
    assert caught.value.reason == "OutputDiffers"


def test_smoothquant_identity_a_model_that_smoothing_changes_is_not_quantized(in_zoo, tmp_path):
    from transformers import AutoModelForCausalLM, Gemma2Config

    config = Gemma2Config(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
    )  # fmt: skip
    folder = shutil.copytree(in_zoo.root / "models" / "base", tmp_path / "gemma2", ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    stage = quantize.INPUT.model_validate(quantize_input("w8a8", VARIANTS["w8a8"]))
    with pytest.raises(StageError, match="smoothing alone changes what Gemma2ForCausalLM says: take algorithm GPTQ") as caught:
        quantize.calibrate_and_save(stage, folder, tmp_path / "variant")
    assert caught.value.reason == "OutputDiffers"


def test_heads_routers_and_what_is_not_the_text_models_stay_as_they_are():
    from transformers import Gemma3Config, GPTNeoXConfig, JambaConfig, Qwen2MoeConfig

    from tunesmith_trainer.model import shrink

    small = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    mixture = {"num_key_value_heads": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48, "num_experts": 4}
    pictures = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 56}

    def alone(config):
        model = shrink.build(config, "meta")
        return set(compression.left_alone(model)), compression.widths(model)

    assert alone(GPTNeoXConfig(**small)) == ({"lm_head"}, [64, 128])
    names, widths = alone(Qwen2MoeConfig(**small, **mixture))
    assert names == {"lm_head", "model.layers.0.mlp.shared_expert_gate", "model.layers.1.mlp.shared_expert_gate"}
    assert widths == [32, 48, 64]
    names, _ = alone(
        JambaConfig(**small, num_key_value_heads=2, num_experts=4, expert_layer_period=1, expert_layer_offset=0, use_mamba_kernels=False)
    )
    assert {name.rpartition(".")[2] for name in names} == {"lm_head", "router"}
    names, widths = alone(Gemma3Config(text_config=small | {"num_key_value_heads": 1, "head_dim": 32}, vision_config=pictures))
    assert all(name == "lm_head" or "language_model" not in name for name in names)
    assert any("vision_tower" in name for name in names)
    assert widths == [64, 128]
