import json

import pytest

from dev.rows import write_rows
from tests.trainer.bench import conversations, prepare_input, training

MESSAGES = {"name": "chat", "uri": "pvc://data/rows.jsonl", "format": "Messages"}


def refused(store, **changes):
    """Run Prepare, which is to refuse; returns exit code, reason and message."""
    code, result = store.run(prepare_input(**changes))
    assert result["outcome"] == "Failed", result
    assert code == result["exitCode"]
    return code, result["reason"], result["message"]


def rows_of(store, *rows, data_format="Messages", **changes):
    """Write rows and return the changes of `run` that train on them."""
    write_rows(store.root / "data" / "rows.jsonl", rows)
    return {"datasets": [MESSAGES | {"format": data_format}], "validation": None} | changes


def plain(**changes):
    """The changes of `run` for data that is no conversation."""
    return {"method": {"sft": {"packing": False, "assistantOnlyLoss": False}}} | changes


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tiny_model):
    from tests.trainer.bench import Bench

    store = Bench(tmp_path_factory.mktemp("prepared"), tiny_model)
    code, result = store.run(prepare_input())
    assert code == 0, result
    return store, result


def test_a_run_is_prepared(prepared):
    store, result = prepared
    run = store.path(result["runURI"])
    assert result["runURI"] == f"pvc://models/out/team-a/support-bot/{result['runDigest'][7:19]}"
    assert result["model"]["parameters"] == 106816
    assert result["trainRows"] + result["validationRows"] == 60
    assert result["trainRows"] == len((run / "data" / "train.jsonl").read_text().splitlines())
    assert json.loads((run / "owner.json").read_text())["name"] == "support-bot"
    assert json.loads((run / "run.json").read_text())["run"]["training"]["warmupSteps"] == 0


def test_the_model_is_copied_once_into_the_cache(prepared):
    store, result = prepared
    assert result["model"]["uri"] == f"pvc://models/out/cache/{result['model']['digest'][7:19]}"
    weights = store.path(result["model"]["uri"]) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = store.run(prepare_input())[1]
    assert (again["runDigest"], again["model"]) == (result["runDigest"], result["model"])
    assert weights.stat().st_mtime_ns == before


def test_the_sample_shows_that_the_answer_and_its_end_alone_are_trained(prepared):
    store, result = prepared
    tokens = json.loads((store.path(result["runURI"]) / "data" / "sample.json").read_text())["tokens"]
    text = "".join(token["text"] for token in tokens)
    trained = "".join(token["text"] for token in tokens if token["trained"])
    assert text.endswith(f"<|im_start|>assistant\n{trained}\n")
    assert trained.endswith("<|im_end|>")


def test_other_settings_or_data_are_another_run(prepared):
    store, result = prepared
    other = store.run(prepare_input(training=training(seed=18)))[1]
    write_rows(store.root / "data" / "chat.jsonl", conversations(61))
    longer = store.run(prepare_input())[1]
    assert len({result["runDigest"], other["runDigest"], longer["runDigest"]}) == 3


def test_a_missing_source_is_named(store):
    missing = refused(store, model={"uri": "pvc://models/nope"})
    assert missing[:2] == (64, "SourceNotFound")
    assert "pvc://models/nope" in missing[2]
    missing = refused(store, datasets=[MESSAGES | {"uri": "pvc://data/nope.jsonl"}])
    assert missing[:2] == (64, "SourceNotFound")
    assert "pvc://data/nope.jsonl" in missing[2]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.pth", "y.pkl", "z.ckpt"])
def test_pickled_weights_are_refused(store, name):
    (store.root / "models" / "base" / name).write_bytes(b"x")
    code, reason, message = refused(store)
    assert (code, reason) == (65, "UnsafeWeights")
    assert name in message


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_config_that_names_code_is_refused(store, name):
    path = store.root / "models" / "base" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "evil.Model"}}))
    code, reason, message = refused(store)
    assert (code, reason) == (65, "RemoteCodeRefused")
    assert "auto_map" in message


def test_python_files_are_refused(store):
    (store.root / "models" / "base" / "modeling_evil.py").write_text("1/0")
    code, reason, message = refused(store)
    assert (code, reason) == (65, "RemoteCodeRefused")
    assert "modeling_evil.py" in message


