import math

import pytest

from tunesmith_contract.evaluation import Criterion
from tunesmith_contract.results import Metric
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.gate.judging import Measurement, judge, short, verdict
from tunesmith_trainer.gate.statistics import Column
from tunesmith_trainer.suites.items import Figure, Measured, Sample

PATH = "s/t/m"
LN_V = math.log(49152)


def measurement(tops, bottoms=None, higher=True, link="Identity", ends=None, units=None, ids=None, value=None):
    """A figure with its items; a number stands for the figure of that many equal items."""
    bottoms = bottoms or [1.0] * len(tops)
    ratio = sum(tops) / sum(bottoms)
    found = value or repr(math.exp(ratio) if link == "Exp" else ratio)
    sample = Sample(tuple(ids or map(str, range(len(tops)))), Column(tops, bottoms), Figure(link, ends, units))
    return Measurement(Metric(metric=PATH, value=found, higher_is_better=higher, samples=len(tops)), sample)


def scores(right, items, **more):
    return measurement([1.0] * right + [0.0] * (items - right), **more)


def losses(*row_losses, tokens=20, **more):
    return measurement([loss * tokens for loss in row_losses], [tokens] * len(row_losses), False, "Exp", (0.0, LN_V), **more)


def decision(criterion, tested, base=None):
    wanted = Criterion.model_validate({"metric": PATH} | ({"baseline": "base"} if base else {}) | criterion)
    return judge(wanted, {PATH: tested}, {"base": {PATH: base}} if base else {})


def outcome(criterion, tested, base=None):
    return decision(criterion, tested, base).outcome


# Finding B1: what asked for a worse model passed one.


@pytest.mark.parametrize(
    ("criterion", "higher", "instead"),
    [
        ({"maxRatio": "1.02", "baseline": "base"}, True, "minRatio"),
        ({"maxRatio": "0.95", "baseline": "base"}, True, "minRatio"),
        ({"max": "0.45"}, True, "min"),
        ({"min": "5"}, False, "max"),
        ({"minRatio": "0.95", "baseline": "base"}, False, "maxRatio"),
        ({"min": "0.5", "higherIsBetter": True}, False, "is wrong"),
        ({"maxDrop": "0.5", "baseline": "base"}, None, "set `higherIsBetter`"),
        ({"max": "0.5", "higherIsBetter": True}, None, "min"),
    ],
)
def test_a_criterion_against_its_metrics_direction_is_refused(criterion, higher, instead):
    with pytest.raises(StageError, match=instead) as caught:
        decision(criterion, scores(5, 100, higher=higher), scores(70, 100, higher=higher) if "baseline" in criterion else None)
    assert caught.value.reason == "InvalidSettings"


def test_at_least_a_share_of_the_baselines_score_is_min_ratio():
    assert outcome({"minRatio": "0.9"}, scores(700, 1000), scores(705, 1000)) == "Passed"
    assert outcome({"minRatio": "0.9"}, scores(500, 1000), scores(700, 1000)) == "Failed"
    assert outcome({"minRatio": "0.9"}, scores(7, 10), scores(7, 10)) == "Inconclusive"


def test_a_direction_that_the_metric_does_not_know_is_the_criterions():
    assert outcome({"max": "0.5", "higherIsBetter": False}, scores(10, 100, higher=None)) == "Passed"
    assert outcome({"maxDrop": "0.1", "higherIsBetter": False}, scores(60, 100, higher=None), scores(10, 100, higher=None)) == "Failed"
    assert outcome({"maxDrop": "0.1", "higherIsBetter": True}, scores(60, 100, higher=None), scores(10, 100, higher=None)) == "Passed"


# Finding B2: no significance, no minimum of items.


def test_one_item_decides_nothing():
    for criterion, tested, base in (
        ({"min": "0.5"}, scores(1, 1), None),
        ({"maxDrop": "0.05"}, scores(1, 1), scores(1, 1)),
        ({"maxRatio": "1.05"}, losses(2.0), losses(2.0)),
        ({"max": "20"}, losses(2.0), None),
    ):
        found = decision(criterion, tested, base)
        assert (found.outcome, found.samples) == ("Inconclusive", 1)
        assert found.needed > 1


