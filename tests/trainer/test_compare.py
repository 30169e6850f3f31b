import copy
import json
import os
import re
from html.parser import HTMLParser

import pytest

from dev.rows import write_rows
from tests.trainer import evaluations
from tests.trainer.bench import GOLDEN
from tests.trainer.evaluations import golden, held_out, support
from tunesmith_contract.data import DataSource
from tunesmith_contract.evaluation import Criterion, Perplexity, Suite
from tunesmith_contract.results import Metric
from tunesmith_trainer import compare
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.report import page as report
from tunesmith_trainer.result import TERMINATION_LIMIT, cut

EVIL = "<script>alert('owned')</script>"
RUN = "models/team-a/default/support-bot/0123456789ab"


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Compare's golden stage file, with the evaluations that it names in the store."""
    monkeypatch.setenv("TUNESMITH_PVC_ROOT", str(tmp_path))
    value = golden("compare.stage.json")
    for model in (value["tested"], *value["baselines"]):
        evaluations.write(tmp_path, value, model, evaluations.MODELS[model["name"]])
    write_rows(tmp_path / RUN / "data" / "train.jsonl", [{"text": "row number five hundred"}, {"text": "Row  number 7"}])
    return value


def run(value):
    return compare.run(compare.INPUT.model_validate(value))


def page(root):
    return (root / "models/team-a/default/support-bot-eval/ba9876543210/report.html").read_text()


def test_a_warning_about_a_models_folder_and_over_how_many_answers_a_figure_is_are_in_the_report(stage, tmp_path):
    where = tmp_path / stage["evaluations"]["tested"].removeprefix("pvc://")
    found = json.loads(where.read_text())
    found["metrics"].append({"metric": "heldOut/stopped", "value": "0.875", "higherIsBetter": True, "samples": 8})
    where.write_text(json.dumps(found | {"warnings": ["the answers <run> on"]}))
    run(stage)
    assert "<strong>tested</strong>: the answers &lt;run&gt; on" in page(tmp_path)
    (row,) = re.findall(r'<td class="mono">heldOut/stopped.*?</tr>', page(tmp_path), re.DOTALL)
    assert re.findall(r'<td class="number[^>]*>([0-9.]+)<', row) == ["8", "0.875"]


def test_the_golden_stage_gives_the_golden_result(stage):
    answer = json.loads(json.dumps(run(stage).dump()))
    if os.environ.get("UPDATE_GOLDEN"):
        common = {name: value for name, value in golden("compare.result.json").items() if name not in answer}
        (GOLDEN / "compare.result.json").write_text(json.dumps(common | answer, indent=2) + "\n")
    expected = golden("compare.result.json")
    assert answer == {name: expected[name] for name in answer}
    assert [item["outcome"] for item in answer["gate"]] == ["Passed"] * 6


@pytest.mark.parametrize("name", ["metrics", "versions"])
def test_an_evaluation_that_lacks_what_is_compared_is_refused(stage, tmp_path, name):
    where = tmp_path / stage["evaluations"]["base"].removeprefix("pvc://")
    where.write_text(json.dumps({key: value for key, value in json.loads(where.read_text()).items() if key != name}))
    with pytest.raises(StageError, match="not the whole result") as caught:
        run(stage)
    assert caught.value.exit_code == 64


def test_results_hold_the_gates_metrics_first_and_up_to_twenty_more(stage, tmp_path):
    many = [support(200, path=f"support/t{number:02}/acc") for number in range(40)]
    evaluations.write(tmp_path, stage, stage["tested"], [*many, *evaluations.MODELS["tested"]])
    answer = run(stage)
    assert [item.metric for item in answer.results[:2]] == ["heldOut/perplexity", "support/support_choice/acc"]
    assert len(answer.results) == 22
    assert len(cut(answer.dump())) <= TERMINATION_LIMIT
    whole = json.loads((tmp_path / "models/team-a/default/support-bot-eval/ba9876543210/results.json").read_text())
    assert len(whole["models"][0]["metrics"]) == 42
    assert len(whole["models"][0]["metrics"][-2]["value"]) > 8


def test_a_gate_on_a_metric_that_no_suite_measures_fails(stage):
    stage["gate"] = [{"metric": "heldOut/perplexty", "max": "1000"}]
    answer = run(stage)
    assert (answer.verdict, answer.gate[0].outcome) == ("Failed", "Missing")


