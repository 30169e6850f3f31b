"""How often a gate passes what it must not, and fails what it must not: seeded simulations, as the tables of docs/gate.md.

    make bench-gate                     (ARGS="--samples 200" for a short run)

In the trainer's environment. The figures of 0/1 items are those of the stage's own functions; perplexities are judged by the stage's
bootstrap and, to compare, by the methods that one finds in textbooks.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import Any

import numpy as np
from scipy import stats

from tunesmith_trainer.gate import statistics
from tunesmith_trainer.gate.statistics import Column, bootstrap, p_of_less, share

SEED = 12
CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
SIZES = (20, 50, 100, 500)
ROWS = (20, 50, 100, 200, 500)
"""Of perplexities."""
VOCABULARY = 49152
Rows = tuple[Any, Any, Any]
"""Tokens of each row, and the loss per token of the baseline and of the tested model."""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000, help="simulated evaluations for each figure")
    samples = parser.parse_args().samples
    # The draws are the same for each number of items, and take most of the time.
    make = statistics.weights_of
    statistics.weights_of = lru_cache(maxsize=1)(lambda items, draws: list(make(items, draws)))
    print(f"{samples} evaluations each: standard error of a rate of 5 %: {100 * math.sqrt(ALPHA * CONFIDENCE / samples):.1f} points")
    for title, (head, lines) in TABLES.items():
        print(f"\n### {title}\n\n{heading(head)}", flush=True)
        for line in lines(samples):
            print(f"| {' | '.join(line)} |", flush=True)


def heading(head: tuple[str, ...]) -> str:
    """A table's first two lines."""
    return f"| {' | '.join(head)} |\n|{'---|' * len(head)}"


def percent(part: float, whole: float) -> str:
    """A rate as the tables write it."""
    return f"{100 * part / whole:.1f} %"


DROP_HEAD = (
    "n",
    "discordant",
    "margin",
    "worse by the margin: passed",
    "failed",
    "equal: passed",
    "failed",
    "worse by twice the margin: passed",
    "failed",
)


def drops(samples: int) -> Iterator[tuple[str, ...]]:
    """Accuracy that is judged by maxDrop, for several shares of items that the two models answer unlike."""
    chance = np.random.default_rng(SEED)
    for margin in (0.02, 0.05, 0.10):
        for discordant in (0.05, 0.20, 0.40):
            for items in SIZES:
                cells: list[str] = []
                for drop in (margin, 0.0, 2 * margin):
                    unlike = max(discordant, drop)
                    shares = [(unlike + drop) / 2, (unlike - drop) / 2, 1 - unlike]
                    seen = Counter((int(up), int(down)) for up, down, _ in chance.multinomial(items, shares, samples))
                    passed = sum(times for (up, down), times in seen.items() if refuted(up, down, items, margin))
                    failed = sum(times for (up, down), times in seen.items() if refuted(down, up, items, -margin))
                    cells += [percent(passed, samples), percent(failed, samples)]
                yield str(items), f"{100 * discordant:.0f} %", str(margin), *cells


@cache
def refuted(up: int, down: int, items: int, difference: float) -> bool:
    """Whether a difference of so much or more is refuted."""
    return bool(p_of_less(up, down, items, difference) <= ALPHA)


MIN_HEAD = ("n", "min", "true score = min: passed", "failed", "0.05 better: passed", "failed", "0.05 worse: passed", "failed")


def minima(samples: int) -> Iterator[tuple[str, ...]]:
    """Accuracy that is judged by min, for several base rates."""
    chance = np.random.default_rng(SEED)
    for least in (0.30, 0.70, 0.90):
        for items in SIZES:
            cells: list[str] = []
            for truth in (least, least + 0.05, least - 0.05):
                found = [interval(int(right), items) for right in chance.binomial(items, truth, samples)]
                cells += [percent(sum(low >= least for low, _ in found), samples), percent(sum(high < least for _, high in found), samples)]
            yield str(items), str(least), *cells


