import copy
import json
import shutil

import pytest

from dev.rows import write_rows
from tests.trainer.models import SUITES, evaluate_input, write_task
from tunesmith_contract.results import Metric
from tunesmith_trainer import evaluate, store
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.suites import answers, harness, perplexity
from tunesmith_trainer.suites.harness_tasks import copy_tasks
from tunesmith_trainer.suites.items import Figure, Item, Measured

BASE = "pvc://models/base"


def run(value):
    return evaluate.run(evaluate.INPUT.model_validate(value))


def figures(answer):
    return {metric.metric: float(metric.value) for metric in answer.metrics}


@pytest.fixture
def fake_measuring(monkeypatch):
    """Measures nothing; the list of suites that were asked for."""
    asked = []

    def measure(suite, *_):
        asked.append(suite.name)
        path, value = f"{suite.name}/m", float(len(asked))
        return Measured([Metric(metric=path, value=str(value))], {path: Figure()}, [Item("0-a", {path: (value, 1.0)})])

    monkeypatch.setattr(evaluate, "measure", measure)
    return asked


@pytest.fixture
def data_store(base_store):
    write_rows(base_store / "data" / "test.jsonl", [{"messages": [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "dog"}]}])
    write_task(base_store / "data" / "tasks")
    colours = (base_store / "data" / "tasks" / "colours.yaml").read_text()
    (base_store / "data" / "tasks" / "shades.yaml").write_text(colours.replace("task: colours", "task: shades"))
    return base_store


@pytest.mark.parametrize("variant", ["base", "w8a8", "w4a16"])
def test_a_model_of_any_format_is_measured_by_both_kinds_of_suites(in_zoo, variant):
    uri = BASE if variant == "base" else f"pvc://models/run/variants/{variant}"
    answer = run(evaluate_input(uri))
    likelihoods = {"heldOut/perplexity", "heldOut/bits_per_byte", "knowledge/colours/acc", "knowledge/colours/acc_norm"}
    assert set(figures(answer)) == likelihoods | {"heldOut/stopped"}
    # Random weights know nothing: about the perplexity of a uniform guess, not better than chance by far.
    assert 400 < figures(answer)["heldOut/perplexity"] < 650
    assert all(float(metric.stderr) > 0 for metric in answer.metrics if metric.metric in likelihoods)
    assert {metric.metric: metric.higher_is_better for metric in answer.metrics}["knowledge/colours/acc"] is True
    assert answer.versions["transformers"]


def test_a_second_run_measures_nothing_anew(data_store, fake_measuring):
    first = run(evaluate_input(BASE))
    assert run(evaluate_input(BASE)).metrics == first.metrics
    assert fake_measuring == ["heldOut", "knowledge"]


def change_model(value, root):
    (root / "models" / "base" / "generation_config.json").write_text('{"max_new_tokens": 1}')


def change_rows(value, root):
    with (root / "data" / "test.jsonl").open("a") as file:
        file.write("\n")


def change_task(value, root):
    with (root / "data" / "tasks" / "colours.yaml").open("a") as file:
        file.write("metadata: {version: 2}\n")


def change_task_data(value, root):
    path = root / "data" / "tasks" / "colours.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")


def change_precision(value, root):
    value["precision"] = "FP32"


def change_device(value, root):
    value["device"] = "GPU"


def change_length(value, root):
    value["suites"][0]["perplexity"]["maxLength"] = 63


def change_format(value, root):
    value["suites"][0]["perplexity"]["dataset"]["format"] = "Text"


def change_fewshot(value, root):
    value["suites"][1]["harness"]["numFewshot"] = 0


def change_limit(value, root):
    value["suites"][1]["harness"]["limit"] = 3


def change_tasks(value, root):
    value["suites"][1]["harness"]["tasks"] = ["shades"]


def change_chat(value, root):
    value["suites"][1]["harness"]["applyChatTemplate"] = True


def change_sample(value, root):
    value["suites"][1]["harness"] |= {"limit": 3, "sampleSeed": 1}


def change_name(value, root):
    value["suites"][1]["name"] = "other"


BOTH = {"heldOut", "knowledge"}


@pytest.mark.parametrize(
    ("change", "measured_anew"),
    [
        (change_model, BOTH),
        (change_rows, {"heldOut"}),
        (change_task, {"knowledge"}),
        (change_task_data, {"knowledge"}),
        (change_precision, BOTH),
        (change_device, BOTH),
        (change_length, {"heldOut"}),
        (change_format, {"heldOut"}),
        (change_fewshot, {"knowledge"}),
        (change_limit, {"knowledge"}),
        (change_tasks, {"knowledge"}),
        (change_chat, {"knowledge"}),
        (change_sample, {"knowledge"}),
        (change_name, {"other"}),
    ],
)
def test_every_ingredient_of_a_figure_is_in_the_cache_key(data_store, fake_measuring, change, measured_anew):
    value = copy.deepcopy(evaluate_input(BASE))
    run(value)
    del fake_measuring[:]
    change(value, data_store)
    run(value)
    assert set(fake_measuring) == measured_anew


def test_libraries_the_device_a_template_the_batch_and_the_method_are_in_the_cache_key_too(data_store, fake_measuring, monkeypatch):
    run(evaluate_input(BASE))
    for target, name, value, expected in (
        (evaluate, "versions", lambda: {"torch": "0"}, ["heldOut", "knowledge"]),
        (evaluate, "environment", lambda _: {"device": "1 x another GPU"}, ["heldOut", "knowledge"]),
        (evaluate, "environment", lambda _: {"device": "2 x another GPU"}, ["heldOut", "knowledge"]),
        (perplexity, "METHOD", perplexity.METHOD + 1, ["heldOut"]),
        (perplexity, "BATCH_TOKENS", 1, ["heldOut"]),
        (answers, "NEW_TOKENS", 9, ["heldOut"]),
        (harness, "METHOD", harness.METHOD + 1, ["knowledge"]),
        (harness, "BATCH_SIZE", 1, ["knowledge"]),
        (perplexity, "template_of", lambda *_: "another", ["heldOut"]),
    ):
        del fake_measuring[:]
        with monkeypatch.context() as patch:
            patch.setattr(target, name, value)
            run(evaluate_input(BASE))
        assert fake_measuring == expected


