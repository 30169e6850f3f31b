"""What Prepare says of the data it read, and that all stages go through the same rows."""

import json

import pytest

from dev.rows import write_rows
from tests.trainer.bench import make_tokenizer, prepare_input, run_block, training
from tests.trainer.templates import shipped
from tests.trainer.test_templates import ANSWER, LAST, PROBES, QUESTION, SECOND
from tunesmith_contract.data import Preparation
from tunesmith_contract.evaluation import Perplexity
from tunesmith_contract.methods import Method
from tunesmith_contract.stages import Run
from tunesmith_contract.training import Training
from tunesmith_trainer import prepare, result
from tunesmith_trainer.data import dataset
from tunesmith_trainer.data.chat import Encoder
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.quantization import calibration
from tunesmith_trainer.suites import perplexity
from tunesmith_trainer.training import loop
from tunesmith_trainer.training.arguments import kept_part

CHAT = {"messages": [{"role": "user", "content": "red dog"}, {"role": "assistant", "content": "blue cat old tree river stone"}]}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Writes datasets below `pvc://data` and reads them as Prepare does."""
    monkeypatch.setenv("TUNESMITH_PVC_ROOT", str(tmp_path))

    class Reader:
        root = tmp_path

        def read(self, answers=True, template=None, max_length=256, validation=None, overrides=None, packing=False, **sets):
            tokenizer = make_tokenizer()
            tokenizer.chat_template = template or tokenizer.chat_template
            datasets = []
            for name, (data_format, rows) in sets.items():
                write_rows(tmp_path / "data" / f"{name}.jsonl", rows)
                datasets.append({"name": name, "uri": f"pvc://data/{name}.jsonl", "format": data_format})
            block = {"datasets": datasets, "validation": validation, "preparation": None}
            method = {"sft": {"packing": packing, "assistantOnlyLoss": answers}}
            wanted = Run.model_validate(run_block(**block, method=method, training=training(maxLength=max_length, overrides=overrides or {})))
            found = prepare.read_data(wanted, prepare._encoder(wanted, tokenizer))
            return found, prepare.warnings(wanted, found)

    return Reader()


def test_what_was_read_is_in_the_result_and_in_the_run(store):
    for name, count in (("a.jsonl", 2), ("b.jsonl", 3)):
        write_rows(store.root / "data" / "set" / name, [CHAT | {"id": number, "source": "x"} for number in range(count)])
    datasets = [{"name": "chat", "uri": "pvc://data/set", "format": "Messages"}]
    code, answer = store.run(prepare_input(datasets=datasets, validation=None))
    assert code == 0, answer
    (found,) = answer["datasets"]
    assert found == {
        "name": "chat", "digest": found["digest"], "rows": 5, "dropped": 0, "sequences": 5, "loss": "Answers", "cutRows": 0, "cutTokens": 0,
        "endlessRows": 0, "strippedRows": 0, "fileCount": 2, "files": [{"name": "a.jsonl", "rows": 2}, {"name": "b.jsonl", "rows": 3}],
        "ignoredColumns": ["id", "source"],
    }  # fmt: skip
    assert answer["warnings"] == []
    assert json.loads((store.path(answer["runURI"]) / "run.json").read_text())["datasets"] == answer["datasets"]


def test_row_shapes_what_is_nested_too_deep_for_the_patterns_is_the_rows_fault():
    with pytest.raises(StageError, match="row 1: nested too deep"), dataset.placed("row 1"):
        raise RecursionError


def test_a_dataset_to_validate_on_is_told_of_as_well(data):
    write_rows(data.root / "data" / "held.jsonl", [CHAT])
    found, _ = data.read(chat=("Messages", [CHAT]), validation={"dataset": {"uri": "pvc://data/held.jsonl", "format": "Messages"}})
    assert found.validation_dataset.dump()["files"] == [{"name": "held.jsonl", "rows": 1}]
    assert found.validation_dataset.digest == found.datasets[0].digest


def test_the_names_in_a_result_are_bounded_and_its_counts_are_whole(data):
    for number in range(30):
        write_rows(data.root / "data" / "many" / f"{number:02}-{'x' * 200}.jsonl", [CHAT | {f"column_{number}": 1}])
    source = dataset.Source("many", "pvc://data/many", "Messages")
    encoder = Encoder(make_tokenizer(), answers=True)

    found = prepare.resolve(dataset.load(source, dataset.Filter(Preparation(), encoder, dataset.Cut(256))), encoder)
    assert (found.file_count, len(found.files), len(found.ignored_columns)) == (30, 20, 20)
    assert max(len(file.name) for file in found.files) == 128
    whole = {"stage": "Prepare", "outcome": "Succeeded", "datasets": [found.dump()] * 3, "warnings": ["w" * 200]}
    cut = json.loads(result.cut(whole))
    assert len(result.cut(whole)) <= result.TERMINATION_LIMIT
    assert [item["fileCount"] for item in cut["datasets"]] == [30, 30, 30], "names are given up before counts"
    assert cut["warnings"] == whole["warnings"]


@pytest.mark.parametrize(
    ("packing", "overrides", "tokens", "endless"),
    [
        (False, {}, 3, 1),
        (True, {}, 3, 1),
        (False, {"truncation_mode": '"keep_end"'}, 0, 0),
        (True, {"packing_strategy": '"bfd_split"'}, 0, 0),
        (True, {"packing_strategy": '"wrapped"'}, 0, 0),
    ],
)
def test_cut_rows_are_counted_with_the_trained_tokens_that_are_lost(data, packing, overrides, tokens, endless):
    length = len(Encoder(make_tokenizer(), answers=True).encode(CHAT).sequences[0].ids)
    # A line break follows the end of turn, which is the last token that is trained.
    found, warnings = data.read(
        chat=("Messages", [CHAT, CHAT | {"messages": [QUESTION, ANSWER]}]), max_length=length - 4, packing=packing, overrides=overrides
    )
    (item,) = found.datasets
    assert (item.cut_tokens, item.endless_rows) == (tokens, endless)
    if tokens:
        lost = "3 trained tokens are cut off, and 1 rows lose the end of an answer"
        assert warnings == [f"dataset 'chat': 1 of 2 rows are longer than maxLength ({length - 4}): {lost}"]
    else:
        assert warnings == [] or "0 trained tokens" in warnings[0]


def test_cut_rows_that_lose_whole_answers_lose_no_answers_end(data):
    row = {"messages": [QUESTION, ANSWER, SECOND | {"content": "red " * 40}, LAST]}
    found, _ = data.read(chat=("Messages", [row]), max_length=40)
    assert (found.datasets[0].cut_rows, found.datasets[0].endless_rows) == (1, 0)


def test_template_strips_is_told_with_how_many_rows(data):
    rows = [PROBES["think"], PROBES["turns"]]
    found, warnings = data.read(answers=False, template=shipped()["qwen3"], chat=("Messages", rows))
    assert found.datasets[0].stripped_rows == 1
    assert warnings == ["dataset 'chat': the model's chat template leaves out a text of 1 of 2 rows"]
    found, warnings = data.read(answers=True, template=shipped()["qwen3"], chat=("Messages", rows))
    assert (found.datasets[0].stripped_rows, found.datasets[0].sequences, found.datasets[0].rows) == (0, 4, 2)
    assert warnings == ["dataset 'chat': 1 of 2 rows are rendered with enable_thinking=false: serve the model so"]


def test_mixed_formats_say_on_what_the_loss_is_taken_and_warn_where_questions_are_trained(data):
    sets = {
        "chat": ("Messages", [CHAT]),
        "plain": ("Text", [{"text": "red"}]),
        "pairs": ("PromptCompletion", [{"prompt": "red", "completion": " cat"}]),
    }
    found, warnings = data.read(answers=False, **sets)
    assert [item.loss for item in found.datasets] == ["AllTokens", "AllTokens", "Answers"]
    assert len(warnings) == 1
    assert warnings[0].startswith("dataset 'chat': the loss is taken on questions too")
    found, warnings = data.read(answers=True, **sets)
    assert [item.loss for item in found.datasets] == ["Answers", "AllTokens", "Answers"]
    assert warnings == []


@pytest.mark.parametrize("data_format", ["Text", "Alpaca", "PromptCompletion", "Messages"])
def test_no_special_tokens_is_told_by_prepare_with_what_to_do(data_format):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = None
    datasets = [{"name": "a", "uri": "pvc://data/a.jsonl", "format": data_format}]
    wanted = Run.model_validate(run_block(datasets=datasets, method={"sft": {"packing": False, "assistantOnlyLoss": False}}))
    with pytest.raises(StageError, match=r"names no end token.*name its token as eos_token in tokenizer_config\.json") as error:
        prepare._encoder(wanted, tokenizer)
    assert error.value.reason == "InvalidModel"


def test_an_answer_that_nothing_is_left_of_within_max_length_is_no_sequence(data):
    row = {"messages": [QUESTION, ANSWER, SECOND | {"content": "red " * 60}, LAST]}
    found, _ = data.read(template=shipped()["qwen3"], max_length=40, chat=("Messages", [row]))
    assert (found.datasets[0].sequences, found.datasets[0].cut_rows) == (1, 1)


def encoded(path, model, answers=True, **changes):
    """What Train makes of a data file."""
    wanted, method = Training.model_validate(training(**changes)), Method.model_validate({"sft": {"packing": False, "assistantOnlyLoss": answers}})
    return list(loop.encoded_rows(str(path), str(model), answers, dataset.Cut(wanted.max_length, kept_part(wanted, method))))


@pytest.fixture
def strips(tmp_path, tiny_model):
    """The tiny model with a template that renders earlier turns otherwise than the last one."""
    import shutil

    folder = shutil.copytree(tiny_model, tmp_path / "strips")
    (folder / "chat_template.jinja").write_text(shipped()["qwen3"])
    return folder


def test_training_perplexity_and_calibration_read_the_same_rows(tmp_path, strips, monkeypatch):
    from tunesmith_trainer.model.base import load_tokenizer

    monkeypatch.setenv("TUNESMITH_PVC_ROOT", str(tmp_path))
    write_rows(tmp_path / "data" / "train.jsonl", [PROBES["think"], PROBES["turns"]])
    tokenizer = load_tokenizer(strips)
    learnt = encoded(tmp_path / "data" / "train.jsonl", strips, maxLength=256)
    scored = perplexity.read_rows(
        Perplexity.model_validate({"dataset": {"uri": "pvc://data/train.jsonl", "format": "Messages"}, "maxLength": 256}), tokenizer
    )
    assert [row.ids for row in scored] == [row["input_ids"] for row in learnt]
    assert [row.trained for row in scored] == [[label != loop.UNTRAINED for label in row["labels"]] for row in learnt]
    assert [row.number for row in scored] == [0, 0, 1, 1]
    whole = list(calibration.encode(list(dataset.read_normal(tmp_path / "data" / "train.jsonl")), tokenizer))
    assert [tokenizer.decode(ids) for ids in whole] == [
        tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in (PROBES["think"], PROBES["turns"])
    ]


def test_sequences_of_one_row_count_as_one_row_for_the_error_of_perplexity():
    scores = perplexity.by_row([perplexity.Score(1.0, 1, 4, 0), perplexity.Score(2.0, 2, 8, 1), perplexity.Score(3.0, 3, 4, 0)])
    assert sorted((score.nll, score.tokens, score.size) for score in scores) == [(2.0, 2, 8), (4.0, 4, 8)]


REFUSING = "{{ raise_exception('roles must alternate') }}"


@pytest.mark.parametrize("stage", ["Train", "Evaluate", "Quantize"])
def test_template_refuses_row_is_the_datas_fault_in_every_stage_and_names_the_row(tmp_path, tiny_model, monkeypatch, stage):
    import shutil

    from tunesmith_trainer.model.base import load_tokenizer

    monkeypatch.setenv("TUNESMITH_PVC_ROOT", str(tmp_path))
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    source = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text("{% if messages[0].content == 'stop' %}" + REFUSING + "{% endif %}" + source)
    path = tmp_path / "data" / "train.jsonl"
    write_rows(path, [CHAT, {"messages": [QUESTION | {"content": "stop"}, ANSWER]}])
    settings = Perplexity.model_validate({"dataset": {"uri": "pvc://data/train.jsonl", "format": "Messages"}, "maxLength": 64})
    work = {
        "Train": lambda: encoded(path, folder),
        "Evaluate": lambda: perplexity.read_rows(settings, load_tokenizer(folder)),
        "Quantize": lambda: list(calibration.encode(list(dataset.read_normal(path)), load_tokenizer(folder))),
    }
    with pytest.raises(StageError, match=r"train\.jsonl, row 2: the model's chat template refuses this row: roles must alternate") as error:
        work[stage]()
    assert error.value.reason == "InvalidDataset"


def test_a_row_that_train_cannot_encode_is_told_as_it_is_though_another_library_reads_it(tmp_path, strips):
    write_rows(tmp_path / "train.jsonl", [CHAT, {"messages": [QUESTION, ANSWER | {"name": "bob"}]}])
    arguments = {"path": str(tmp_path / "train.jsonl"), "model_folder": str(strips), "only_assistant": True, "cut": dataset.Cut(64)}
    with pytest.raises(StageError, match=r"file data/train.jsonl, row 2: messages\[1\].name"):
        loop.generated(arguments, str(tmp_path / "cache"))
