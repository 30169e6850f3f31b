"""What a user wrote is refused by Prepare, in words that name it, and never ends a later stage, or any stage as a bug of the program."""

import json

import pytest

from tests.trainer import bench
from tunesmith_contract.stages import PrepareInput
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.model import base, shrink
from tunesmith_trainer.training import arguments, trial

FULL = {"adapter": None}


def lora(**changes):
    return {"adapter": {"lora": {"r": 4, "loraAlpha": 8, "loraDropout": "0", "targetModules": ["all-linear"]} | changes}}


def training(**changes):
    return {"training": bench.training(**changes)}


def override(key, value, **changes):
    return training(overrides={key: value}, **changes)


def run_of(**changes):
    return PrepareInput.model_validate(bench.prepare_input(**changes)).run


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return base.load_tokenizer(tiny_model)


SEEN_LATE = {
    "loraDropout 1.5": (
        lora(loraDropout="1.5"),
        "adapter.lora: PEFT refuses these settings for LlamaForCausalLM: dropout probability has to be between",
    ),
    "a layer that is not there": (lora(targetModules=["layers.99.self_attn.q_proj"]), "layers.99.self_attn.q_proj"),
    "such a layer beside one that is": (
        lora(targetModules=["q_proj", "layers.99.self_attn.q_proj"]),
        "'layers.99.self_attn.q_proj' is no linear layer",
    ),
    "the embeddings": (
        lora(targetModules=["q_proj", "embed_tokens"]),
        "'embed_tokens' is no linear layer of this model, which has down_proj, gate_proj, ",
    ),
    "the head": (lora(targetModules=["lm_head"]), "'lm_head' is no linear layer"),
    "all layers and one": (lora(targetModules=["all-linear", "q_proj"]), "all-linear stands alone"),
    "a package for kernels": (override("use_liger_kernel", "true"), "(the trainer image does not have it: leave the setting out)"),
    "a package for an optimizer": (
        override("optim", '"galore_adamw"'),
        "training.overrides.optim: training would fail by it: You need to install `galore_torch`",
    ),
    "another such package": (
        override("optim", '"adamw_torch_8bit"'),
        "training.overrides.optim: training would fail by it: You need to have `torchao",
    ),
    "workers that stay and are none": (
        override("dataloader_persistent_workers", "true"),
        "dataloader_persistent_workers: training would fail by it: ",
    ),
    "fewer workers than none": (override("dataloader_num_workers", "-1"), "training.overrides.dataloader_num_workers: training would fail by it: "),
    "a scheduler's argument": (
        override("lr_scheduler_kwargs", '{"nonsense": 1}'),
        "training.overrides.lr_scheduler_kwargs: training would fail by it: ",
    ),
    "a loss": (override("loss_type", '"nonsense"'), "training.overrides.loss_type: training would fail by it: Invalid `loss_type` nonsense"),
    "a strategy of packing": (override("packing_strategy", '"nonsense"'), "Invalid packing strategy 'nonsense'"),
    "a compiler": (override("torch_compile_backend", '"nonsense"'), "training.overrides.torch_compile_backend: 'nonsense' is none of "),
    "a way of checkpointing": (
        override("gradient_checkpointing_kwargs", '{"nonsense": 1}', gradientCheckpointing=True),
        "gradient_checkpointing_kwargs: ",
    ),
    "two of which each is wrong": (
        training(overrides={"optim": '"lomo"', "use_liger_kernel": "true"}),
        "training would fail in its first step by the settings under training: You need to install",
    ),
}


@pytest.mark.parametrize("what", SEEN_LATE)
def test_settings_seen_late_are_refused_by_prepare(tiny_model, tokenizer, what):
    changes, words = SEEN_LATE[what]
    run = run_of(**changes)
    with pytest.raises(StageError) as refused:
        arguments.check(run.training, run.method, run.adapter)
        trial.check(tiny_model, run, tokenizer)
    assert refused.value.exit_code == 64
    assert words in refused.value.message


