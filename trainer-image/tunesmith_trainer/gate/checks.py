"""What can be refused of a gate before anything is measured: names that no suite has, and criteria against a metric's direction."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from tunesmith_contract.evaluation import LIKELIHOOD_METRICS, OVERLAP, PERPLEXITY_METRICS, Criterion, Suite
from tunesmith_trainer.data import dataset
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.gate.criterion import direction
from tunesmith_trainer.suites.harness import Tasks
from tunesmith_trainer.suites.harness_items import Known, Names, names_of

MOST_NAMES = 20


def check(gate: Sequence[Criterion], suites: Sequence[Suite], tasks: Mapping[str, Tasks]) -> None:
    """Raise StageError(InvalidSettings) for the first criterion that Compare could not judge, whatever is measured."""
    names = {suite.name: names_of_suite(suite, tasks.get(suite.name)) for suite in suites}
    for number, criterion in enumerate(gate):
        try:
            known = _known(criterion, names)
            if known is not None:
                _check_known(criterion, known)
        except ValueError as error:
            raise StageError("InvalidSettings", f"gate[{number}]: {error}") from None


def names_of_suite(suite: Suite, tasks: Tasks | None) -> Names:
    """Return what a suite will measure."""
    if suite.harness and tasks:
        names = names_of(suite.name, tasks.leaves, tasks.groups)
    else:
        conversational = suite.perplexity is not None and suite.perplexity.dataset.format in dataset.CONVERSATIONAL
        measured = PERPLEXITY_METRICS if conversational else LIKELIHOOD_METRICS
        metrics = {f"{suite.name}/{name}": Known(higher, True) for name, higher in measured.items()}
        names = Names(metrics, frozenset(), frozenset())
    return Names(names.metrics | {f"{suite.name}/{OVERLAP}": Known(False, True)}, names.tasks, names.open_tasks)


def _known(criterion: Criterion, names: Mapping[str, Names]) -> Known | None:
    """Return what is known of a criterion's metric, None where only the measurement will say; raises ValueError for a name that is wrong."""
    suite = names.get(criterion.suite)
    if suite is None:
        raise ValueError(f"{criterion.metric}: there is no suite {criterion.suite}{_instead(criterion.suite, names)}")
    known = suite.metrics.get(criterion.metric)
    if known is not None:
        return known
    parts = criterion.metric.split("/")
    if suite.tasks and len(parts) == 3:
        if parts[1] in suite.open_tasks:
            return None
        if parts[1] not in suite.tasks:
            raise ValueError(f"{criterion.metric}: suite {criterion.suite} measures no task {parts[1]}{_instead(parts[1], suite.tasks)}")
    raise ValueError(f"{criterion.metric} is not measured{_instead(criterion.metric, suite.metrics)}")


def _instead(name: str, others: Iterable[str]) -> str:
    """Say what the name may have meant, or all that there is."""
    there = sorted(others)
    close = difflib.get_close_matches(name, there, n=3) or there[:MOST_NAMES]
    return f"; there are {', '.join(close)}" + (", …" if len(close) < len(there) else "")


def _check_known(criterion: Criterion, known: Known) -> None:
    direction(criterion, known.higher_is_better)
    if criterion.metric.endswith(f"/{OVERLAP}") and criterion.kind != "max":
        raise ValueError(f"{criterion.metric} is counted on the tested model alone: use `max`")
    if not known.judged:
        raise ValueError(
            f"{criterion.metric} is one figure over all documents, none of which has a value of its own: it is reported, but cannot be "
            "judged. Judge another metric of its task"
        )
