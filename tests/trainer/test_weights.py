"""Whether a model folder holds the model that its config.json describes: all from headers, as Prepare, Evaluate and Serve look at it."""

import json
import shutil

import pytest

from tests.trainer import bench
from tests.trainer.models import SUITES, evaluate_input
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.model import loading, shrink, weights

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4096\n"
URI = "pvc://models/base"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole model with a head of its own."""
    return bench.make_model(tmp_path_factory.mktemp("whole") / "model", tie_word_embeddings=False)


@pytest.fixture
def folder(tmp_path, whole):
    return shutil.copytree(whole, tmp_path / "model")


def tensors(change, name="model.safetensors"):
    """A change of a folder: of its tensors by name."""

    def rewrite(folder):
        from safetensors.torch import load_file, save_file

        save_file(change(load_file(folder / name)), folder / name, metadata={"format": "pt"})

    return rewrite


def config(**values):
    def rewrite(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return rewrite


def renamed(name):
    return tensors(lambda found: {name(key): tensor for key, tensor in found.items()})


def without(part):
    return tensors(lambda found: {key: tensor for key, tensor in found.items() if part not in key})


def sharded(folder):
    """Split the weights into shards; returns their names."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="80KB")
    return sorted(path.name for path in folder.glob("model-*.safetensors"))


def after_sharding(change):
    return lambda folder: change(folder, sharded(folder))


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])


def a_column_less(found):
    return found | {"model.layers.0.self_attn.q_proj.weight": found["model.layers.0.self_attn.q_proj.weight"][:, 1:].contiguous()}


def as_whole_numbers(found):
    import torch

    return found | {"lm_head.weight": found["lm_head.weight"].to(torch.int8)}


BROKEN = {
    "an LFS pointer for the weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(POINTER),
        "model.safetensors is a Git LFS pointer, not the file itself: run git lfs pull",
    ),
    "an LFS pointer for the tokenizer": (lambda folder: (folder / "tokenizer.json").write_bytes(POINTER), "tokenizer.json is a Git LFS pointer"),
    "a cut file": (cut, "model.safetensors has 100000 bytes of "),
    "an empty file": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors is no whole safetensors file"),
    "a web page": (
        lambda folder: (folder / "model.safetensors").write_text("<!DOCTYPE html>" * 99),
        "model.safetensors is no whole safetensors file",
    ),
    "a missing shard": (
        after_sharding(lambda folder, shards: (folder / shards[-1]).unlink()),
        "model.safetensors.index.json names 4 files, and 1 of them cannot be found (model-00004-of-00004.safetensors): copy all of them",
    ),
    "a cut shard": (
        after_sharding(lambda folder, shards: (folder / shards[1]).write_bytes((folder / shards[1]).read_bytes()[:-10])),
        "model-00002-of-00004.safetensors has ",
    ),
    "shards without an index": (
        after_sharding(lambda folder, _: (folder / "model.safetensors.index.json").unlink()),
        "neither model.safetensors nor model.safetensors.index.json, only model-00001-of-00004.safetensors",
    ),
    "a shard of another model": (
        after_sharding(lambda folder, shards: shutil.copy(folder / shards[0], folder / "model-00001-of-00002.safetensors")),
        "model-00001-of-00002.safetensors lies beside the model's weights, and model.safetensors.index.json does not name it",
    ),
    "Mistral's own format beside the shards": (
        after_sharding(lambda folder, shards: shutil.copy(folder / shards[0], folder / "consolidated.safetensors")),
        "consolidated.safetensors lies beside the model's weights, and vLLM would load it (Mistral's own format)",
    ),
    "an index that is no index": (
        after_sharding(lambda folder, _: (folder / "model.safetensors.index.json").write_text("{}")),
        "model.safetensors.index.json has no weight_map",
    ),
    "two models": (
        lambda folder: (shutil.copytree(folder, folder / "x"), sharded(folder), shutil.copy(folder / "x/model.safetensors", folder)),
        "model.safetensors and model.safetensors.index.json are two models",
    ),
    "a tensor in two shards": (
        after_sharding(lambda folder, shards: tensors(lambda found: found | _first(folder / shards[0]), shards[1])(folder)),
        " is in model-00001-of-00004.safetensors and in model-00002-of-00004.safetensors",
    ),
    "no head": (without("lm_head"), "it lacks 1 of its 21 tensors (lm_head.weight), which loading would fill with random numbers"),
    "a layer less": (without(".layers.1."), "it lacks 9 of its 21 tensors (model.layers.1.input_layernorm.weight, "),
    "neither embeddings nor head": (
        lambda folder: (without("lm_head")(folder), without("embed")(folder), config(tie_word_embeddings=True)(folder)),
        "model.embed_tokens.weight",
    ),
    "saved from DDP": (renamed(lambda name: f"module.{name}"), "within DDP or DeepSpeed: save the unwrapped model"),
    "saved compiled": (renamed(lambda name: f"_orig_mod.{name}"), "save the model that torch.compile was given"),
    "an adapter in it": (renamed(lambda name: name.replace("q_proj.", "q_proj.base_layer.")), "merge it (PEFT's merge_and_unload)"),
    "a tensor more": (
        tensors(lambda found: found | {"v_head.summary.weight": found["lm_head.weight"].clone()}),
        "tensors that LlamaForCausalLM does not have: 1 (v_head.summary.weight). What to do: the model was saved with a head of another task",
    ),
    "another shape": (tensors(a_column_less), "model.layers.0.self_attn.q_proj.weight is 64 x 63 in the files and 64 x 64 by config.json"),
    "another vocabulary": (config(vocab_size=600), "lm_head.weight is 512 x 64 in the files and 600 x 64 by config.json"),
    "more layers by config": (config(num_hidden_layers=3), "it lacks 9 of its 30 tensors"),
    "fewer layers by config": (config(num_hidden_layers=1), "tensors that LlamaForCausalLM does not have: 9 ("),
    "whole numbers": (tensors(as_whole_numbers), "lm_head.weight holds whole numbers (I8), and config.json has no quantization_config"),
    "weights of GPTQ": (
        renamed(lambda name: name.replace("proj.weight", "proj.qweight")),
        "the weights are quantized, and config.json does not say how",
    ),
    "a head that is said to be the embeddings": (
        config(tie_word_embeddings=True),
        "lm_head.weight and model.embed_tokens.weight differ, and config.json says that they are one (tie_word_embeddings)",
    ),
    "an adapter beside it": (lambda folder: (folder / "adapter_config.json").write_text("{}"), "adapter_config.json lies beside the model"),
    "other weights beside it": (
        lambda folder: shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors"),
        "consolidated.safetensors lies beside the model's weights, and vLLM would load it with model.safetensors",
    ),
    "vLLM's sign of quantization": (lambda folder: (folder / "hf_quant_config.json").write_text("{}"), "so vLLM would take the model for quantized"),
    "another file by config": (config(transformers_weights="other.safetensors"), "remove the key"),
    "a quantization that is not known": (config(quantization_config={"quant_method": "nonsense"}), "nonsense"),
    "a config that is a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json is no JSON object"),
    "a cut config": (lambda folder: (folder / "config.json").write_text('{"model_type": "lla'), "config.json is not JSON"),
    "an architecture that is not known": (config(model_type="nonsense"), "not a causal language model that can be loaded"),
    "a number that is a word": (config(num_hidden_layers="two"), "not a causal language model that can be loaded"),
}


