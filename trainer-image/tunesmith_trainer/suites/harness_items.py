"""What lm-eval measures, before it does and item by item: names, directions, and each document's part in a figure.

A task's figure can be judged where lm-eval makes it as a mean or a ratio of sums over documents. One over all documents at once
(BLEU, F1, Matthews' correlation) has no value for each, and is reported alone. A group's figure is made of its tasks' documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith_trainer.suites.items import Figure, Item, Link
from tunesmith_trainer.suites.overlap import marks_of_document

Part = Callable[[Any], tuple[float, float]]


@dataclass(frozen=True)
class Known:
    """What is known of a metric before it is measured."""

    higher_is_better: bool | None
    judged: bool
    """Whether each item has a value of its own."""


@dataclass(frozen=True)
class Names:
    """The metrics of a suite."""

    metrics: dict[str, Known]
    """By path."""
    tasks: frozenset[str]
    """All tasks and groups that are measured."""
    open_tasks: frozenset[str]
    """Those whose Python code may measure more than their files say."""


def path_of(suite: str, task: str, metric: str, chosen: str) -> str:
    """Return a metric's path: the filter `none` is left out."""
    return f"{suite}/{task}/{metric}" + ("" if chosen == "none" else f",{chosen}")


def _kinds() -> dict[Any, tuple[Link, Part]]:
    """Return for each of lm-eval's aggregations that are a mean or a ratio of sums how a document's value is a part of it."""
    from lm_eval.api import metrics

    return {
        metrics.mean: ("Identity", lambda value: (float(value), 1.0)),
        metrics.perplexity: ("Exp", lambda value: (-float(value), 1.0)),
        metrics.weighted_perplexity: ("Exp", lambda value: (-float(value[0]), float(value[1]))),
        metrics.bits_per_byte: ("Identity", lambda value: (-float(value[0]) / math.log(2), float(value[1]))),
    }


def kind_of(task: Any, metric: str) -> tuple[Link, Part] | None:
    """Return how a task's documents make a metric; None where they make it only together. Without an aggregation lm-eval takes the mean."""
    from lm_eval.api.metrics import mean

    return _kinds().get(task.aggregation().get(metric, mean))


def names_of(suite: str, leaves: Mapping[str, Any], groups: Mapping[str, Any]) -> Names:
    """Return what a suite's tasks will measure."""
    metrics: dict[str, Known] = {}
    opens = {name for name, task in leaves.items() if _is_open(task)}
    for name, task in leaves.items():
        for metric, chosen in _measured(task):
            judged = kind_of(task, metric) is not None
            metrics[path_of(suite, name, metric, chosen)] = Known(task.higher_is_better().get(metric), judged)
    for name, group in groups.items():
        inside = [task.task_name for task in group.get_all_tasks()]
        opens |= {name} if opens & set(inside) else set()
        for aggregate in group.aggregate_metric_list or ():
            chosen_of = {chosen for task in inside for metric, chosen in _measured(leaves[task]) if metric == aggregate.metric}
            for chosen in aggregate.filter_list or chosen_of:
                parts = [metrics[path] for task in inside if (path := path_of(suite, task, aggregate.metric, chosen)) in metrics]
                if parts:
                    known = {part.higher_is_better for part in parts}
                    judged = all(part.judged for part in parts) and all(_is_mean(leaves[task], aggregate.metric) for task in inside)
                    metrics[path_of(suite, name, aggregate.metric, chosen)] = Known(known.pop() if len(known) == 1 else None, judged)
    return Names(metrics, frozenset([*leaves, *groups]), frozenset(opens))


def _measured(task: Any) -> Iterator[tuple[str, str]]:
    """Yield the metrics that a task's file names, with each of its filters."""
    for metric in getattr(task, "_metric_fn_list", task.aggregation()):
        for chosen in task._filters:
            yield metric, chosen.name


def _is_open(task: Any) -> bool:
    """Return whether Python code makes the task's metrics."""
    functions = getattr(task, "_metric_fn_list", None)
    return functions is None or callable(task.config.process_results) or any(callable(entry.get("metric")) for entry in task.config.metric_list or ())


def _is_mean(task: Any, metric: str) -> bool:
    from lm_eval.api.metrics import mean

    return task.aggregation().get(metric, mean) is mean


def items_of(suite: str, leaves: Mapping[str, Any], groups: Mapping[str, Any], results: Mapping[str, Any]) -> tuple[dict[str, Figure], list[Item]]:
    """Return lm-eval's figures with the documents that they were made of."""
    figures: dict[str, Figure] = {}
    items: list[Item] = []
    for name, samples in results["samples"].items():
        items += documents_of(suite, name, leaves[name], samples, figures)
    for name, group in groups.items():
        figures |= group_figures(suite, name, group, figures, items)
    return figures, items


def documents_of(suite: str, name: str, task: Any, samples: list[Mapping[str, Any]], figures: dict[str, Figure]) -> Iterator[Item]:
    """Yield a task's documents with their values, and enter its figures into `figures`."""
    values: dict[int, dict[str, tuple[float, float]]] = {}
    documents: dict[int, Mapping[str, Any]] = {}
    for sample in samples:
        own = values.setdefault(sample["doc_id"], {})
        documents[sample["doc_id"]] = sample
        for metric in sample["metrics"]:
            kind = kind_of(task, metric)
            value = _part(kind[1], sample[metric]) if kind else None
            if kind and value:
                path = path_of(suite, name, metric, sample["filter"])
                own[path] = value
                figures.setdefault(path, Figure(kind[0]))
    for number, own in sorted(values.items()):
        sample = documents[number]
        yield Item(f"{name}/{number}-{sample['doc_hash'][:16]}", own, marks_of_document(_texts(task, sample["doc"])))


def _part(part: Part, value: Any) -> tuple[float, float] | None:
    try:
        return part(value)
    except (TypeError, ValueError, IndexError):  # a value of another shape than its aggregation takes
        return None


def _texts(task: Any, document: Any) -> list[str]:
    """Return a document's texts: its question as the task words it, and its fields."""
    fields = document.values() if isinstance(document, Mapping) else [document]
    return [text for text in (task.doc_to_text(document), *fields) if isinstance(text, str)]


def group_figures(suite: str, name: str, group: Any, figures: Mapping[str, Figure], items: list[Item]) -> dict[str, Figure]:
    """Return a group's figures: the mean of its tasks' documents, each of which weighs as much as lm-eval has its task weigh."""
    made = {}
    counts: dict[str, int] = {}
    for item in items:
        for path in item.values:
            counts[path] = counts.get(path, 0) + 1
    for aggregate in group.aggregate_metric_list or ():
        for chosen in {path.partition(",")[2] or "none" for path in counts}:
            parts = [path for task in group.get_all_tasks() if (path := path_of(suite, task.task_name, aggregate.metric, chosen)) in figures]
            if not parts or not all(_is_mean(task, aggregate.metric) for task in group.get_all_tasks()):
                continue
            total = sum(counts[path] for path in parts)
            weights = {path: 1.0 if aggregate.weight_by_size else total / (len(parts) * counts[path]) for path in parts}
            tops = [item.values[path][0] for item in items for path in parts if path in item.values]
            scores = all(0 <= top <= 1 for top in tops)
            made[path_of(suite, name, aggregate.metric, chosen)] = Figure("Identity", (0.0, max(weights.values())) if scores else None, parts=weights)
    return made
