"""A tuned chat model stops: what a base that ends texts by another token makes of a few conversations, as artefacts and as figures."""

import json
import shutil
from types import SimpleNamespace

import pytest

from dev.rows import WORDS, write_rows
from tests.trainer import bench
from tunesmith_trainer import evaluate, finalize, quantize
from tunesmith_trainer.data import chat
from tunesmith_trainer.model import generation
from tunesmith_trainer.model.base import load_tokenizer
from tunesmith_trainer.suites import answers

pytestmark = pytest.mark.timeout(600)
# As a base model's: it ends a text, and nothing ends a turn. transformers loads a temperature without do_sample, and does not save it.
OWN = {"eos_token_id": 0, "temperature": 0.9, "top_p": 0.6}
END_OF_TEXT, END_OF_TURN = 0, 2
FULL = {"adapter": None, "validation": None, "output": {"uri": "pvc://models/out", "artifacts": ["Merged"]}}
CHAT = {"name": "chat", "uri": "pvc://data/chat.jsonl", "format": "Messages"}
PAIRS = {"name": "pairs", "uri": "pvc://data/pairs.jsonl", "format": "PromptCompletion"}
TEXT = {"name": "text", "uri": "pvc://data/text.jsonl", "format": "Text"}


def conversations():
    for question, answer in zip(WORDS[:6], WORDS[6:12], strict=True):
        yield {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": f"{answer} {question}"}]}


def store_of(folder, tiny_model):
    """A store with a base model whose tokenizer and generation_config.json know the end of a text alone."""
    store = bench.Bench(folder, tiny_model)
    base = store.root / "models" / "base"
    tokenizer = bench.make_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(base)
    (base / "generation_config.json").write_text(json.dumps(OWN))
    write_rows(store.root / "data" / "chat.jsonl", conversations())
    write_rows(store.root / "data" / "pairs.jsonl", ({"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in conversations()))
    write_rows(store.root / "data" / "text.jsonl", [{"text": " ".join(WORDS)}])
    return store


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, tiny_model):
    """A model taught to answer by full fine-tuning, its Merged and a variant."""
    store = store_of(tmp_path_factory.mktemp("tuned"), tiny_model)
    blocks = FULL | {"training": bench.training(maxSteps=80, perDeviceTrainBatchSize=6, maxLength=64, precision="FP32")}
    blocks["method"] = {"sft": {"packing": False, "assistantOnlyLoss": True}}
    code, prepared = store.run(bench.prepare_input(**blocks))
    assert code == 0, prepared
    with bench.training_alone(store) as build:
        trainer = build(bench.train_input(prepared, 1, **blocks))
        trainer.train()
        saved = store.path(prepared["runURI"]) / "checkpoints/attempt-1/step-80"
        trainer.save_model(str(saved))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_PVC_ROOT", str(store.root))
        from tunesmith_trainer.store import uri_of, write_manifest

        write_manifest(saved)
        trained = {"checkpoint": {"uri": uri_of(saved), "step": 80}}
        stage = bench.finalize_input(bench.train_input(prepared, 1, **blocks), trained) | {"artifacts": ["Merged"]}
        merged = finalize.run(finalize.INPUT.model_validate(stage)).artifacts[0]
        small = {"scheme": "W8A8", "algorithm": "GPTQ", "numCalibrationSamples": 6}
        common = {key: stage[key] for key in ("schemaVersion", "attempt", "device", "object", "runURI")}
        stage = common | {
            "stage": "Quantize",
            "model": {"uri": merged.uri, "digest": merged.digest},
            "variant": {"name": "small", "quantization": small},
            "training": {"maxLength": 64},
        }
        variant = quantize.run(quantize.INPUT.model_validate(stage)).artifacts[0]
    return SimpleNamespace(store=store, prepared=prepared, merged=merged.uri, variant=variant.uri, base=prepared["model"]["uri"])


def measured(tuned, uri, monkeypatch):
    """Evaluate's answer for a model."""
    monkeypatch.setenv("TUNESMITH_PVC_ROOT", str(tuned.store.root))
    suites = [{"name": "held", "perplexity": {"dataset": {"uri": CHAT["uri"], "format": "Messages"}, "maxLength": 64}}]
    stage = {
        "schemaVersion": 2, "stage": "Evaluate", "attempt": 1, "device": "CPU", "object": bench.OBJECT, "runURI": "pvc://out/eval",
        "outputURI": "pvc://out", "model": {"name": "tested", "uri": uri}, "suites": suites, "precision": "FP32",
    }  # fmt: skip
    return evaluate.run(evaluate.INPUT.model_validate(stage))


def stopped(answer):
    (metric,) = [metric for metric in answer.metrics if metric.metric == "held/stopped"]
    return float(metric.value), metric.samples, metric.higher_is_better


@pytest.mark.parametrize("name", ["merged", "variant"])
def test_a_tuned_chat_model_stops_where_transformers_generates_with_its_folder(tuned, name):
    import torch
    from transformers import AutoModelForCausalLM

    folder = tuned.store.path(getattr(tuned, name))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), load_tokenizer(folder)
    for row in conversations():
        prompt = tokenizer.apply_chat_template(row["messages"][:1], add_generation_prompt=True, return_dict=True, return_tensors="pt")
        with torch.no_grad():
            said = model.generate(**prompt, max_new_tokens=60, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert tokenizer.decode(said) == row["messages"][1]["content"] + "<|im_end|>"


def test_a_tuned_chat_model_stops_and_evaluate_says_so(tuned, monkeypatch):
    for uri in (tuned.merged, tuned.variant):
        answer = measured(tuned, uri, monkeypatch)
        assert (stopped(answer), answer.warnings) == ((1.0, 6, True), None)


def test_a_model_that_answers_but_whose_folder_does_not_name_its_end_is_told_to_run_on(tuned, monkeypatch):
    copy = tuned.store.root / "models" / "unnamed"
    shutil.copytree(tuned.store.path(tuned.merged), copy)
    (copy / "generation_config.json").write_text(json.dumps(OWN))
    (copy / "manifest.json").unlink()
    answer = measured(tuned, "pvc://models/unnamed", monkeypatch)
    assert stopped(answer) == (0.0, 6, True)
    assert answer.warnings == [
        "the chat template ends an assistant's turn with '<|im_end|>', but a server stops at '<|endoftext|>': "
        "add token 2 to eos_token_id in generation_config.json"
    ]


@pytest.mark.parametrize("name", ["merged", "variant"])
def test_generation_config_is_the_bases_with_the_end_of_turn_added(tuned, name):
    folder = tuned.store.path(getattr(tuned, name))
    assert json.loads((folder / "generation_config.json").read_text()) == OWN | {"eos_token_id": [END_OF_TEXT, END_OF_TURN]}
    config, base = (json.loads((place / "config.json").read_text()) for place in (folder, tuned.store.path(tuned.base)))
    assert {key: config.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")} == {
        key: base.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")
    }


@pytest.mark.parametrize(
    ("own", "ends", "written"),
    [
        ({"eos_token_id": 2, "top_p": 0.5}, [2], None),
        ({"eos_token_id": [7, 2]}, [2], None),
        ({"eos_token_id": [7]}, [2, 0], {"eos_token_id": [7, 2, 0]}),
        ({"do_sample": True}, [2], {"do_sample": True, "eos_token_id": [2]}),
        ({"do_sample": True}, [], None),
    ],
)
def test_what_a_base_names_stays_and_what_is_trained_is_added(tmp_path, own, ends, written):
    base, folder = tmp_path / "base", tmp_path / "made"
    base.mkdir()
    folder.mkdir()
    # As it was written, where nothing is added.
    (base / "generation_config.json").write_text(json.dumps(own, indent=7))
    generation.carry(base, folder, ends)
    found = (folder / "generation_config.json").read_text()
    assert found == json.dumps(own, indent=7) if written is None else json.loads(found) == written


def test_a_base_without_a_generation_config_gets_one_with_the_tokens_of_its_config(tmp_path, tiny_model):
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    (base / "generation_config.json").unlink()
    generation.carry(base, tmp_path, [0])
    assert generation.listed(generation.settings(tmp_path)) == [2, 0]


def test_a_base_with_settings_of_generation_in_its_config_is_saved_with_these_where_they_belong(tmp_path, tiny_model):
    """Older versions of transformers wrote them there."""
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    (base / "generation_config.json").unlink()
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"top_p": 0.5, "do_sample": True}))
    made = tmp_path / "made"
    generation.make_savable(finalize.load(base)).save_pretrained(made)
    generation.carry(base, made, [])
    found = json.loads((made / "generation_config.json").read_text())
    assert (found["top_p"], found["do_sample"], found["eos_token_id"]) == (0.5, True, 2)
    assert "top_p" not in json.loads((made / "config.json").read_text())


