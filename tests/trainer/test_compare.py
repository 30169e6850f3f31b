import copy
import json
import re
from html.parser import HTMLParser

import pytest

from tests.trainer.bench import GOLDEN
from tunesmith_trainer import compare, report
from tunesmith_trainer.contract_eval import Metric
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.result import cut

EVIL = "<script>alert('owned')</script>"
VALUES = {
    "tested": {"heldOut/perplexity": "12.481906255104", "support/support_choice/acc": "0.61"},
    "base": {"heldOut/perplexity": "31.7052", "support/support_choice/acc": "0.52"},
    "unquantized": {"heldOut/perplexity": "12.3117", "support/support_choice/acc": "0.6"},
}
RUN = "models/team-a/default/support-bot/0123456789ab"


def golden(name):
    return json.loads((GOLDEN / name).read_text())


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Compare's golden stage file, with the evaluations that it names in the store."""
    monkeypatch.setenv("TUNESMITH_PVC_ROOT", str(tmp_path))
    value = golden("compare.stage.json")
    for model in (value["tested"], *value["baselines"]):
        write_evaluation(tmp_path, value, model, VALUES[model["name"]])
    return value


def write_evaluation(root, value, model, figures):
    metrics = [{"metric": name, "value": figure, "stderr": "0.05", "higherIsBetter": "perplexity" not in name} for name, figure in figures.items()]
    found = golden("evaluate.result.json") | {"model": model, "metrics": metrics}
    path = root / value["evaluations"][model["name"]].removeprefix("pvc://")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))


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
    assert re.search(r"0\.875 <span class=\"error\">of 8</span>", page(tmp_path))


def test_the_golden_stage_gives_the_golden_verdict_and_gate(stage):
    answer, expected = run(stage), golden("compare.result.json")
    assert answer.verdict == expected["verdict"]
    assert [item.outcome for item in answer.gate] == [item["outcome"] for item in expected["gate"]]
    assert [item.value for item in answer.gate] == [item["value"] for item in expected["gate"]]
    assert [item.baseline_value for item in answer.gate] == [item.get("baselineValue") for item in expected["gate"]]
    assert (answer.results_uri, answer.report_uri) == (expected["resultsURI"], expected["reportURI"])


def test_results_hold_the_gates_metrics_first_and_up_to_twenty_more(stage, tmp_path):
    many = {f"big/t{number:02}/acc": "0.5" for number in range(40)}
    write_evaluation(tmp_path, stage, stage["tested"], many | VALUES["tested"])
    answer = run(stage)
    assert [item.metric for item in answer.results[:2]] == ["heldOut/perplexity", "support/support_choice/acc"]
    assert len(answer.results) == 22
    assert len(cut(answer.dump())) <= 2048
    whole = json.loads((tmp_path / "models/team-a/default/support-bot-eval/ba9876543210/results.json").read_text())
    assert len(whole["models"][0]["metrics"]) == 42
    assert whole["models"][0]["metrics"][-2]["value"] == "12.481906255104"


def test_a_gate_on_a_metric_that_no_suite_measures_fails(stage):
    stage["gate"] = [{"metric": "heldOut/perplexty", "max": "1000"}]
    answer = run(stage)
    assert (answer.verdict, answer.gate[0].outcome) == ("Failed", "Missing")


def test_a_figure_that_is_not_a_number_fails_and_is_shown(stage, tmp_path):
    write_evaluation(tmp_path, stage, stage["tested"], VALUES["tested"] | {"heldOut/perplexity": "NaN"})
    answer = run(stage)
    assert answer.verdict == "Failed"
    assert answer.gate[0].value == "NaN"
    assert "NaN" in page(tmp_path)


def test_without_a_gate_the_verdict_is_passed_and_the_report_says_that_nothing_was_asked(stage, tmp_path):
    assert run(stage | {"gate": []}).verdict == "Passed"
    assert "nothing was asked" in page(tmp_path)


def test_an_evaluation_of_another_model_is_refused(stage, tmp_path):
    write_evaluation(tmp_path, stage, stage["baselines"][0] | {"digest": "sha256:" + "9" * 64}, VALUES["base"])
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
    (folder / "data").mkdir(parents=True)
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
    value["gate"].append({"metric": EVIL, "max": "1"})
    value["suites"].append({"name": EVIL, "perplexity": {"dataset": {"uri": EVIL, "format": "Text"}, "maxLength": 8}})
    value["object"]["name"] = EVIL
    write_evaluation(tmp_path, value, value["tested"], VALUES["tested"] | {f"s/{EVIL}/acc": "1"})
    run(value)
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
