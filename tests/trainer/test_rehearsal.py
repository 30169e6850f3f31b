"""Which architectures keep packed rows apart: found by trying each, and known here from the libraries' sources."""

import shutil

import pytest

from tests.trainer import bench
from tunesmith_trainer.model import shrink
from tunesmith_trainer.training import rehearsal

APART = "llama mistral mixtral qwen2 qwen3 qwen3_moe gemma2 gemma3_text phi3 gpt_neox gpt2 gptj olmo2 granite cohere2 deepseek_v3 glm4 lfm2".split()
# By attention without the rows' positions (ALiBi, or positions that are counted from an attention mask), or by a state that goes on.
TOGETHER = "bloom falcon mpt opt gpt_oss xglm mamba mamba2 falcon_mamba jamba bamba falcon_h1".split()


def config_of(kind):
    """An architecture's own default configuration, which is that of a model of billions of weights for most."""
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[kind]()


@pytest.mark.parametrize("kind", APART + TOGETHER)
def test_packing_contaminates_is_found_by_trying_the_architecture(kind):
    tried = rehearsal.rehearse(config_of(kind))
    assert tried is not None
    distances = {"alone": tried.alone(), "padded": tried.padded(), "packed": tried.packed()}
    assert {name: distance <= rehearsal.TOLERANCE for name, distance in distances.items()} == {"alone": True, "padded": True, "packed": kind in APART}
    # None is near the tolerance.
    assert not [distance for distance in distances.values() if 0.2 < distance / rehearsal.TOLERANCE < 5]


def test_an_architecture_comes_out_the_same_at_every_try():
    # Of the architectures, the one whose rounding differs most between random weights.
    assert len({rehearsal.rehearse(config_of("gemma3n_text")).packed() for _ in range(3)}) == 1


def test_a_tiny_model_has_each_kind_of_layer_and_a_window_that_rows_meet():
    for kind, layers, window in (("gemma3_text", 6, 8), ("jamba", 8, None), ("deepseek_v3", 4, None), ("llama", 2, None)):
        small = next(shrink.candidates(config_of(kind)))
        assert (small.num_hidden_layers, getattr(small, "sliding_window", None)) == (layers, window), kind
        assert shrink.is_tiny(small)


@pytest.mark.parametrize("kind", ["bert", "recurrent_gemma", "llama4_text"])
def test_an_architecture_that_trls_head_does_not_fit_is_found_too(kind):
    config = config_of(kind)
    config.is_decoder = True
    assert not rehearsal._holds(rehearsal.rehearse(config).alone)


@pytest.fixture
def store(tmp_path, tiny_model):
    """A store whose base is a model of another architecture; `brought` puts one there."""
    store = bench.Bench(tmp_path, tiny_model)

    def brought(config):
        from transformers import AutoModelForCausalLM

        shutil.rmtree(store.root / "models" / "base")
        AutoModelForCausalLM.from_config(config).save_pretrained(store.root / "models" / "base")
        bench.make_tokenizer().save_pretrained(store.root / "models" / "base")

    store.brought = brought
    return store


def sft(packing):
    return {"method": {"sft": {"packing": packing, "assistantOnlyLoss": True}}, "adapter": None, "validation": None}


def test_packing_contaminates_so_prepare_refuses_it_and_names_the_architecture(store):
    from transformers import BloomConfig

    store.brought(BloomConfig(hidden_size=64, n_layer=2, n_head=2, vocab_size=512, bos_token_id=1, eos_token_id=2, pad_token_id=0))
    code, result = store.run(bench.prepare_input(**sft(packing=True)))
    assert (code, result["reason"]) == (64, "InvalidSettings")
    assert result["message"] == "method.sft.packing: in BloomForCausalLM packed rows see one another; set packing to false"
    assert store.run(bench.prepare_input(**sft(packing=False)))[0] == 0


def test_an_architecture_of_which_no_tiny_model_can_be_made_is_not_packed(store, monkeypatch):
    monkeypatch.setattr(shrink, "MOST_PARAMETERS", 1)
    code, result = store.run(bench.prepare_input(**sft(packing=True)))
    assert (code, result["reason"]) == (64, "InvalidSettings")
    assert "whether LlamaForCausalLM keeps packed rows apart cannot be tried" in result["message"]
    assert store.run(bench.prepare_input(**sft(packing=False)))[0] == 0


def test_an_architecture_that_takes_padding_for_text_is_given_one_row_at_a_time(store):
    from transformers import DogeConfig

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    store.brought(DogeConfig(**sizes, vocab_size=512, bos_token_id=1, eos_token_id=2, pad_token_id=0))
    code, result = store.run(bench.prepare_input(**sft(packing=False), training=bench.training(perDeviceTrainBatchSize=2)))
    assert (code, result["reason"]) == (64, "InvalidSettings")
    assert "set training.perDeviceTrainBatchSize to 1" in result["message"]
    assert store.run(bench.prepare_input(**sft(packing=False), training=bench.training(perDeviceTrainBatchSize=1)))[0] == 0