@pytest.mark.parametrize(("content", "words"), [("{", "is not JSON"), ("[1]", "is no JSON object"), ('{"max_new_tokens": -1}', "cannot be loaded")])
def test_a_generation_config_that_cannot_be_loaded_is_refused_before_training(tmp_path, tiny_model, content, words):
    store = store_of(tmp_path, tiny_model)
    (store.root / "models" / "base" / "generation_config.json").write_text(content)
    code, result = store.run(bench.prepare_input(**FULL))
    assert (code, result["reason"]) == (65, "InvalidModel"), result
    assert "generation_config.json in the model's folder" in result["message"] and words in result["message"]


@pytest.mark.parametrize(
    ("datasets", "only_assistant", "ends"),
    [
        ([CHAT], True, [END_OF_TURN]),
        ([CHAT], False, [END_OF_TURN]),
        ([TEXT], False, [END_OF_TEXT]),
        ([PAIRS], False, [END_OF_TURN]),
        ([CHAT, TEXT], False, [END_OF_TURN, END_OF_TEXT]),
    ],
)
def test_prepare_records_by_which_tokens_the_data_end_an_answer(tmp_path, tiny_model, datasets, only_assistant, ends):
    store = store_of(tmp_path, tiny_model)
    method = {"sft": {"packing": False, "assistantOnlyLoss": only_assistant}}
    code, result = store.run(bench.prepare_input(datasets=datasets, method=method, **FULL))
    assert code == 0, result
    assert json.loads((store.path(result["runURI"]) / "run.json").read_text())["stopTokenIds"] == ends