@pytest.mark.parametrize(
    "changes",
    [
        lora(targetModules=["layers.1.self_attn.q_proj", "o_proj"], loraDropout="0.1"),
        override("neftune_noise_alpha", "5") | FULL,
        override("optim", '"adafactor"'),
        # Steps on a GPU alone.
        override("optim", '"paged_adamw_8bit"'),
        override("tf32", "true"),
        override("activation_offloading", "true"),
        override("torch_compile_backend", '"inductor"'),
        training(gradientCheckpointing=True, perDeviceTrainBatchSize=64, gradientAccumulationSteps=8, maxLength=8),
    ],
    ids=str,
)
def test_settings_that_train_takes_are_not_refused(tiny_model, tokenizer, changes):
    run = run_of(**changes)
    arguments.check(run.training, run.method, run.adapter)
    trial.check(tiny_model, run, tokenizer)


def test_settings_seen_late_leave_no_batch_where_the_last_one_is_dropped():
    run = run_of(**override("dataloader_drop_last", "true", perDeviceTrainBatchSize=4))
    arguments.check_batches(run, 3, 4)
    with pytest.raises(StageError, match="dataloader_drop_last: 3 sequences do not fill a batch of 4") as refused:
        arguments.check_batches(run, 3, 3)
    assert refused.value.reason == "InvalidOverrides"
    arguments.check_batches(run_of(), 1, 1)


MOE = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}


def mixture(kind):
    """The configuration of a tiny mixture of experts."""
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[kind](**MOE, **({"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32} if "moe" in kind else {}))


def adapted(kind, **changes):
    """What PEFT adapts of an architecture's tiny model; raises what `check_adapter` raises."""
    from peft import get_peft_model

    from tunesmith_trainer.training.loop import lora_config

    config = mixture(kind)
    adapter = run_of(**lora(**changes)).adapter
    trial.check_adapter(shrink.build(config, "meta"), adapter)
    base = get_peft_model(shrink.build(config, "meta"), lora_config(adapter)).base_model
    return {name.rpartition(".")[2] for name in (*base.targeted_module_names, *base.targeted_parameter_names)}


def test_moe_experts_are_targets_by_the_names_that_they_had():
    assert adapted("qwen3_moe", targetModules=["gate_proj", "up_proj", "down_proj"]) == {"gate_up_proj", "down_proj"}
    assert adapted("mixtral", targetModules=["w1", "w2", "w3", "q_proj"]) == {"gate_up_proj", "down_proj", "q_proj"}
    assert {"gate_up_proj", "down_proj", "q_proj"} < adapted("qwen3_moe", targetModules=["all-linear"])


def test_moe_experts_that_are_named_so_are_changed_by_their_adapter_and_by_what_is_merged_of_it():
    import torch
    from peft import get_peft_model

    from tunesmith_trainer.finalize import merge
    from tunesmith_trainer.training.loop import lora_config

    ids = torch.arange(8, 60).unsqueeze(0)
    adapter = run_of(**lora(targetModules=["gate_proj", "up_proj", "down_proj"])).adapter
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        base = shrink.build(mixture("qwen3_moe"), "cpu").eval()
        before = base(ids).logits
        model = get_peft_model(base, lora_config(adapter)).eval()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
        tuned, merged = model(ids).logits, merge(model).float()(ids).logits
    moved, off = float((tuned - before).abs().mean()), float((merged - tuned).abs().mean())
    # What is off is the rounding to bf16.
    assert moved > 20 * off > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"targetModules": ["gate_proj"]}, "Cannot convert PEFT target"),
        ({"targetModules": ["gate_proj", "up_proj", "w9"]}, "'w9' is no linear layer"),
        ({"loraDropout": "0.05"}, "set loraDropout to 0"),
    ],
)
def test_moe_experts_that_peft_cannot_adapt_are_refused_in_its_words(changes, words):
    with pytest.raises(StageError, match=words):
        adapted("qwen3_moe", **changes)


@pytest.mark.parametrize("targets", [["q_proj", "o_proj"], ["layers.3.self_attn.q_proj"]])
def test_moe_attention_alone_is_adapted_with_dropout(tmp_path, tokenizer, targets):
    config = mixture("mixtral")
    config.num_hidden_layers = 4
    config.save_pretrained(tmp_path)
    trial.check(tmp_path, run_of(**lora(targetModules=targets, loraDropout="0.05")), tokenizer)


