"""lm-evaluation-harness: runs its tasks on a loaded model and reports its own figures under our metric paths."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tunesmith_contract.evaluation import Harness
from tunesmith_contract.results import Metric
from tunesmith_trainer import store
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.failure import raise_surroundings
from tunesmith_trainer.suites import fewshot
from tunesmith_trainer.suites.harness_items import items_of, path_of
from tunesmith_trainer.suites.harness_tasks import TaskFolder, copy_tasks
from tunesmith_trainer.suites.items import Measured, written

METHOD = 2
"""Part of the cache key: to be raised whenever a change here changes a figure."""
BATCH_SIZE = 8
SEEDS = {"random_seed": 0, "numpy_random_seed": 1234, "torch_random_seed": 1234, "fewshot_random_seed": fewshot.SEED}
"""lm-eval's own, which a later version of it may change."""
DRAWS = 100_000
"""Of lm-eval's bootstrap, its own number: standard errors of figures that are no mean come from it."""
STDERR = "_stderr"


@dataclass(frozen=True)
class Tasks:
    """A suite's tasks, checked and with their data read."""

    folder: TaskFolder | None
    manager: Any
    tops: list[Any]
    """Tasks and groups as the suite names them."""
    leaves: dict[str, Any]
    """All tasks, those in groups too, by name."""
    groups: dict[str, Any]


def load(settings: Harness, workspace: Path) -> Tasks:
    """Return a suite's tasks; a folder of the user's is checked and copied to `workspace` first.

    Raises StageError: InvalidSettings for a task that does not exist, for what is refused in its file, and for more few-shot
    examples than it has; SourceNotFound for a folder or data that is not here.
    """
    folder = copied(settings, workspace)
    manager = _task_manager(settings, folder)
    with sandboxed_templates():
        loaded = _loaded(manager, settings.tasks)
        tasks = Tasks(folder, manager, *loaded)
        for task in tasks.leaves.values():
            fewshot.guard(task, settings.num_fewshot)
    return tasks


def copied(settings: Harness, workspace: Path) -> TaskFolder | None:
    """Return a checked copy of the suite's folder of tasks under `workspace`, or None when lm-eval's own tasks are meant."""
    if settings.include_path is None:
        return None
    source = store.existing(settings.include_path)
    if not source.is_dir():
        raise StageError("InvalidSettings", f"includePath {settings.include_path} must be a folder of lm-eval task files")
    return copy_tasks(source, workspace)


def data_digests(folder: TaskFolder | None) -> dict[str, str]:
    """Return the digests of the user's task files and of the data they read; lm-eval's own tasks go with its version."""
    if folder is None:
        return {}
    files = (*folder.task_files, *folder.data_files)
    return {path.relative_to(folder.source).as_posix(): store.file_digest(path) for path in files}


def measure(suite: str, settings: Harness, tasks: Tasks, model: Any, tokenizer: Any) -> Measured:
    """Return the figures of lm-eval's tasks for a loaded model, and their documents.

    Raises StageError(InvalidSettings) for a template that is wrong.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    chat = bool(settings.apply_chat_template)
    with sandboxed_templates():
        results = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH_SIZE),
            tasks=tasks.tops,
            num_fewshot=settings.num_fewshot,
            **documents(settings, tasks),
            log_samples=True,
            bootstrap_iters=DRAWS,
            task_manager=tasks.manager,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            **SEEDS,
        )
        figures, items = items_of(suite, tasks.leaves, tasks.groups, results)
    found = Measured(list(metrics(suite, results["results"], results["higher_is_better"])), figures, items).checked()
    found.metrics = [_with_samples(metric, found) for metric in found.metrics]
    return found


def check_template(suite: str, settings: Harness, tokenizer: Any) -> None:
    """Raise StageError(InvalidSettings) where prompts are to be in a chat template that the model has not."""
    if settings.apply_chat_template and not tokenizer.chat_template:
        raise StageError("InvalidSettings", f"suite {suite}: applyChatTemplate is true, and the model's tokenizer has no chat template")


def _with_samples(metric: Metric, found: Measured) -> Metric:
    sample = found.sample(metric.metric)
    return metric.model_copy(update={"samples": len(sample.ids)}) if sample else metric


def documents(settings: Harness, tasks: Tasks) -> dict[str, Any]:
    """Return which of each task's documents are asked, as lm-eval's arguments: the first ones, or some drawn with sampleSeed."""
    if settings.limit is None or settings.sample_seed is None:
        return {"limit": settings.limit}
    drawn = {}
    for name, task in tasks.leaves.items():
        total = len(task.eval_docs)
        drawn[name] = sorted(Random(settings.sample_seed).sample(range(total), min(settings.limit, total)))
    return {"samples": drawn}


def _task_manager(settings: Harness, folder: TaskFolder | None) -> Any:
    """Return lm-eval's task manager; its own 14,000 tasks are read only when one is needed, which takes ten seconds."""
    from lm_eval.tasks import TaskManager

    if folder is not None:
        manager = TaskManager(include_path=str(folder.folder), include_defaults=False)
        # A group of the user's may hold lm-eval's own tasks.
        if all(name in manager.all_subtasks for name in settings.tasks):
            return manager
    manager = TaskManager(include_path=str(folder.folder) if folder else None)
    unknown = [name for name in settings.tasks if name not in manager.all_tasks]
    if unknown:
        raise StageError("InvalidSettings", f"lm-eval has no task {', '.join(unknown)}, nor has includePath")
    return manager