@pytest.mark.parametrize("only_assistant", [True, False])
def test_a_template_that_ends_turns_by_no_special_token_is_refused_or_warned_of(tmp_path, tiny_model, only_assistant):
    store = store_of(tmp_path, tiny_model)
    tokenizer = bench.make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '[end]' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer.save_pretrained(store.root / "models" / "base")
    method = {"sft": {"packing": False, "assistantOnlyLoss": only_assistant}}
    code, result = store.run(bench.prepare_input(datasets=[CHAT], method=method, **FULL))
    if only_assistant:
        assert (code, result["reason"]) == (64, "UnsupportedTemplate"), result
        assert "ends an assistant's turn with '[end]', which is no special token, so no server could stop there" in result["message"]
    else:
        assert (code, result["warnings"]) == (
            0,
            ["dataset 'chat': no special token ends its answers, so a model trained on them does not stop by itself"],
        )


def test_the_end_of_a_turn_is_read_off_a_rendered_conversation():
    assert chat.end_of_turn(bench.make_tokenizer()) == [END_OF_TURN]


def test_an_end_token_that_the_vocabulary_has_not_is_only_one_that_never_comes(tiny_model):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    beyond = model.config.vocab_size + 7
    asked = [[5, 6, 7], [8, 9]]
    first = [answer[0] for answer in answers.answers(model, asked, [beyond])]
    other = next(token for token in range(8, 60) if answers.answers(model, [[token]], [beyond])[0][0] != first[0])
    ended, goes_on = answers.answers(model, [asked[0], [other]], [beyond, first[0]])
    assert ended[0] == first[0]
    assert len(goes_on) > 1


def test_conversations_are_asked_up_to_their_last_answers_those_with_short_ones_first_and_long_ones_never(tmp_path, tiny_model, monkeypatch):
    from tunesmith_contract.evaluation import Perplexity

    store = store_of(tmp_path, tiny_model)
    monkeypatch.setenv("TUNESMITH_PVC_ROOT", str(store.root))
    turn = [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "dog"}]
    longer = [{"role": "user", "content": "bird"}, {"role": "assistant", "content": "dog dog"}]
    endless = [{"role": "user", "content": "bird"}, {"role": "assistant", "content": "dog " * 200}]
    write_rows(store.root / "data" / "turns.jsonl", [{"messages": each} for each in (endless, longer, turn * 2, turn[1:])])
    settings = Perplexity.model_validate({"dataset": {"uri": "pvc://data/turns.jsonl", "format": "Messages"}, "maxLength": 64})
    tokenizer = load_tokenizer(store.root / "models" / "base")
    first, second = (tokenizer.decode(asked.ids) for asked in answers.questions(settings, tokenizer))
    assert first.endswith("dog<|im_end|>\n<|im_start|>user\ncat<|im_end|>\n<|im_start|>assistant\n")
    assert second.endswith("<|im_start|>user\nbird<|im_end|>\n<|im_start|>assistant\n")