def test_a_figure_that_is_not_a_number_fails_and_is_shown(stage, tmp_path):
    wrong = held_out(2.5)
    wrong.metrics = [wrong.metrics[0].model_copy(update={"value": "NaN"})]
    evaluations.write(tmp_path, stage, stage["tested"], [wrong.checked(), support(244)])
    answer = run(stage)
    assert answer.verdict == "Failed"
    assert answer.gate[0].value == "NaN"
    assert "NaN" in page(tmp_path)


def test_without_a_gate_the_verdict_is_no_criteria_and_the_report_says_that_nothing_was_asked(stage, tmp_path):
    assert run(stage | {"gate": []}).verdict == "NoCriteria"
    assert "nothing was asked" in page(tmp_path)


def test_a_gate_that_so_few_items_cannot_decide_is_inconclusive_and_says_how_many_would(stage, tmp_path):
    for model in (stage["tested"], *stage["baselines"]):
        evaluations.write(tmp_path, stage, model, [held_out(2.5, rows=50), support(30, documents=50)])
    stage["gate"] = [{"metric": "heldOut/perplexity", "baseline": "unquantized", "maxRatio": "1.05"}]
    answer = run(stage)
    assert answer.verdict == "Inconclusive"
    (found,) = answer.gate
    assert (found.samples, found.needed) == (50, 712)
    assert float(found.lower) < 1 < 1.05 < float(found.upper)
    assert "needs about 712" in page(tmp_path)
    assert "could not be decided" in page(tmp_path)


def test_items_that_were_changed_after_the_evaluation_are_refused(stage, tmp_path):
    for path in (tmp_path / "items").iterdir():
        path.write_bytes(path.read_bytes().replace(b"1.0", b"0.0", 1))
    with pytest.raises(StageError, match="was changed") as caught:
        run(stage)
    assert caught.value.reason == "DigestMismatch"


def test_models_that_were_measured_on_other_rows_are_not_compared(stage, tmp_path):
    evaluations.write(tmp_path, stage, stage["baselines"][0], [held_out(3.46, rows=999), support(208)])
    with pytest.raises(StageError, match="only one of them has") as caught:
        run(stage)
    assert caught.value.reason == "DigestMismatch"


def test_perplexities_over_unlike_tokenizers_are_refused_and_bits_per_byte_advised(stage, tmp_path):
    evaluations.write(tmp_path, stage, stage["baselines"][0], [held_out(3.46, units="other tokens"), support(208)])
    with pytest.raises(StageError, match="heldOut/bits_per_byte"):
        run(stage)
    run(stage | {"gate": []})
    assert "other tokens" in page(tmp_path)


def test_rows_that_were_trained_on_are_counted_shown_and_judged(stage, tmp_path):
    answer = run(stage)
    assert [found.dump() for found in answer.overlap] == [
        {"suite": "heldOut", "items": 1000, "equal": 1, "similar": 0},
        {"suite": "support", "items": 400, "equal": 0, "similar": 0},
    ]
    assert "Found whole" in page(tmp_path)
    assert run(stage | {"gate": [{"metric": "heldOut/overlap", "max": "0"}]}).verdict == "Failed"
    stage.pop("lineage")
    answer = run(stage | {"gate": [{"metric": "heldOut/overlap", "max": "0"}]})
    assert (answer.overlap, answer.gate[0].outcome) == (None, "Missing")


def test_models_that_were_measured_on_unlike_devices_are_shown_as_such(stage, tmp_path):
    run(stage)
    assert "unlike devices" not in page(tmp_path)
    evaluations.write(tmp_path, stage, stage["baselines"][0], evaluations.MODELS["base"], environment={"device": "1 x NVIDIA A100"})
    run(stage)
    assert "unlike devices" in page(tmp_path)


def test_an_evaluation_of_another_model_is_refused(stage, tmp_path):
    evaluations.write(tmp_path, stage, stage["baselines"][0] | {"digest": "sha256:" + "9" * 64}, evaluations.MODELS["base"])
    with pytest.raises(StageError) as caught:
        run(stage)
    assert caught.value.reason == "DigestMismatch"


def test_an_evaluation_that_is_not_there_is_told_by_the_models_name(stage):
    del stage["evaluations"]["unquantized"]
    with pytest.raises(StageError, match="unquantized") as caught:
        run(stage)
    assert caught.value.reason == "SourceNotFound"


def test_the_report_needs_nothing_of_the_finetunejob(stage, tmp_path):
    stage.pop("lineage")
    run(stage)
    assert "Time line" in page(tmp_path)
    assert "Data sample" not in page(tmp_path)