@cache
def interval(right: int, items: int) -> tuple[float, float]:
    """The bounds of a share."""
    bounds = share(right, items, CONFIDENCE)
    return bounds.lower, bounds.upper


def even(chance: np.random.Generator, items: int) -> Any:
    """Rows change by a little, up and down."""
    return chance.normal(0, 0.1, items)


def heavy(chance: np.random.Generator, items: int) -> Any:
    """A lognormal change: few rows become much worse."""
    return 0.1 * (chance.lognormal(0, 1, items) - math.exp(0.5))


def very_heavy(chance: np.random.Generator, items: int) -> Any:
    """A Pareto change, whose third moment is infinite."""
    return 0.05 * (chance.pareto(2.5, items) - 1 / 1.5)


def breaking(chance: np.random.Generator, items: int) -> Any:
    """One row in a hundred breaks, the others become better by as much."""
    return np.where(chance.random(items) < 0.01, 5.0, 0.0) - 0.05 + chance.normal(0, 0.01, items)


FAMILIES: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "small changes": even,
    "lognormal": heavy,
    "Pareto": very_heavy,
    "1 % of rows break": breaking,
}


def rows(family: str, worse: float, chance: np.random.Generator, items: int) -> Rows:
    """Rows of a conversation's size, whose tested model is worse by `worse` nats a token in truth."""
    tokens = np.maximum(1, np.round(chance.lognormal(3.5, 0.8, items)))
    base = np.minimum(chance.gamma(4, 0.5, items), math.log(VOCABULARY))
    return tokens, base, base + worse + FAMILIES[family](chance, items)


MAX_HEAD = ("n", "rows", "passed", "failed")


def gamma(chance: np.random.Generator, items: int) -> tuple[Any, float]:
    """Losses of rows, and their true mean."""
    return chance.gamma(4, 0.5, items), 2.0


def lognormal(chance: np.random.Generator, items: int) -> tuple[Any, float]:
    """Some rows are much harder than others."""
    return chance.lognormal(0, 0.75, items), math.exp(0.75**2 / 2)


def two_kinds(chance: np.random.Generator, items: int) -> tuple[Any, float]:
    """One row in twenty is of another kind."""
    return np.where(chance.random(items) < 0.05, 6.0, 1.0) + chance.normal(0, 0.05, items), 1.25


def maxima(samples: int) -> Iterator[tuple[str, ...]]:
    """A perplexity that is as great as its limit allows."""
    for kind in (gamma, lognormal, two_kinds):
        for items in (1, 5, *ROWS):
            chance = np.random.default_rng(SEED)
            passed = failed = 0
            for _ in range(samples):
                tokens = np.maximum(1, np.round(chance.lognormal(3.5, 0.8, items)))
                losses, truth = kind(chance, items)
                bounds = bootstrap(Column(losses * tokens, tokens), None, (0.0, math.log(VOCABULARY)), lambda one, _: np.exp(one), CONFIDENCE)
                passed += bounds.upper <= math.exp(truth)
                failed += bounds.lower > math.exp(truth)
            yield str(items), kind.__name__.replace("_", " "), percent(passed, samples), percent(failed, samples)


METHODS_HEAD = ("n", "rows", "Student's t", "percentile", "BCa", "percentile-t", "**the gate's**: passed", "failed")


def methods(samples: int) -> Iterator[tuple[str, ...]]:
    """A perplexity that is worse by the margin (1.05): how often each method lets it pass."""
    for family in FAMILIES:
        for items in (5, *ROWS):
            chance = np.random.default_rng(SEED)
            counts = chance.multinomial(items, np.full(items, 1 / items), 1999).astype(float)
            passed: Counter[str] = Counter()
            for _ in range(samples):
                tokens, base, tested = rows(family, math.log(1.05), chance, items)
                textbook = upper_bounds(tokens, (tested - base) * tokens, counts)
                passed.update(name for name, bound in textbook.items() if bound <= math.log(1.05))
                lower, upper = judged(tokens, base, tested)
                passed.update(["gate"] * (upper <= 1.05) + ["failed"] * (lower > 1.05))
            yield str(items), family, *(percent(passed[name], samples) for name in ("t", "percentile", "BCa", "percentile-t", "gate", "failed"))


