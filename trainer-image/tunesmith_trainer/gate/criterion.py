"""What can be said of a gate's condition before anything is measured."""

from __future__ import annotations

from tunesmith_contract.base import json_name
from tunesmith_contract.evaluation import Criterion


def direction(criterion: Criterion, known: bool | None) -> bool:
    """Return whether more is better of a criterion's metric; `known`: what the metric itself says.

    Raises ValueError, saying what to do, where nothing says so, where the two disagree, and for a condition that asks for
    the metric to become worse.
    """
    wanted = criterion.higher_is_better
    if known is None and wanted is None:
        raise ValueError(f"{criterion.metric} does not say whether more of it is better: set `higherIsBetter` in the criterion")
    if known is not None and wanted not in (None, known):
        raise ValueError(f"`higherIsBetter: {str(wanted).lower()}` is wrong: of {criterion.metric} {'more' if known else 'less'} is better")
    higher = wanted if known is None else known
    against = ("max", "max_ratio") if higher else ("min", "min_ratio")
    if criterion.kind in against:
        instead = {"max": "min", "min": "max", "max_ratio": "minRatio", "min_ratio": "maxRatio"}[criterion.kind]
        better = "more" if higher else "less"
        raise ValueError(f"`{json_name(criterion.kind)}` on {criterion.metric} asks for a worse model, for {better} of it is better: use `{instead}`")
    return bool(higher)