def test_a_drop_is_judged_by_the_bound_of_the_paired_difference():
    base = scores(70, 100)
    better, same = scores(80, 100), scores(70, 100)
    assert outcome({"maxDrop": "0.05"}, better, base) == "Passed"
    assert outcome({"maxDrop": "0.05"}, same, base) == "Passed"  # of a hundred pairs not one is unlike
    assert outcome({"maxDrop": "0.02"}, same, base) == "Inconclusive"
    shuffled = measurement([0.0] * 30 + [1.0] * 70)  # the same score, over other items
    found = decision({"maxDrop": "0.05"}, shuffled, base)
    assert (found.outcome, found.samples) == ("Inconclusive", 100)
    assert float(found.lower) < 0 < 0.05 < float(found.upper)
    assert "would" in found.reason
    assert str(found.needed) in found.reason
    assert outcome({"maxDrop": "0.05"}, scores(40, 100), base) == "Failed"


def test_at_no_margin_a_model_has_to_be_better_than_chance_would_make_it():
    base = measurement([0.0] * 10 + [1.0] * 40)
    assert outcome({"maxDrop": "0"}, measurement([1.0] * 5 + [0.0] * 5 + [1.0] * 40), base) == "Passed"  # McNemar: 0 of 5
    assert outcome({"maxDrop": "0"}, measurement([1.0] * 4 + [0.0] * 6 + [1.0] * 40), base) == "Inconclusive"  # 0 of 4: 0.0625


@pytest.mark.parametrize(("confidence", "expected"), [("0.9", "Passed"), ("0.99", "Inconclusive")])
def test_a_criterion_has_its_own_confidence(confidence, expected):
    assert outcome({"min": "0.6", "confidence": confidence}, scores(67, 100)) == expected


def test_fewer_items_than_asked_for_decide_nothing():
    found = decision({"min": "0.5", "minSamples": 500}, scores(99, 100))
    assert (found.outcome, found.needed) == ("Inconclusive", 500)
    assert "minSamples" in found.reason
    assert outcome({"min": "0.5", "minSamples": 100}, scores(99, 100)) == "Passed"


def test_a_perplexity_is_judged_over_rows():
    base = losses(*[2.0 + 0.01 * (row % 7) for row in range(800)])
    worse = losses(*[2.0 + 0.01 * (row % 7) + 0.2 for row in range(800)])
    assert outcome({"maxRatio": "1.05"}, base, base) == "Passed"
    assert outcome({"maxRatio": "1.05"}, worse, base) == "Failed"
    assert outcome({"maxRatio": "1.02"}, base, base) == "Inconclusive"
    assert outcome({"maxDrop": "0.5"}, base, base) == "Passed"
    assert outcome({"maxDrop": "0.5"}, worse, base) == "Failed"
    assert outcome({"max": "9"}, base) == "Passed"
    assert outcome({"max": "7"}, base) == "Failed"


def test_scores_between_0_and_1_and_scores_without_ends_are_judged_too():
    half = [0.5, 0.7, 0.6, 0.8] * 50
    assert outcome({"maxDrop": "0.05"}, measurement(half), measurement(half)) == "Passed"
    assert outcome({"min": "0.5"}, measurement(half)) == "Passed"
    assert outcome({"min": "0.8"}, measurement(half)) == "Failed"
    hundreds = [50.0, 70.0, 60.0, 80.0] * 50
    assert outcome({"maxDrop": "5"}, measurement(hundreds), measurement(hundreds)) == "Passed"
    assert outcome({"maxDrop": "0.5"}, measurement(hundreds), measurement(hundreds)) == "Inconclusive"


def test_a_figure_at_its_limit_is_decided_by_no_number_of_items():
    found = decision({"maxDrop": "0.1"}, scores(60, 100), scores(70, 100))
    assert (found.outcome, found.needed) == ("Inconclusive", None)
    assert "no number would" in found.reason


# What cannot be compared.