def judged(tokens: Any, base: Any, tested: Any) -> tuple[float, float]:
    """The gate's bounds of a ratio of perplexities."""
    ends = (0.0, math.log(VOCABULARY))
    bounds = bootstrap(Column(tested * tokens, tokens), Column(base * tokens, tokens), ends, lambda one, other: np.exp(one - other), CONFIDENCE)
    return bounds.lower, bounds.upper


def upper_bounds(tokens: Any, change: Any, counts: Any) -> dict[str, float]:
    """Upper bounds of the mean change of a token by the textbooks' methods; `counts`: how often each draw has each row."""
    items, total = len(tokens), float(tokens.sum())
    mean = float(change.sum()) / total
    parts = change - mean * tokens
    error = math.sqrt(items / (items - 1) * float(parts @ parts)) / total
    drawn_total = counts @ tokens
    drawn = counts @ change / drawn_total
    squares = counts @ change**2 - 2 * drawn * (counts @ (change * tokens)) + drawn**2 * (counts @ tokens**2)
    errors = np.sqrt(np.maximum(squares, 0) * items / (items - 1)) / drawn_total
    ratios = np.where(errors > 1e-12, (drawn - mean) / np.maximum(errors, 1e-12), -np.inf)
    left_out = (change.sum() - change) / (total - tokens)
    skew = left_out.mean() - left_out
    curve = float((skew**3).sum() / (6 * (skew**2).sum() ** 1.5))
    centre, far = stats.norm.ppf(np.clip((drawn < mean).mean(), 1e-4, 1 - 1e-4)), stats.norm.ppf(CONFIDENCE)
    moved = stats.norm.cdf(centre + (centre + far) / (1 - curve * (centre + far)))
    return {
        "t": mean + float(stats.t.ppf(CONFIDENCE, items - 1)) * error,
        "percentile": float(np.quantile(drawn, CONFIDENCE)),
        "BCa": float(np.quantile(drawn, moved)),
        "percentile-t": mean - float(np.quantile(ratios, ALPHA, method="lower")) * error,
    }


MARGINS = (1.02, 1.05, 1.10, 1.25, 1.30)
POWER_HEAD = ("n", "rows", *(f"maxRatio {margin}: passed" for margin in MARGINS), "failed at 1.02", "really 1.5, maxRatio 1.05: failed")


def power(samples: int) -> Iterator[tuple[str, ...]]:
    """Perplexities that are equal in truth: how often they pass at several margins."""
    for family in FAMILIES:
        for items in (*ROWS, 1000, 2000):
            chance = np.random.default_rng(SEED)
            repeats = samples if items <= 500 else max(20, samples // 5)
            equal = [judged(*rows(family, 0.0, chance, items)) for _ in range(repeats)]
            worse = [judged(*rows(family, math.log(1.5), chance, items)) for _ in range(repeats)]
            cells = [percent(sum(upper <= margin for _, upper in equal), repeats) for margin in MARGINS]
            failed = percent(sum(lower > MARGINS[0] for lower, _ in equal), repeats)
            yield str(items), family, *cells, failed, percent(sum(lower > 1.05 for lower, _ in worse), repeats)


TABLES: dict[str, tuple[tuple[str, ...], Callable[[int], Iterator[tuple[str, ...]]]]] = {
    "Scores of 0/1 items against a baseline: maxDrop": (DROP_HEAD, drops),
    "Scores of 0/1 items by themselves: min": (MIN_HEAD, minima),
    "Perplexity by itself: max, where the true figure is the limit": (MAX_HEAD, lambda samples: maxima(samples // 2)),
    "Perplexity against a baseline: maxRatio 1.05, where the true ratio is 1.05, by several methods": (
        METHODS_HEAD,
        lambda samples: methods(samples // 2),
    ),
    "Perplexity against a baseline: models that are equal in truth": (POWER_HEAD, lambda samples: power(samples // 4)),
}
"""By title: head and lines."""


if __name__ == "__main__":
    main()
