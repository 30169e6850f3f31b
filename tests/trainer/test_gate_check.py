"""Names and directions of a gate, checked before anything is measured."""

import copy
import json

import pytest

from dev.rows import write_rows
from tests.trainer.models import SUITES, TASK, evaluate_input, write_task
from tunesmith_trainer import evaluate
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.suites import answers, harness, items

BASE = "pvc://models/base"
GROUP = "group: things\ntask: [colours, shades]\naggregate_metric_list:\n- {metric: acc, aggregation: mean, weight_by_size: %s}\n"


@pytest.fixture
def data_store(base_store, monkeypatch):
    # Models with random weights never end an answer, and take their time.
    monkeypatch.setattr(answers, "NEW_TOKENS", 8)
    write_rows(base_store / "data" / "test.jsonl", [{"messages": [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "dog"}]}] * 3)
    folder = base_store / "data" / "tasks"
    write_task(folder)
    (folder / "shades.yaml").write_text(TASK.replace("task: colours", "task: shades").replace("colours.jsonl", "shades.jsonl"))
    write_rows(folder / "shades.jsonl", [json.loads(line) for line in (folder / "colours.jsonl").read_text().splitlines()][:8])
    (folder / "blurred.yaml").write_text(
        TASK.replace("task: colours", "task: blurred")
        .replace("{metric: acc,", "{metric: mcc,")
        .replace("aggregation: mean", "aggregation: matthews_corrcoef", 1)
    )
    (folder / "things.yaml").write_text(GROUP % "true")
    (folder / "evenly.yaml").write_text((GROUP % "false").replace("things", "evenly"))
    return base_store


def value(tasks=("colours",), gate=(), **harness):
    suites = copy.deepcopy(SUITES)
    suites[1]["harness"] |= {"tasks": list(tasks)} | harness
    return evaluate_input(BASE, suites=suites, gate=list(gate))


TEXTS = {"name": "texts", "perplexity": {"dataset": {"uri": "pvc://data/texts.jsonl", "format": "Text"}, "maxLength": 64}}


def run(given):
    return evaluate.run(evaluate.INPUT.model_validate(given))


@pytest.fixture
def unmeasured(data_store, monkeypatch):
    """The store, in which measuring anything fails the test."""
    monkeypatch.setattr(evaluate, "load_model", lambda *_: pytest.fail("a model was loaded"))
    return data_store


@pytest.fixture
def own_tasks_alone(monkeypatch):
    """Reading lm-eval's own tasks, which a group may hold, would take ten seconds and add nothing here."""
    from lm_eval import tasks

    monkeypatch.setattr(tasks, "TaskManager", lambda make=tasks.TaskManager, **given: make(**(given | {"include_defaults": False})))


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ("heldOut/perplexty", "heldOut/perplexity"),
        ("heldout/perplexity", "there is no suite heldout; there are heldOut"),
        ("knowledge/color/acc", "measures no task color; there are colours"),
        ("knowledge/colours/accuracy", "knowledge/colours/acc"),
        ("knowledge/colours/acc,strict", "knowledge/colours/acc"),
        ("knowledge/colours", "is not measured"),
        ("knowledge/perplexity", "is not measured"),
    ],
)
def test_a_name_that_nothing_measures_is_told_before_anything_is_measured(unmeasured, metric, told):
    with pytest.raises(StageError, match=r"gate\[0\]: ") as caught:
        run(value(gate=[{"metric": metric, "baseline": "base", "maxDrop": "1"}]))
    assert caught.value.reason == "InvalidSettings"
    assert told in caught.value.message


@pytest.mark.parametrize(
    "criterion",
    [
        {"metric": "heldOut/perplexity", "min": "5"},
        {"metric": "heldOut/bits_per_byte", "minRatio": "1", "baseline": "base"},
        {"metric": "knowledge/colours/acc", "max": "0.5"},
        {"metric": "knowledge/colours/acc", "maxRatio": "1.02", "baseline": "base"},
        {"metric": "knowledge/colours/acc", "maxDrop": "0.1", "baseline": "base", "higherIsBetter": False},
        {"metric": "heldOut/stopped", "max": "0.5"},
        {"metric": "texts/stopped", "min": "0.5"},
        {"metric": "heldOut/overlap", "maxDrop": "0.1", "baseline": "base"},
        {"metric": "knowledge/overlap", "min": "0.1"},
        {"metric": "knowledge/blurred/mcc", "min": "0.1"},
    ],
)
def test_a_criterion_that_could_not_be_judged_is_refused_before_anything_is_measured(unmeasured, criterion):
    given = value(("colours", "blurred"), [criterion])
    with pytest.raises(StageError, match=r"gate\[0\]: ") as caught:
        run(given | {"suites": [*given["suites"], TEXTS]})
    assert caught.value.reason == "InvalidSettings"


