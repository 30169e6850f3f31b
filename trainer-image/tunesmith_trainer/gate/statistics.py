"""One-sided confidence bounds for what a gate judges: pure functions of per-item figures, the same for the same input.

Each figure has a lower and an upper bound, and each of the two misses the true value with a probability of at most
1 - confidence, with one item as with thousands. Methods that hold only for many items (Wald, Wilson, Tango's interval by its
formula, the percentile, BCa and percentile-t bootstrap) miss this: dev/bench/gate.py shows by how much.

- A share of 0/1 items: Clopper and Pearson's exact bounds.
- A difference of two shares over the same 0/1 items: the exact unconditional test that orders outcomes by Tango's score
  statistic (Tango 1998; Hsueh, Liu and Chen 2001), inverted; at a difference of 0 McNemar's exact test.
- All else (scores, losses, ratios, perplexities): the Bayesian bootstrap with one more item, the worst that there can be. For a
  mean this is Gaffke's bound (Gaffke 2005; Learned-Miller and Thomas 2019), which for 0/1 items is Clopper and Pearson's. Without
  that item a bootstrap knows nothing of rows that are rare and bad, and takes items that are all alike for certainty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

SEED = 20261201
SLOPE = 1e-6
DRAWS, DRAWS_OF_MANY, MANY = 9999, 1999, 20_000
"""Draws of the bootstrap, and with more than MANY items, of which each draw says more."""
BLOCK = 4_000_000
"""Random numbers held at a time: 32 MB."""
NUISANCE = 200
"""Points at which a p-value is taken over the share that it does not ask about."""
TAILS = 9.0
"""Standard deviations of a count that are summed over; what lies outside has a probability below 1e-15."""
STEPS = 24
"""Halvings of a bound's interval: 1e-7 of it is left."""
POWER = 0.8
"""Probability that as many items as are called needed decide."""
ROOM = 1.1
"""By so much more than the formula's, for the error of the bootstrap's draws, which a bound is put further out by."""
MOST = 10**9
"""More items than this are never called needed."""


@dataclass(frozen=True)
class Bounds:
    """A figure and its bounds, each one-sided at the confidence asked for."""

    estimate: float
    lower: float
    upper: float
    spread: float
    """Standard deviation of one item's part in the figure."""
    reach: float
    """How far the figure is from what it would be, were each item the worst or the best that there can be: the greater of the two, by its slope."""


@dataclass(frozen=True)
class Column:
    """One model's items: a figure is `link(sum of tops / sum of bottoms)`."""

    tops: Sequence[float]
    bottoms: Sequence[float]


Statistic = Callable[[Any, Any], Any]
"""The figure from the ratio of sums of the tested model and that of the baseline (arrays); rises with the first, falls with the second."""


def share(successes: int, items: int, confidence: float) -> Bounds:
    """Return the share of successes among 0/1 items, with Clopper and Pearson's bounds."""
    from scipy.stats import binomtest

    low = binomtest(successes, items, alternative="greater").proportion_ci(confidence, "exact").low
    high = binomtest(successes, items, alternative="less").proportion_ci(confidence, "exact").high
    estimate = successes / items
    return Bounds(estimate, float(low), float(high), math.sqrt(estimate * (1 - estimate)), 1.0)


def difference_of_shares(up: int, down: int, items: int, confidence: float, limit: float = 0.0) -> Bounds:
    """Return the difference of two shares over the same 0/1 items.

    `up` and `down`: items that count for the first share alone and for the second alone. `limit`: a difference on the right side
    of which each bound lies if and only if the test at that very difference says so.
    """
    estimate = (up - down) / items
    upper = _excluded_above(up, down, items, 1 - confidence, limit)
    lower = -_excluded_above(down, up, items, 1 - confidence, -limit)
    return Bounds(estimate, lower, upper, math.sqrt(max((up + down) / items - estimate**2, 0.0)), 1.0)


def _excluded_above(up: int, down: int, items: int, alpha: float, limit: float) -> float:
    """Return the least difference from which on every one is refuted."""
    low, high = (up - down) / items, 1.0
    if low < limit < high:
        low, high = (low, limit) if p_of_less(up, down, items, limit) <= alpha else (limit, high)
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if p_of_less(up, down, items, middle) <= alpha else (middle, high)
    return high


def p_of_less(up: int, down: int, items: int, difference: float) -> float:
    """Return the p-value of "the first share exceeds the second by `difference` or more": small where it is by less.

    Exact: the greatest probability, over all shares of items that count for the second alone, of an outcome that is at least as
    extreme by Tango's score statistic. At 0 it is McNemar's, which conditions on the discordant items.
    """
    import numpy as np
    from scipy.special import bdtr
    from scipy.stats import binom

    if difference == 0:
        return float(binom.cdf(up, up + down, 0.5)) if up + down else 1.0
    if difference >= 1:
        return 1.0 if up == items else 0.0
    most = _region(float(tango_score(up, down, items, difference)), items, difference)
    least = max(0.0, -difference)
    # Closer together near the ends, where an outcome's probability changes fastest.
    shares = least + ((1 - difference) / 2 - least) * np.sin(np.linspace(0, np.pi / 2, NUISANCE)) ** 2
    reach = math.ceil(TAILS * math.sqrt(items * float(np.max(shares * (1 - shares))))) + 12
    counts = np.floor(items * shares)[:, None].astype(int) + np.arange(-reach, reach + 1)[None, :]
    inside = (counts >= 0) & (counts <= items)
    counts = np.clip(counts, 0, items)
    first = np.clip((shares + difference) / (1 - shares), 0, 1)[:, None]
    below = np.where(most[counts] < 0, 0.0, bdtr(np.maximum(most[counts], 0), items - counts, first))
    return float(np.max(np.sum(np.where(inside, binom.pmf(counts, items, shares[:, None]), 0.0) * below, axis=1)))


