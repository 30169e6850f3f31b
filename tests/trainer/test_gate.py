import pytest

from tunesmith_trainer.contract_eval import Criterion, Metric
from tunesmith_trainer.gate import judge, short, verdict


def metric(path, value, stderr=None, higher=None):
    return Metric(metric=path, value=value, stderr=stderr, higher_is_better=higher)


def outcome(criterion, tested=None, base=None, higher=None):
    path = criterion["metric"]
    own = {} if tested is None else {path: metric(path, tested, higher=higher)}
    other = {} if base is None else {path: metric(path, base, higher=higher)}
    return judge(Criterion.model_validate(criterion), own, {"base": other}).outcome


@pytest.mark.parametrize(("value", "expected"), [("0.45", "Passed"), ("0.4500000000000001", "Passed"), ("0.4499999999999999", "Failed")])
def test_min_is_inclusive_and_exact(value, expected):
    assert outcome({"metric": "knowledge/mmlu/acc", "min": "0.45"}, value) == expected


@pytest.mark.parametrize(("value", "expected"), [("12", "Passed"), ("12.0000000001", "Failed"), ("1e-5", "Passed"), ("-3", "Passed")])
def test_max_is_inclusive_and_exact(value, expected):
    assert outcome({"metric": "heldOut/perplexity", "max": "12"}, value) == expected


@pytest.mark.parametrize(
    ("tested", "higher", "expected"),
    [
        ("0.48", True, "Passed"),
        ("0.4799", True, "Failed"),
        ("0.9", True, "Passed"),
        ("0.4799", None, "Failed"),
        ("0.52", False, "Passed"),
        ("0.5201", False, "Failed"),
        ("0.1", False, "Passed"),
    ],
)
def test_max_drop_is_a_change_for_the_worse_in_the_metrics_own_direction(tested, higher, expected):
    criterion = {"metric": "s/t/m", "baseline": "base", "maxDrop": "0.02"}
    assert outcome(criterion, tested, "0.5", higher) == expected


@pytest.mark.parametrize(("tested", "base", "expected"), [("10.2", "10", "Passed"), ("10.21", "10", "Failed"), ("0", "1e-9", "Passed")])
def test_max_ratio_compares_with_the_baseline_without_rounding(tested, base, expected):
    assert outcome({"metric": "heldOut/perplexity", "baseline": "base", "maxRatio": "1.02"}, tested, base) == expected


@pytest.mark.parametrize("base", ["0", "-1"])
def test_a_ratio_to_a_baseline_that_is_not_positive_fails(base):
    assert outcome({"metric": "s/m", "baseline": "base", "maxRatio": "1.02"}, "-5", base) == "Failed"


def test_a_metric_that_no_suite_measured_is_missing_and_fails_the_verdict():
    decision = judge(Criterion(metric="knowledge/mmul/acc", min="0.1"), {"knowledge/mmlu/acc": metric("knowledge/mmlu/acc", "0.9")}, {})
    assert decision.outcome == "Missing"
    assert verdict([decision]) == "Failed"


def test_a_metric_that_only_the_baseline_lacks_is_missing_too():
    assert outcome({"metric": "s/m", "baseline": "base", "maxRatio": "2"}, "1", None) == "Missing"
    assert judge(Criterion(metric="s/m", baseline="other", max_ratio="2"), {"s/m": metric("s/m", "1")}, {}).outcome == "Missing"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("limit", [{"min": "0"}, {"max": "1e9"}, {"baseline": "base", "maxRatio": "9"}, {"baseline": "base", "maxDrop": "9"}])
def test_a_value_that_is_not_finite_fails_every_kind_of_condition(value, limit):
    assert outcome({"metric": "s/m"} | limit, value, "1") == "Failed"
    if "baseline" in limit:
        assert outcome({"metric": "s/m"} | limit, "1", value) == "Failed"


def test_without_a_gate_the_verdict_is_passed():
    assert verdict([]) == "Passed"


@pytest.mark.parametrize(
    "wrong",
    [{}, {"min": "1", "max": "2"}, {"maxRatio": "1"}, {"maxDrop": "1"}, {"min": "1", "baseline": "base"}, {"min": "-1"}, {"min": 0.5}],
)
def test_a_criterion_has_exactly_one_condition_and_a_baseline_only_where_it_compares(wrong):
    with pytest.raises(ValueError, match="validation error"):
        Criterion.model_validate({"metric": "s/m"} | wrong)


@pytest.mark.parametrize(
    ("value", "expected"), [("0.1234567", "0.123457"), ("12", "12"), ("0.50000", "0.5"), ("1234567", "1.23457e+6"), ("NaN", "NaN"), ("100", "100")]
)
def test_figures_in_results_have_six_significant_digits(value, expected):
    assert short(value) == expected