def test_a_folder_without_weights_is_no_model(store):
    (store.root / "models" / "base" / "model.safetensors").unlink()
    assert refused(store)[:2] == (65, "InvalidModel")


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "bot", "content": "x"}]}, r"messages[0].role must be one of system, user, assistant"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content must be a text"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no message of the assistant"),
        ({"text": "x"}, "'messages' must be a list"),
        ([1], "not a JSON object"),
    ],
)
def test_a_wrong_row_is_told_with_dataset_file_and_number(store, row, complaint):
    good = next(conversations(1))
    code, reason, message = refused(store, **rows_of(store, good, row))
    assert (code, reason) == (65, "InvalidDataset")
    assert "dataset 'chat', file rows.jsonl, row 2" in message
    assert complaint in message


def test_a_line_that_is_no_json_is_told(store):
    changes = rows_of(store, next(conversations(1)))
    with (store.root / "data" / "rows.jsonl").open("a") as file:
        file.write("{broken\n")
    assert "row 2: not JSON" in refused(store, **changes)[2]


@pytest.mark.parametrize(
    ("data_format", "row", "trained", "untrained"),
    [
        ("Text", {"text": "red green"}, "red green<|im_end|>", ""),
        ("PromptCompletion", {"prompt": "red", "completion": " cat"}, " cat<|im_end|>", "red"),
        ("Alpaca", {"instruction": "dog", "input": "", "output": "bird"}, "bird<|im_end|>", "### Instruction:\ndog\n\n### Response:\n"),
        ("Alpaca", {"instruction": "dog", "input": "old", "output": "x"}, "x<|im_end|>", "### Input:\nold\n\n### Response:\n"),
    ],
)
def test_each_format_trains_on_its_answer(store, data_format, row, trained, untrained):
    short = plain(training=training(maxLength=256), preparation=None)
    code, result = store.run(prepare_input(**rows_of(store, row, data_format=data_format, **short)))
    assert code == 0, result
    tokens = json.loads((store.path(result["runURI"]) / "data" / "sample.json").read_text())["tokens"]
    assert "".join(token["text"] for token in tokens if token["trained"]) == trained
    assert "".join(token["text"] for token in tokens if not token["trained"]).endswith(untrained)


def test_nothing_left_after_filtering_is_told_with_counts(store):
    changes = rows_of(store, *conversations(3), preparation={"minTokens": 1, "dropPatterns": ["^[01] "]}, training=training(maxLength=8))
    code, reason, message = refused(store, **changes)
    assert (code, reason) == (65, "EmptyDataset")
    assert "chat" in message
    assert "2 matches a dropPattern" in message
    assert "1 nothing to train on within maxLength (8)" in message


def test_dropped_rows_are_counted(store):
    changes = rows_of(store, *conversations(5), preparation={"minTokens": 1, "dropPatterns": ["^[01] "]})
    result = store.run(prepare_input(**changes))[1]
    assert [(item["rows"], item["dropped"]) for item in result["datasets"]] == [(3, 2)]


def test_a_pattern_that_is_none_is_refused(store):
    assert refused(store, preparation={"dropPatterns": ["("]})[:2] == (64, "InvalidSettings")


def test_a_pattern_that_finds_no_end_is_named_and_refused(store):
    long = {"messages": [{"role": "user", "content": "a" * 200 + "!"}, {"role": "assistant", "content": "yes"}]}
    code, reason, message = refused(store, **rows_of(store, long, preparation={"minTokens": 1, "dropPatterns": ["x", "(a|aa)+$"]}))
    assert (code, reason) == (64, "InvalidSettings")
    assert "'(a|aa)+$' found no end in one row within 5 s" in message


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("optin", '"adamw_torch"', "did you mean optim?"),
        ("learning_rat", "1", "no such setting"),
        ("lerning_rate", "1", "training.learningRate"),
        ("learning_rate", "1", "set training.learningRate instead"),
        ("output_dir", '"/tmp"', "Tunesmith owns"),
        ("hub_token", '"x"', "Tunesmith owns"),
        ("fsdp_config", "{}", "Tunesmith owns"),
        ("trust_remote_code", "true", "Tunesmith owns"),
        ("save_steps", "1", "Tunesmith owns"),
        ("adam_beta1", '"high"', "wrong type"),
        ("optim", "adamw_torch", "not JSON"),
        ("optim", '"adamw_nope"', "adamw_nope"),
    ],
)
def test_an_override_that_cannot_be_is_refused(store, key, value, complaint):
    code, reason, message = refused(store, training=training(overrides={key: value}))
    assert (code, reason) == (64, "InvalidOverrides")
    assert complaint in message


