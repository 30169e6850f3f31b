"""Variants are tried in Prepare on a tiny model of the run's architecture."""

import pytest

from tunesmith_contract.quantization import Quantization, Variant
from tunesmith_trainer import evaluate
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.quantization import variant_trial

SMALL = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}
GROUPED = SMALL | {"num_key_value_heads": 1, "head_dim": 64}
CONFIGS = {
    "Llama": GROUPED,
    "Gemma2": GROUPED,
    "Phi": SMALL,
    "OPT": {key: value for key, value in SMALL.items() if key != "intermediate_size"} | {"ffn_dim": 256, "word_embed_proj_dim": 128},
    "GPTNeoX": SMALL,
    "Gemma3": {
        "text_config": GROUPED,
        "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 56},
    },
    "GPT2": {"vocab_size": 512, "n_embd": 128, "n_layer": 2, "n_head": 2},
    "Mixtral": GROUPED | {"num_local_experts": 4},
    "Qwen3Moe": GROUPED | {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2},
}
SMOOTH = {"scheme": "W8A8", "algorithm": "SmoothQuantGPTQ", "num_calibration_samples": 8}
W8A8 = SMOOTH | {"algorithm": "GPTQ"}
W4A16 = W8A8 | {"scheme": "W4A16"}


def config(name):
    import transformers

    return getattr(transformers, f"{name}Config")(**CONFIGS[name])


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    """Each architecture's trial, begun once."""
    begun = {}

    def of(name):
        if name not in begun:
            begun[name] = variant_trial.begin(config(name), tmp_path_factory.mktemp(name))
        return begun[name]

    return of


@pytest.mark.parametrize(
    ("name", "settings", "wrong"),
    [
        ("Llama", SMOOTH, None),
        ("Gemma2", SMOOTH, "smoothing changes what the model says"),
        ("Gemma2", W8A8, None),
        ("Phi", SMOOTH, "smoothing changes what the model says"),
        ("OPT", SMOOTH, "smoothing is not made for its layers"),
        ("GPTNeoX", SMOOTH, "smoothing is not made for its layers"),
        # Its files name the layers of its tower of images otherwise than the model does.
        ("Gemma3", W4A16, None),
        ("GPT2", W8A8, "cannot be written or read"),
    ],
)
def test_smoothquant_architectures_are_found_by_trial(trials, name, settings, wrong):
    found = trials(name).refusal(Quantization(**settings))
    assert found is None if wrong is None else wrong in found


@pytest.mark.parametrize(
    ("name", "settings", "wrong"),
    [
        ("Qwen3Moe", W4A16, None),
        # transformers reads experts in 8 bits by no name, and Mixtral's by others than they were written by.
        ("Qwen3Moe", W8A8, "cannot be written or read"),
        ("Mixtral", W4A16, "cannot be written or read"),
    ],
)
def test_moe_variant_of_experts_that_are_not_read_again_is_refused(trials, name, settings, wrong):
    found = trials(name).refusal(Quantization(**settings))
    assert found is None if wrong is None else wrong in found


def test_variant_precision_a_variant_can_be_measured_in_32_bits_though_transformers_leaves_its_head_in_16(trials, tmp_path):
    import torch

    trial = trials("GPTNeoX")
    assert trial.refusal(Quantization(**W8A8)) is None
    model = evaluate.load_model(trial.folder / "variant", "FP32", "CPU")
    assert model.get_output_embeddings().weight.dtype == torch.float32


def test_a_refusal_names_the_variant_and_the_architecture_and_an_architecture_that_cannot_be_tried_is_left_to_quantize(tmp_path, monkeypatch, capfd):
    config("OPT").save_pretrained(tmp_path)
    variants = [Variant(name="small", quantization=Quantization(**SMOOTH))]
    with pytest.raises(StageError, match=r"variant 'small': SmoothQuantGPTQ with W8A8 does not work for OPTForCausalLM") as caught:
        variant_trial.check(tmp_path, "OPTForCausalLM", variants)
    assert caught.value.reason == "InvalidSettings"
    monkeypatch.setattr(variant_trial, "begin", lambda *_: None)
    variant_trial.check(tmp_path, "OPTForCausalLM", variants)
    assert "no tiny model of OPTForCausalLM" in capfd.readouterr().out
