"""Bounds miss the truth at most as often as they say, with one item as with many. dev/bench/gate.py is the long form."""

import math

import numpy as np
import pytest
from scipy import stats

from dev.bench import gate as simulation
from tests.trainer.bench import ROOT
from tunesmith_trainer.gate import statistics
from tunesmith_trainer.gate.statistics import Column, bootstrap, difference_of_shares, needed, p_of_less, share

ALPHA = 0.05
LN_V = math.log(49152)


def passing(items, margin):
    """For each number of items gained the most that may be lost for a drop of `margin` or more to be refuted."""
    most = []
    for down in range(items + 1):
        low, high = -1, items - down
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if p_of_less(middle, down, items, margin) <= ALPHA else (low, middle - 1)
        most.append(low)
    return np.array(most)


def chance_of_passing(most, items, drop, gained):
    """Exactly, for a true drop and a true share of items gained."""
    down = np.arange(items + 1)
    below = np.where(most < 0, 0.0, stats.binom.cdf(most, items - down, (gained + drop) / (1 - gained)))
    return float(np.sum(stats.binom.pmf(down, items, gained) * below))


@pytest.mark.parametrize("items", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 25])
def test_a_drop_of_the_margin_passes_at_most_at_the_rate_that_is_asked_for_whatever_the_discordance(items):
    for margin in (0.05, 0.2):
        most = passing(items, margin)
        rates = [chance_of_passing(most, items, margin, gained) for gained in np.linspace(0, (1 - margin) / 2 - 1e-9, 101)]
        assert max(rates) <= ALPHA + 1e-4


@pytest.mark.parametrize("items", [1, 2, 5, 10, 50])
def test_at_no_margin_the_test_is_mcnemars(items):
    for up in range(0, items + 1, max(1, items // 5)):
        for down in range(0, items + 1 - up, max(1, items // 5)):
            expected = stats.binomtest(up, up + down, 0.5, alternative="less").pvalue if up + down else 1.0
            assert p_of_less(up, down, items, 0.0) == pytest.approx(expected)


def test_an_interval_of_a_difference_is_hardly_wider_than_the_one_that_tangos_statistic_gives_for_many_items():
    bounds = difference_of_shares(50, 50, 500, 0.95)
    assert 1.645 <= statistics.tango_score(50, 50, 500, bounds.lower) < 1.7
    assert -1.7 < statistics.tango_score(50, 50, 500, bounds.upper) <= -1.645


@pytest.mark.parametrize("limit", [0.0, 0.05, -0.02])
def test_a_bound_and_the_test_at_the_limit_never_disagree(limit):
    for up, down, items in ((0, 0, 20), (3, 9, 100), (12, 9, 100), (2, 2, 7), (0, 5, 60), (1, 0, 1)):
        bounds = difference_of_shares(up, down, items, 0.95, limit)
        assert (bounds.upper <= limit) == (p_of_less(up, down, items, limit) <= ALPHA)
        assert (bounds.lower > limit or limit <= -1) == (p_of_less(down, up, items, -limit) <= ALPHA and bounds.lower != limit)
        assert -1 <= bounds.lower <= bounds.estimate <= bounds.upper <= 1


@pytest.mark.parametrize("items", [1, 2, 3, 10, 100])
def test_items_that_are_all_alike_are_no_certainty(items):
    unseen = 1 - ALPHA ** (1 / items)
    same = difference_of_shares(0, 0, items, 0.95, 0.01)
    assert same.upper >= unseen - 1e-6
    assert same.lower <= -unseen + 1e-6
    assert share(items, items, 0.95).lower == pytest.approx(ALPHA ** (1 / items))
    equal = bootstrap(Column([1.5] * items, [1] * items), Column([1.5] * items, [1] * items), (0, LN_V), lambda tested, base: tested - base, 0.95)
    assert equal.estimate == 0
    assert equal.upper >= unseen * LN_V * 0.99
    assert equal.lower == pytest.approx(-equal.upper, rel=0.1)


def test_for_shares_the_bootstrap_with_an_added_item_is_clopper_and_pearsons_interval():
    for successes, items in ((0, 10), (7, 10), (99, 100), (1, 1)):
        exact = share(successes, items, 0.95)
        found = bootstrap(Column([1] * successes + [0] * (items - successes), [1] * items), None, (0, 1), lambda ratio, _: ratio, 0.95)
        assert (found.lower, found.upper) == (pytest.approx(exact.lower, abs=0.01), pytest.approx(exact.upper, abs=0.01))


def rows(family, chance, items):
    """Tokens, and the loss per token on the baseline and on a tested model that is worse by 0.05 in truth."""
    tokens = np.maximum(1, np.round(chance.lognormal(3.5, 0.8, items)))
    base = np.minimum(chance.gamma(4, 0.5, items), LN_V)
    if family == "lognormal":
        change = 0.1 * (chance.lognormal(0, 1, items) - math.exp(0.5))
    elif family == "one row in a hundred breaks":
        change = np.where(chance.random(items) < 0.01, 5.0, 0.0) - 0.05
    else:
        base = np.full(items, 1.5)
        change = chance.normal(0, 0.01, items)
    return tokens, base, base + 0.05 + change


@pytest.mark.parametrize("family", ["lognormal", "one row in a hundred breaks", "nearly alike"])
@pytest.mark.parametrize("items", [1, 2, 3, 5, 10, 30])
def test_a_perplexity_worse_by_the_margin_passes_at_most_at_the_rate_that_is_asked_for(family, items, monkeypatch):
    monkeypatch.setattr(statistics, "DRAWS", 999)
    chance, passed = np.random.default_rng(5), 0
    for _ in range(200):
        tokens, base, tested = rows(family, chance, items)
        bounds = bootstrap(Column(tested * tokens, tokens), Column(base * tokens, tokens), (0, LN_V), lambda one, other: np.exp(one - other), 0.95)
        passed += bounds.upper <= math.exp(0.05)
    assert passed / 200 <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / 200)


def test_bounds_are_the_same_for_the_same_items():
    chance = np.random.default_rng(1)
    tested, base = (Column(list(chance.gamma(2, 1, 50)), [3.0] * 50) for _ in range(2))
    first, second = (bootstrap(tested, base, (0, 10), lambda one, other: one / other, 0.95) for _ in range(2))
    assert first == second


def test_as_many_items_as_are_called_needed_decide():
    # One half of four out of five, at least: the bound of the figure itself lies inside then.
    for up, down, items in ((0, 0, 20), (2, 2, 20)):
        bounds = difference_of_shares(up, down, items, 0.95, 0.05)
        assert bounds.upper > 0.05
        many = needed(bounds, 0.05, items, 0.95)
        scale = many / items
        assert difference_of_shares(round(up * scale), round(down * scale), many, 0.95, 0.05).upper <= 0.05
    assert needed(difference_of_shares(2, 2, 20, 0.95), 0.05, 20, 0.95) < needed(difference_of_shares(2, 2, 20, 0.95), 0.02, 20, 0.95)


def test_a_figure_that_is_at_its_limit_is_decided_by_no_number_of_items():
    assert needed(difference_of_shares(5, 0, 100, 0.95), 0.05, 100, 0.95) is None


def test_the_documents_have_the_simulations_tables():
    page = (ROOT / "docs" / "gate.md").read_text()
    for title, (head, _) in simulation.TABLES.items():
        assert f"### {title}\n\n{simulation.heading(head)}\n" in page, "paste what `make bench-gate` prints"
    sizes = {line.split("|")[1].strip() for line in page.split("## The simulation")[1].splitlines() if line.startswith("| ")}
    assert {"20", "50", "100", "500"} <= sizes