def test_what_is_right_is_measured_with_its_items_a_groups_too(data_store, own_tasks_alone):
    gate = [
        {"metric": "knowledge/things/acc", "min": "0"},
        {"metric": "knowledge/colours/acc_norm", "min": "0"},
        {"metric": "heldOut/perplexity", "max": "1e6"},
        {"metric": "heldOut/stopped", "min": "0"},
        {"metric": "heldOut/overlap", "max": "0"},
    ]
    answer = run(value(("things",), gate))
    counts = {metric.metric: metric.samples for metric in answer.metrics}
    assert counts["heldOut/perplexity"] == 3
    assert counts["knowledge/colours/acc"] == 24
    assert counts["knowledge/shades/acc"] == 8
    assert counts["knowledge/things/acc"] == 32
    measured = items.read(answer.items)
    assert measured.sample("knowledge/things/acc").is_binary
    assert [file.suite for file in answer.items] == ["heldOut", "knowledge"]


def test_whether_an_answer_ends_is_a_value_of_its_row_and_can_be_judged(data_store):
    measured = items.read(run(value()).items[:1])
    assert measured.sample("heldOut/stopped").is_binary
    assert measured.sample("heldOut/stopped").ids == measured.sample("heldOut/perplexity").ids
    assert len(measured.items) == 3, "overlap counts each row once"


def test_a_group_whose_tasks_weigh_alike_is_made_of_its_items_too(data_store, own_tasks_alone):
    answer = run(value(("evenly",)))
    figures = {metric.metric: metric for metric in answer.metrics}
    sample = items.read(answer.items).sample("knowledge/evenly/acc")
    assert figures["knowledge/evenly/acc"].samples == 32
    assert sum(sample.column.tops) / 32 == pytest.approx(float(figures["knowledge/evenly/acc"].value))


def test_a_figure_over_all_documents_at_once_is_reported_without_items(data_store, monkeypatch):
    monkeypatch.setattr(harness, "DRAWS", 10)
    answer = run(value(("blurred",)))
    counts = {metric.metric: metric.samples for metric in answer.metrics}
    assert counts["knowledge/blurred/mcc"] is None
    assert counts["knowledge/blurred/acc_norm"] == 24


def test_documents_drawn_with_a_seed_are_others_than_the_first_and_always_the_same(data_store):
    def ids(**settings):
        answer = run(value(limit=6, **settings))
        return items.read(answer.items[1:]).sample("knowledge/colours/acc").ids

    first, drawn = ids(), ids(sampleSeed=3)
    assert [name.split("/")[1].split("-")[0] for name in first] == ["0", "1", "2", "3", "4", "5"]
    assert len(drawn) == 6
    assert set(drawn) != set(first)
    assert ids(sampleSeed=3) == drawn
    assert ids(sampleSeed=4) != drawn


def test_results_cached_without_items_are_measured_again(data_store):
    first = run(value())
    for path in (data_store / "out" / "eval-cache").glob("*.json"):
        kept = json.loads(path.read_text())
        kept.pop("items")
        path.write_text(json.dumps(kept))
    assert run(value()).metrics == first.metrics
    for path in (data_store / "out" / "eval-cache" / "items").iterdir():
        path.unlink()
    again = run(value())
    assert again.items == first.items
    assert items.read(again.items).items


def test_a_chat_template_is_applied_where_it_is_asked_for(data_store, monkeypatch):
    import lm_eval.models.huggingface as huggingface

    seen, own = [], huggingface.HFLM.loglikelihood
    monkeypatch.setattr(huggingface.HFLM, "loglikelihood", lambda self, requests, **more: seen.extend(requests) or own(self, requests, **more))
    run(value())
    assert not any("<|im_start|>" in request.args[0] for request in seen)
    del seen[:]
    run(value(applyChatTemplate=True, numFewshot=1))
    assert all(request.args[0].count("<|im_start|>user") == 2 for request in seen)
    assert all(request.args[0].endswith("<|im_start|>assistant\n") for request in seen)


def test_a_chat_template_that_the_model_has_not_is_told_before_anything_is_measured(unmeasured):
    (unmeasured / "models" / "base" / "chat_template.jinja").unlink(missing_ok=True)
    path = unmeasured / "models" / "base" / "tokenizer_config.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "chat_template"}))
    with pytest.raises(StageError, match="has no chat template") as caught:
        run(value(applyChatTemplate=True))
    assert caught.value.reason == "InvalidSettings"


def test_no_text_of_an_item_is_kept(data_store):
    answer = run(value())
    for file in answer.items:
        text = (data_store / file.uri.removeprefix("pvc://")).read_text()
        assert "dog" not in text
        assert "green" not in text