def _first(path):
    from safetensors.torch import load_file

    return dict(sorted(load_file(path).items())[:1])


@pytest.mark.parametrize("what", BROKEN)
def test_weights_broken_are_refused_by_the_name_of_what_is_wrong(folder, what):
    change, words = BROKEN[what]
    change(folder)
    with pytest.raises(StageError) as refused:
        loading.check(folder, URI)
    assert (refused.value.reason, refused.value.exit_code) == ("InvalidModel", 65)
    assert refused.value.message.startswith(f"{URI}: ")
    assert words in refused.value.message


SOUND = {
    "as it is": lambda folder: None,
    "in shards": sharded,
    "in one shard that the index names": lambda folder: (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"lm_head.weight": "model.safetensors"}})
    ),
    "with the buffers of old checkpoints": tensors(
        lambda found: found | {"model.layers.0.self_attn.rotary_emb.inv_freq": found["model.norm.weight"].clone()}
    ),
    "with embeddings and head that are one": lambda folder: (
        config(tie_word_embeddings=True)(folder),
        tensors(lambda found: found | {"lm_head.weight": found["model.embed_tokens.weight"].clone()})(folder),
    ),
    "with embeddings alone": lambda folder: (config(tie_word_embeddings=True)(folder), without("lm_head")(folder)),
    "with the head alone": lambda folder: (config(tie_word_embeddings=True)(folder), without("embed_tokens")(folder)),
}


@pytest.mark.parametrize("what", SOUND)
def test_a_whole_model_is_not_refused(folder, what):
    SOUND[what](folder)
    assert loading.check(folder, URI) == 512


# What old versions of transformers saved, by the architectures that computed it: a mask, its value, and angles of positions.
OLD_BUFFERS = {
    "gpt2": ("transformer.h.0.attn", {"bias": (1, 1, 8, 8), "masked_bias": ()}),
    "gptj": ("transformer.h.0.attn", {"bias": (1, 1, 8, 8), "masked_bias": ()}),
    "gpt_neo": ("transformer.h.0.attn.attention", {"bias": (1, 1, 8, 8), "masked_bias": ()}),
    "gpt_bigcode": ("transformer.h.0.attn", {"bias": (8, 8)}),
    "codegen": ("transformer.h.0.attn", {"causal_mask": (1, 1, 8, 8)}),
    "falcon": ("transformer.h.0.self_attention", {"maybe_rotary.inv_freq": (8,)}),
}