def test_where_the_same_data_lies_is_not_in_the_cache_key(data_store, fake_measuring):
    value = copy.deepcopy(evaluate_input(BASE))
    run(value)
    shutil.copytree(data_store / "data", data_store / "moved")
    shutil.copytree(data_store / "models" / "base", data_store / "moved" / "model")
    value["model"]["uri"] = "pvc://moved/model"
    value["suites"][0]["perplexity"]["dataset"]["uri"] = "pvc://moved/test.jsonl"
    value["suites"][1]["harness"]["includePath"] = "pvc://moved/tasks"
    run(value)
    assert fake_measuring == ["heldOut", "knowledge"]


@pytest.mark.parametrize("damage", ["", "{", '{"key": {}, "metrics": []}', None])
def test_a_damaged_cache_file_is_measured_again(data_store, fake_measuring, damage):
    run(evaluate_input(BASE))
    for path in (data_store / "out" / "eval-cache").glob("*.json"):
        kept = json.loads(path.read_text())
        path.write_text(json.dumps(kept | {"metrics": [{"metric": "x"}]}) if damage is None else damage)
    run(evaluate_input(BASE))
    assert fake_measuring == ["heldOut", "knowledge"] * 2


def test_a_model_without_a_digest_gets_the_one_its_manifest_would_have(data_store, fake_measuring):
    answer = run(evaluate_input(BASE))
    assert answer.model.digest == store.scan(data_store / "models" / "base").digest
    assert answer.result_uri == "pvc://out/team-a/eval/0123456789ab/results/evaluate-tested.json"


def test_a_digest_that_does_not_match_is_refused(data_store, fake_measuring):
    value = evaluate_input(BASE)
    value["model"] = value["model"] | {"digest": "sha256:" + "0" * 64}
    with pytest.raises(StageError) as caught:
        run(value)
    assert caught.value.reason == "DigestMismatch"
    assert fake_measuring == []


@pytest.mark.parametrize(("name", "reason"), [("pytorch_model.bin", "UnsafeWeights"), ("modeling_evil.py", "RemoteCodeRefused")])
def test_a_model_that_would_run_code_is_refused(data_store, fake_measuring, name, reason):
    (data_store / "models" / "base" / name).write_text("")
    with pytest.raises(StageError) as caught:
        run(evaluate_input(BASE))
    assert caught.value.reason == reason


def test_a_task_that_nobody_knows_is_told_by_name(data_store, monkeypatch):
    from lm_eval import tasks

    # Reading lm-eval's own tasks would take ten seconds and add nothing here.
    monkeypatch.setattr(tasks, "TaskManager", lambda make=tasks.TaskManager, **given: make(**(given | {"include_defaults": False})))
    value = copy.deepcopy(evaluate_input(BASE))
    value["suites"] = [SUITES[1] | {"harness": {"tasks": ["colour"], "includePath": "pvc://data/tasks"}}]
    with pytest.raises(StageError, match="no task colour") as caught:
        run(value)
    assert caught.value.reason == "InvalidSettings"


def test_a_template_that_reaches_for_python_is_refused(data_store, monkeypatch, tmp_path):
    path = data_store / "data" / "tasks" / "colours.yaml"
    path.write_text(path.read_text().replace("{{question}}", "{{ ''.__class__.__mro__ }}"))
    value = copy.deepcopy(evaluate_input(BASE))
    value["suites"] = SUITES[1:]
    with pytest.raises(StageError, match="template") as caught:
        run(value)
    assert caught.value.reason == "InvalidSettings"


def test_the_paths_of_lm_evals_metrics_drop_the_filter_none_and_keep_the_others():
    results = {
        "gsm8k": {
            "alias": "g",
            "sample_len": 9,
            "exact_match,strict-match": 0.5,
            "exact_match_stderr,strict-match": 0.1,
            "acc,none": 1,
            "acc_stderr,none": "N/A",
        }
    }
    found = list(harness.metrics("maths", results, {"gsm8k": {"exact_match": True}}))
    assert [(m.metric, m.value, m.stderr, m.higher_is_better) for m in found] == [
        ("maths/gsm8k/acc", "1.0", None, None),
        ("maths/gsm8k/exact_match,strict-match", "0.5", "0.1", True),
    ]


def test_a_copy_of_tasks_is_what_lm_eval_reads(data_store, tmp_path):
    copied = copy_tasks(data_store / "data" / "tasks", tmp_path / "copy")
    assert set(harness.data_digests(copied)) == {"colours.yaml", "shades.yaml", "colours.jsonl"}


def test_a_model_is_never_left_on_the_host_where_gpus_were_asked_for():
    assert (evaluate.device_map(1), evaluate.device_map(4)) == ({"": 0}, "auto")
    evaluate.require_on_gpus(["cuda", "cuda"])
    with pytest.raises(StageError, match=r"2 weights of the model do not fit the memory of the GPUs: raise resources\.gpus") as caught:
        evaluate.require_on_gpus(["cuda", "cpu", "meta"])
    assert (caught.value.reason, caught.value.details) == ("OutOfMemory", {"memory": "Device"})