class Page(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def full_page(stage, tmp_path):
    """The report of a run whose every user-supplied text tries to be a script."""
    folder = tmp_path / RUN
    (folder / "data").mkdir(parents=True, exist_ok=True)
    logs = [{"step": 5, "loss": 2.0}, {"step": 10, "loss": 1.5}, {"step": 10, "eval_loss": 1.7}, {"train_loss": 1.7, "step": 10}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in logs) + '{"step": 15, "lo')
    tokens = [{"text": "<|im_start|>user\n" + EVIL, "trained": False}, {"text": "</pre>" + EVIL, "trained": True}]
    (folder / "data" / "sample.json").write_text(json.dumps({"tokens": tokens}))
    recorded = {
        "run": {"preparation": {"dropPatterns": [EVIL]}, "training": {"overrides": {EVIL: EVIL}, "seed": 17}},
        "model": {"uri": "pvc://models/" + EVIL, "digest": "sha256:" + "a" * 64},
        "datasets": [{"name": EVIL, "digest": "sha256:" + "b" * 64, "rows": 3, "dropped": 1}],
        "libraries": {"trl": "1.16.0", "evil": EVIL},
    }
    (folder / "run.json").write_text(json.dumps(recorded))
    value = copy.deepcopy(stage)
    value["lineage"]["stages"][0]["name"] = EVIL
    value["object"]["name"] = EVIL
    evaluations.write(tmp_path, value, value["tested"], [*evaluations.MODELS["tested"], support(400, path=f"s/{EVIL}/acc")])
    # The contract lets no such names in; the page does not rely on it.
    given = compare.INPUT.model_validate(value)
    suite = Suite.model_construct(name=EVIL, perplexity=Perplexity(dataset=DataSource(uri="pvc://data/test.jsonl", format="Text"), max_length=8))
    evil = {"gate": [*given.gate, Criterion.model_construct(metric=EVIL, max="1")], "suites": [*given.suites, suite]}
    compare.run(given.model_copy(update=evil))
    return page(tmp_path)


def test_nothing_that_a_user_supplied_becomes_part_of_the_page(full_page):
    parser = Page()
    parser.feed(full_page)
    assert "script" not in {tag for tag, _ in parser.found}
    assert not [name for _, attributes in parser.found for name in attributes if name.startswith("on")]
    assert full_page.count("&lt;script&gt;") >= 10


def test_the_report_is_one_small_file_that_loads_nothing(full_page):
    parser = Page()
    parser.feed(full_page)
    links = [value for _, attributes in parser.found for name, value in attributes.items() if name in ("src", "href", "action", "data")]
    assert all(link.startswith("data:image/svg+xml;base64,") for link in links)
    assert len(links) == 1
    assert "url(" not in full_page
    assert "@import" not in full_page
    assert len(full_page) < 5 << 20
    assert re.search(r"""Content-Security-Policy" content="default-src 'none'""", full_page)


def test_the_report_shows_curves_mask_settings_digests_and_versions(full_page):
    for text in ("Gate", "Results", "Training", "Time line", "1 of 2 tokens are trained", "seed", "sha256:" + "b" * 64, "1.16.0", "lm_eval"):
        assert text in full_page
    assert re.search(r"<mark>&lt;/pre&gt;", full_page)


@pytest.mark.parametrize(
    ("tested", "base", "higher", "text", "tone"),
    [
        ("0.61", "0.52", True, "+0.09 (+17 %)", "better"),
        ("12.5", "31.7", False, "−19.2 (−61 %)", "better"),  # noqa: RUF001
        ("13", "12.5", False, "+0.5 (+4 %)", "worse"),
        ("1", "1.0", True, "0", "same"),
        ("2", "1", None, "+1 (+100 %)", "same"),
        ("1", "0", True, "+1", "better"),
        ("NaN", "1", True, "", "same"),
    ],
)
def test_a_difference_is_coloured_by_the_metrics_direction(tested, base, higher, text, tone):
    found = report.delta(Metric(metric="m", value=tested, higher_is_better=higher), Metric(metric="m", value=base, higher_is_better=higher))
    assert (re.sub(r"\.0+(?= )", "", found.text), found.tone) == (text, tone)


@pytest.mark.parametrize(
    ("value", "shown"),
    [("512.7806712286301", "512.78"), ("0.2", "0.2"), ("0", "0"), ("123456.7", "123460"), ("1e-8", "1e-8"), ("-0.00012345678", "-0.00012346")],
)
def test_figures_are_shown_in_plain_notation_with_five_digits(value, shown):
    assert report.figure(value) == shown