@pytest.mark.parametrize("kind", OLD_BUFFERS)
def test_masks_that_old_versions_saved_are_not_missed(tmp_path, kind):
    import torch
    from transformers import CONFIG_MAPPING

    module, buffers = OLD_BUFFERS[kind]
    shrink.build(next(shrink.candidates(CONFIG_MAPPING[kind]())), "cpu").save_pretrained(tmp_path)
    tensors(lambda found: found | {f"{module}.{name}": torch.ones(shape) for name, shape in buffers.items()})(tmp_path)
    loading.check(tmp_path, URI)
    loading.load(tmp_path)
    tensors(lambda found: found | {f"{module}.q_bias": torch.ones(8)})(tmp_path)
    with pytest.raises(StageError, match="q_bias"):
        loading.check(tmp_path, URI)


@pytest.mark.parametrize("change", [without("lm_head"), tensors(a_column_less), without(".layers.1.")])
def test_weights_broken_are_refused_by_every_stage_that_loads_them(folder, change):
    change(folder)
    with pytest.raises(StageError, match=r"lacks|64 x 63 in the files") as refused:
        loading.load(folder)
    assert refused.value.reason == "InvalidModel"


def test_weights_broken_end_prepare_and_evaluate_before_anything_is_done(store):
    without(".layers.1.")(store.root / "models" / "base")
    outcomes = [store.run(bench.prepare_input()), store.run(evaluate_input(URI, suites=SUITES[:1]))]
    assert [(code, result["reason"]) for code, result in outcomes] == [(65, "InvalidModel")] * 2
    assert all("it lacks 9 of its 21 tensors" in result["message"] for _, result in outcomes)
    assert not (store.root / "models" / "out" / "cache").exists()


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(store):
    from transformers import AutoTokenizer

    base = store.root / "models" / "base"
    tokenizer = AutoTokenizer.from_pretrained(base)
    more = [f"<new-{number}>" for number in range(512 - len(tokenizer) + 1)]
    tokenizer.add_tokens(more)
    tokenizer.save_pretrained(base)
    outcomes = [store.run(bench.prepare_input()), store.run(evaluate_input(URI, suites=SUITES[:1]))]
    assert [(code, result["reason"]) for code, result in outcomes] == [(65, "InvalidModel")] * 2
    assert all(f"embeddings for 512 tokens, and the tokenizer more ({more[-1]!r} is 512)" in result["message"] for _, result in outcomes)


def test_tokens_of_images_need_no_embedding_in_a_model_of_text():
    tokenizer = bench.make_tokenizer()
    tokenizer.add_tokens(["<image_soft_token>"], special_tokens=True)
    rows = len(tokenizer) - 1
    with pytest.raises(weights.Unfit, match="'<image_soft_token>' is"):
        weights.check_tokens(tokenizer, rows)
    tokenizer.init_kwargs["image_token"] = "<image_soft_token>"
    weights.check_tokens(tokenizer, rows)
    weights.check_tokens(tokenizer, None)


def test_quantized_base_is_whole_for_evaluate_and_refused_by_a_job_that_fine_tunes(in_zoo, tmp_path):
    for name, answer in in_zoo.variants.items():
        folder = in_zoo.root / answer.artifacts[0].uri.removeprefix("pvc://")
        assert loading.check(folder, name) == 512
        loading.load(folder, device_map="cpu")
        with pytest.raises(StageError, match=r"is quantized already \(compressed-tensors\).* name the model before its quantization") as refused:
            loading.refuse_quantized(folder, name)
        assert refused.value.reason == "InvalidModel"
        broken = shutil.copytree(folder, tmp_path / name)
        without("layers.1.mlp.up_proj.weight_scale")(broken)
        with pytest.raises(StageError, match=r"it lacks 1 of its \d+ tensors \(model.layers.1.mlp.up_proj.weight_scale\)"):
            loading.check(broken, name)


def test_quantized_base_ends_prepare(store):
    config(quantization_config={"quant_method": "compressed-tensors"})(store.root / "models" / "base")
    code, result = store.run(bench.prepare_input())
    assert (code, result["reason"]) == (65, "InvalidModel")
    assert result["message"].startswith("pvc://models/base is quantized already (compressed-tensors)")


ARCHITECTURES = (
    "llama mistral mixtral qwen2 qwen3 qwen3_moe gemma gemma2 gemma3_text phi phi3 gpt2 gpt_neox gptj opt bloom falcon mpt olmo2 glm glm4 cohere "
    "cohere2 granite starcoder2 lfm2 gpt_oss mamba2"
).split()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_whole_model_of_every_architecture_is_not_refused_and_one_that_lacks_its_last_norm_is(tmp_path, kind):
    import torch
    from transformers import CONFIG_MAPPING

    for tied in (True, False):
        small = next(shrink.candidates(CONFIG_MAPPING[kind](tie_word_embeddings=tied)))
        folder = tmp_path / str(tied)
        with torch.random.fork_rng():
            shrink.build(small, "cpu").save_pretrained(folder)
        assert loading.check(folder, kind) == shrink.VOCABULARY
    # Not by the model's parts, of which conversions make other ones.
    names = [name for name in weights.check_files(folder) if "layers" not in name and "h." not in name and "norm" in name.replace("ln_f", "norm")]
    without(names[-1])(folder)
    with pytest.raises(StageError, match="it lacks "):
        loading.check(folder, kind)