def _region(score: float, items: int, difference: float) -> Any:
    """Return for each number of items that count for the second share alone the most that may count for the first alone; -1: none."""
    import numpy as np

    down = np.arange(items + 1)
    low, high = np.full(items + 1, -1), items - down
    while np.any(low < high):
        middle = (low + high + 1) // 2
        # Outcomes that tie in exact arithmetic belong together.
        small = tango_score(middle, down, items, difference) <= score + 1e-9
        low, high = np.where(small, middle, low), np.where(small, high, middle - 1)
    return low


def tango_score(up: Any, down: Any, items: int, difference: float) -> Any:
    """Return Tango's score statistic of a difference of paired shares (Tango 1998, Statistics in Medicine 17:891)."""
    import numpy as np

    up, down = np.asarray(up, float), np.asarray(down, float)
    linear = (2 * items - up + down) * difference - up - down
    root = np.sqrt(np.maximum(linear**2 + 8 * items * down * difference * (1 - difference), 0))
    share_down = np.maximum((root - linear) / (4 * items), max(0.0, -difference))
    variance = items * np.maximum(2 * share_down + difference * (1 - difference), 0)
    excess = up - down - items * difference
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(variance > 1e-12, excess / np.sqrt(variance), np.sign(np.round(excess, 9)) * np.inf)


def bootstrap(tested: Column, baseline: Column | None, ends: tuple[float, float], statistic: Statistic, confidence: float) -> Bounds:
    """Return a statistic of the items of one model, or of two on the same items, with its bounds.

    `ends`: the least and the greatest that the top of an item can be for each unit of its bottom. The upper bound adds an item of
    the mean size on which the tested model is at the greatest and the baseline at the least; the lower bound the opposite.
    """
    import numpy as np

    columns = [column for column in (tested, baseline) if column is not None]
    sums = np.array([values for column in columns for values in (column.tops, column.bottoms)], float)
    sizes = sums[1::2].mean(axis=1)
    worst = [np.array([part for size, end in zip(sizes, order, strict=True) for part in (size * end, size)]) for order in _orders(ends, len(columns))]
    kept, added = _draw(sums, DRAWS if sums.shape[1] <= MANY else DRAWS_OF_MANY)
    upper, lower = (_value(statistic, kept + added[None, :] * item[:, None]) for item in worst)
    place = _place(confidence, len(upper))
    means = sums.mean(axis=1)
    estimate = float(_value(statistic, means[:, None])[0])
    moved = [float(_value(statistic, (means + SLOPE * (item - means))[:, None])[0]) for item in worst]
    return Bounds(
        estimate,
        -float(np.partition(-lower, place)[place]),
        float(np.partition(upper, place)[place]),
        float(np.std(_value(statistic, kept))) * math.sqrt(sums.shape[1]),
        max(abs(value - estimate) for value in moved) / SLOPE,
    )


def _place(confidence: float, draws: int) -> int:
    """Return which draw, in order, is the bound: two standard errors further out than its share, for which draws of a finite number stand."""
    error = math.sqrt(draws * confidence * (1 - confidence))
    return min(draws, math.ceil(confidence * (draws + 1) + 2 * error)) - 1


def _orders(ends: tuple[float, float], models: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return what each model has for a unit in the item that raises the statistic most, and in the one that lowers it most."""
    least, greatest = ends
    return (greatest, least)[:models], (least, greatest)[:models]


def _draw(sums: Any, draws: int) -> tuple[Any, Any]:
    """Return weighted sums of the rows of `sums` for each draw, and the weight of the added item: Dirichlet's, not divided by their sum."""
    import numpy as np

    rows, items = sums.shape
    kept, added = np.empty((rows, draws)), np.empty(draws)
    start = 0
    for weights in weights_of(items, draws):
        end = start + len(weights)
        kept[:, start:end] = sums @ weights[:, :items].T
        added[start:end] = weights[:, items]
        start = end
    return kept, added


def weights_of(items: int, draws: int) -> Iterable[Any]:
    """Yield the weights of so many items and one more for each draw, a block of draws at a time; the same ones always."""
    import numpy as np

    chance = np.random.default_rng(SEED)
    block = max(1, BLOCK // (items + 1))
    for start in range(0, draws, block):
        yield chance.standard_exponential((min(block, draws - start), items + 1))


def _value(statistic: Statistic, sums: Any) -> Any:
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return statistic(sums[0] / sums[1], sums[2] / sums[3] if len(sums) > 2 else None)


def needed(bounds: Bounds, limit: float, items: int, confidence: float) -> int | None:
    """Return about how many items decide on which side of `limit` the figure lies, were it as measured.

    That is, in four out of five samples of that size. None where the figure is so close to the limit that no number does.
    """
    from scipy.stats import norm

    gap = abs(bounds.estimate - limit)
    spread = float(norm.ppf(confidence) + norm.ppf(POWER)) * bounds.spread
    unseen = -math.log(1 - confidence) * bounds.reach * ROOM
    # The bound is off by spread / sqrt(n) + unseen / n: for gap, solved for n.
    if not math.isfinite(spread + unseen) or gap * math.sqrt(MOST) <= spread + math.sqrt(gap * unseen):
        return None
    root = (spread + math.sqrt(spread**2 + 4 * gap * unseen)) / (2 * gap)
    return max(items + 1, math.ceil(root**2))