def test_an_override_is_passed_on(store):
    from tunesmith_contract.methods import Method
    from tunesmith_contract.training import Training
    from tunesmith_trainer.training.arguments import training_arguments

    wanted = Training.model_validate(training(overrides={"adam_beta1": "0.8", "packing_strategy": '"bfd_split"'}))
    method = Method.model_validate({"sft": {"packing": True, "assistantOnlyLoss": True}})
    arguments = training_arguments(wanted, method, None, "CPU", "/tmp/x", validates=True)
    assert (arguments["adam_beta1"], arguments["packing_strategy"]) == (0.8, "bfd_split")


def test_a_group_size_that_does_not_divide_the_model_is_refused_with_one_that_does(store):
    variant = {"name": "w4", "quantization": {"scheme": "W4A16", "algorithm": "GPTQ", "numCalibrationSamples": 8}}
    code, reason, message = refused(store, variants=[variant])
    assert (code, reason) == (64, "GroupSizeMismatch")
    assert "groupSize 128" in message
    assert "64 or 32 or 16" in message
    variant["quantization"]["groupSize"] = 32
    assert store.run(prepare_input(variants=[variant]))[0] == 0


def test_sequences_longer_than_the_models_positions_are_refused(store):
    code, reason, message = refused(store, training=training(maxLength=257))
    assert (code, reason) == (64, "SequenceTooLong")
    assert "256" in message
    assert "257" in message


def test_target_modules_that_the_model_lacks_are_refused(store):
    adapter = {"lora": {"r": 4, "loraAlpha": 8, "loraDropout": "0", "targetModules": ["query_key_value"]}}
    code, reason, message = refused(store, adapter=adapter)
    assert (code, reason) == (64, "InvalidSettings")
    assert "q_proj" in message


def test_a_template_that_ends_no_turn_is_refused(store):
    template = store.root / "models" / "base" / "chat_template.jinja"
    template.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}")
    code, reason, message = refused(store)
    assert (code, reason) == (64, "UnsupportedTemplate")
    assert "{% generation %}" in message


def test_assistant_only_loss_needs_conversations(store):
    changes = rows_of(store, {"text": "red"}, data_format="Text")
    assert refused(store, **changes)[:2] == (64, "InvalidSettings")


def test_equal_rows_validate_or_train_but_never_both():
    from tunesmith_trainer.data import dataset

    rows = [*conversations(40), *conversations(40)]
    train, validation = dataset.split(rows, 0.1, 17)
    assert validation
    assert len(train) + len(validation) == 80
    assert not [row for row in validation if row in train]
    assert dataset.split(rows[::-1], 0.1, 17)[1] == validation[::-1]


TWO = {"nodes": 1, "processesPerNode": 2}
FULL = {"adapter": None, "output": {"uri": "pvc://models/out", "artifacts": ["Merged"]}}


@pytest.mark.parametrize(
    ("changes", "reason", "told"),
    [
        ({"baseQuantization": "NF4"} | FULL, "InvalidSettings", "baseQuantization needs an adapter"),
        ({"baseQuantization": "NF4", "parallelism": TWO | {"fsdp": {}}}, "InvalidSettings", "cannot be sharded"),
        ({"baseQuantization": "NF4", "parallelism": TWO | {"deepSpeed": {"zeroStage": 3}}}, "InvalidSettings", "cannot be sharded"),
        ({"parallelism": TWO | {"fsdp": {}, "deepSpeed": {"zeroStage": 2}}}, "InvalidSettings", "exactly one of ddp, fsdp, deepSpeed"),
        ({"parallelism": TWO | {"deepSpeed": {"zeroStage": 1}}}, "InvalidSettings", "zeroStage"),
        ({"parallelism": TWO | {"fsdp": {}}, "training": training(overrides={"optim": '"adafactor"'})}, "InvalidOverrides", "adamw_torch"),
    ],
)
def test_what_does_not_go_together_is_refused_before_training(store, changes, reason, told):
    code, given, message = refused(store, **changes)
    assert (code, given) == (64, reason)
    assert told in message