def test_layers_that_gpt2_calls_conv1d_are_linear_ones():
    config = {"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 256}
    from transformers import GPT2Config

    for targets in (["c_attn"], ["all-linear"]):
        trial.check_adapter(shrink.build(GPT2Config(**config), "meta"), run_of(**lora(targetModules=targets)).adapter)
    with pytest.raises(StageError, match="which has c_attn, c_fc, c_proj"):
        trial.check_adapter(shrink.build(GPT2Config(**config), "meta"), run_of(**lora(targetModules=["q_proj"])).adapter)


def rewritten(name, **values):
    def change(store):
        path = store.root / "models" / "base" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def written(name, text):
    return lambda store: (store.root / name).write_text(text)


def with_rows(*rows):
    return written("data/chat.jsonl", "".join(f"{row}\n" for row in rows))


NOTHING = {"validation": None}
WRITTEN = {
    # What is changed in the store, what of the run, and the reason and words to expect.
    "no adapter to give": (
        None,
        FULL | {"output": {"uri": "pvc://models/out", "artifacts": ["Merged", "Adapter"]}},
        "InvalidSettings",
        "ask for Merged alone",
    ),
    "a variant that means nothing": (
        None,
        {"variants": [{"name": "small", "quantization": {"scheme": "W4A16", "algorithm": "SmoothQuantGPTQ", "numCalibrationSamples": 8}}]},
        "InvalidSettings",
        "variant 'small': SmoothQuantGPTQ",
    ),
    "a pattern that is none": (None, {"preparation": {"dropPatterns": ["("]}}, "InvalidSettings", "dropPatterns"),
    "a fraction of all": (None, {"validation": {"fraction": "1e5"}}, None, "validation.fraction"),
    "a URI with a NUL": (None, {"model": {"uri": "pvc://models/ba\0se"}}, "SourceNotFound", "models/ba"),
    "a model that is a file": (None, {"model": {"uri": "pvc://data/chat.jsonl"}}, "InvalidModel", "not a model's folder"),
    "a model that is data": (None, {"model": {"uri": "pvc://data"}}, "InvalidModel", "not a model's folder"),
    "data that are a model": (None, {"datasets": [{"name": "chat", "uri": "pvc://models/base", "format": "Messages"}]}, "InvalidDataset", "chat"),
    "positions that are a word": (rewritten("config.json", max_position_embeddings="many"), {}, "InvalidModel", "max_position_embeddings"),
    "heads that do not fit": (rewritten("config.json", num_attention_heads=0), {}, "InvalidModel", "pvc://models/base"),
    "an activation that is not known": (rewritten("config.json", hidden_act="nonsense"), {}, "InvalidModel", "nonsense"),
    "positions of a kind that is not known": (rewritten("config.json", rope_parameters={"rope_type": "nonsense"}), {}, "InvalidModel", "nonsense"),
    "settings of generation that are none": (written("models/base/generation_config.json", "[]"), {}, "InvalidModel", "generation_config.json"),
    "a cut tokenizer": (written("models/base/tokenizer.json", '{"version": '), {}, "InvalidModel", "tokenizer"),
    "a tokenizer's length that is a word": (
        rewritten("tokenizer_config.json", model_max_length="long"),
        {},
        "InvalidModel",
        "the model's tokenizer cannot be loaded",
    ),
    "a template that is cut": (written("models/base/chat_template.jinja", "{% for"), {}, None, "template"),
    "a row that is a list": (with_rows("[]"), NOTHING, "InvalidDataset", "row 1"),
    "a row without its key": (with_rows('{"text": "a"}'), NOTHING, "InvalidDataset", "row 1"),
    "an empty file": (with_rows(), NOTHING, "EmptyDataset", "chat"),
    "half a surrogate": (
        with_rows('{"messages": [{"role": "user", "content": "\\ud83d"}, {"role": "assistant", "content": "b"}]}'),
        NOTHING,
        "InvalidDataset",
        "row 1",
    ),
}


@pytest.mark.parametrize("what", WRITTEN)
def test_nothing_that_a_user_wrote_ends_as_a_bug(store, what):
    change, blocks, reason, words = WRITTEN[what]
    if change:
        change(store)
    code, result = store.run(bench.prepare_input(**blocks))
    assert code in (64, 65), result
    assert reason in (None, result["reason"]), result
    assert words in result["message"]