def test_figures_over_unlike_items_are_not_compared():
    with pytest.raises(StageError, match="evaluate again") as caught:
        outcome({"maxDrop": "0.05"}, scores(7, 10), scores(7, 11))
    assert caught.value.reason == "DigestMismatch"
    with pytest.raises(StageError, match="evaluate again"):
        outcome({"maxDrop": "0.05"}, scores(7, 10, ids="abcdefghij"), scores(7, 10, ids="abcdefghji"))


def test_perplexities_over_unlike_tokens_are_not_compared():
    with pytest.raises(StageError, match="s/bits_per_byte") as caught:
        outcome({"maxRatio": "1.05"}, losses(2.0, units="a"), losses(2.0, units="b"))
    assert caught.value.reason == "InvalidSettings"


def test_a_figure_without_items_is_not_judged():
    plain = Measurement(Metric(metric=PATH, value="0.9", higher_is_better=True))
    with pytest.raises(StageError, match="cannot be judged") as caught:
        outcome({"min": "0.5"}, plain)
    assert caught.value.reason == "InvalidSettings"


def test_what_was_counted_is_judged_as_it_is():
    counted = Measurement(Metric(metric=PATH, value="0.01", higher_is_better=False), counted=True)
    assert outcome({"max": "0.01"}, counted) == "Passed"
    assert outcome({"max": "0.009"}, counted) == "Failed"


def test_a_metric_that_no_suite_measured_is_missing_and_fails_the_verdict():
    found = judge(Criterion(metric="knowledge/mmul/acc", min="0.1"), {"knowledge/mmlu/acc": scores(9, 10)}, {})
    assert found.outcome == "Missing"
    assert verdict([found]) == "Failed"


def test_a_metric_that_only_the_baseline_lacks_is_missing_too():
    assert judge(Criterion(metric=PATH, baseline="base", max_drop="2"), {PATH: scores(1, 2)}, {}).outcome == "Missing"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_a_value_that_is_not_finite_fails_every_kind_of_condition(value):
    wrong, right = losses(2.0, value=value), losses(2.0)
    for limit in ({"max": "1e9"}, {"maxRatio": "9"}, {"maxDrop": "9"}):
        compared = "max" not in limit
        assert outcome(limit, wrong, right if compared else None) == "Failed"
        if compared:
            assert outcome(limit, right, wrong) == "Failed"


def test_a_ratio_to_a_baseline_that_is_not_positive_fails():
    assert outcome({"minRatio": "0.9"}, scores(5, 10), scores(0, 10)) == "Failed"


# Finding B3: no criteria are no approval.


def test_a_verdict_needs_criteria_that_all_passed():
    passed, failed, undecided = (decision(criterion, scores(60, 100)) for criterion in ({"min": "0.4"}, {"min": "0.8"}, {"min": "0.6"}))
    assert verdict([]) == "NoCriteria"
    assert verdict([passed, passed]) == "Passed"
    assert verdict([passed, undecided]) == "Inconclusive"
    assert verdict([undecided, failed, passed]) == "Failed"


@pytest.mark.parametrize(
    "wrong",
    [
        {}, {"min": "1", "max": "2"}, {"maxRatio": "1"}, {"maxDrop": "1"}, {"minRatio": "1"}, {"min": "1", "baseline": "base"}, {"min": "-1"},
        {"min": 0.5}, {"min": "1", "confidence": "1"}, {"min": "1", "confidence": "0.4"}, {"min": "1", "minSamples": 0},
    ],
)  # fmt: skip
def test_a_criterion_has_exactly_one_condition_and_a_baseline_only_where_it_compares(wrong):
    with pytest.raises(ValueError, match="validation error"):
        Criterion.model_validate({"metric": "s/m"} | wrong)


@pytest.mark.parametrize(
    ("value", "expected"), [("0.1234567", "0.123457"), ("12", "12"), ("0.50000", "0.5"), ("1234567", "1.23457e+6"), ("NaN", "NaN"), ("100", "100")]
)
def test_figures_in_results_have_six_significant_digits(value, expected):
    assert short(value) == expected


def test_a_figure_that_its_items_do_not_make_counts_as_one_without():
    found = scores(6, 10)
    whole = Measured([found.metric], {PATH: found.sample.figure}, [])
    assert whole.checked().sample(PATH) is None