def _loaded(manager: Any, names: list[str]) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """Return the tasks with their data read, so that data that is not here is told as such and not as a bug."""
    from datasets.exceptions import DatasetGenerationError
    from jinja2 import TemplateError

    try:
        loaded = manager.load(names)
    except (StageError, TemplateError):  # a signal's, or a template's: both are told elsewhere
        raise
    except DatasetGenerationError as error:
        raise_surroundings(error)
        raise StageError("InvalidDataset", f"the data of {', '.join(names)} cannot be read: {error.__cause__ or error}") from error
    except Exception as error:  # the datasets library raises many kinds, for files and for a hub out of reach alike
        raise_surroundings(error)
        if all(name in manager.all_subtasks and _is_own(manager, name) for name in names):
            raise StageError("InvalidSettings", f"tasks {', '.join(names)} cannot be set up: {error!r}. See their files in includePath") from error
        advice = "tasks of lm-eval's own need the hub, which stages do not reach: put the data on a volume (includePath)"
        raise StageError("SourceNotFound", f"the data of {', '.join(names)} cannot be read: {error}. {advice}") from error
    groups = loaded.get("groups", {})
    tops = [groups[name] for name in names if name in groups]
    inside = {task.task_name for group in tops for task in group.get_all_tasks()}
    return [*tops, *(task for name, task in loaded["tasks"].items() if name not in inside)], loaded["tasks"], groups


def _is_own(manager: Any, name: str) -> bool:
    """Return whether a task is one of the user's files, whose data lie beside it."""
    included = Path(str(manager.include_path)) if manager.include_path else None
    place = manager.task_index[name].yaml_path
    return bool(included and place and Path(place).is_relative_to(included))


@contextmanager
def sandboxed_templates() -> Iterator[None]:
    """Have lm-eval render a task's templates in Jinja's sandbox: its own environment lets a template reach Python.

    Raises StageError(InvalidSettings) for a template that is wrong or tries to leave the sandbox.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from lm_eval import utils

    own = utils.env
    safe = ImmutableSandboxedEnvironment(loader=own.loader, undefined=own.undefined, keep_trailing_newline=own.keep_trailing_newline)
    safe.filters.update(own.filters)
    utils.env = safe
    try:
        yield
    except TemplateError as error:
        raise StageError("InvalidSettings", f"a template of an lm-eval task cannot be rendered: {error}") from error
    finally:
        utils.env = own


def metrics(suite: str, results: Mapping[str, Mapping[str, Any]], higher: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    """Yield lm-eval's results as metrics: `acc,none` of task t is `<suite>/t/acc`, its stderr `acc_stderr,none`."""
    for task, figures in sorted(results.items()):
        for key, value in sorted(figures.items()):
            name, comma, chosen = key.partition(",")
            # Without a filter it is no metric: the task's alias, its number of samples.
            if not comma or name.endswith(STDERR) or not isinstance(value, int | float):
                continue
            error = figures.get(f"{name}{STDERR},{chosen}")
            known = isinstance(error, int | float) and not math.isnan(error)
            yield Metric(
                metric=path_of(suite, task, name, chosen),
                value=written(value),
                stderr=written(error) if known else None,  # type: ignore[arg-type]
                higher_is_better=higher.get(task, {}).get(name),
            )
