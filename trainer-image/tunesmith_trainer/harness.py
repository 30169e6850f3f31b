"""lm-evaluation-harness: runs its tasks on a loaded model and reports its own figures under our metric paths."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith_trainer import store
from tunesmith_trainer.contract_eval import Harness, Metric
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.failure import raise_surroundings
from tunesmith_trainer.harness_tasks import TaskFolder, copy_tasks
from tunesmith_trainer.perplexity import written

BATCH_SIZE = 8
STDERR = "_stderr"


def prepare(settings: Harness, workspace: Path) -> TaskFolder | None:
    """Return a checked copy of the suite's folder of tasks under `workspace`, or None when lm-eval's own tasks are meant.

    Raises StageError: SourceNotFound where there is no such folder, InvalidSettings for what is refused in it.
    """
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


def measure(suite: str, settings: Harness, folder: TaskFolder | None, model: Any, tokenizer: Any) -> list[Metric]:
    """Return the figures of lm-eval's tasks for a loaded model.

    Raises StageError: InvalidSettings for a task that does not exist, SourceNotFound for data that is not here.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    manager = _task_manager(settings, folder)
    with sandboxed_templates():
        results = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH_SIZE),
            tasks=_loaded(manager, settings.tasks),
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            log_samples=False,
            task_manager=manager,
        )
    return list(metrics(suite, results["results"], results["higher_is_better"]))


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


def _loaded(manager: Any, names: list[str]) -> list[Any]:
    """Return the tasks with their data read, so that data that is not here is told as such and not as a bug."""
    from jinja2 import TemplateError

    try:
        loaded = manager.load(names)
    except (StageError, TemplateError):  # a signal's, or a template's: both are told elsewhere
        raise
    except Exception as error:  # the datasets library raises many kinds, for files and for a hub out of reach alike
        raise_surroundings(error)
        advice = "tasks of lm-eval's own need the hub, which stages do not reach: put the data on a volume (includePath)"
        raise StageError("SourceNotFound", f"the data of {', '.join(names)} cannot be read: {error}. {advice}") from error
    tops = [loaded["groups"][name] for name in names if name in loaded.get("groups", {})]
    inside = {task.task_name for group in tops for task in group.get_all_tasks()}
    return [*tops, *(task for name, task in loaded["tasks"].items() if name not in inside)]


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
                metric=f"{suite}/{task}/{name}" + ("" if chosen == "none" else f",{chosen}"),
                value=written(value),
                stderr=written(error) if known else None,  # type: ignore[arg-type]
                higher_is_better=higher.get(task, {}).get(name),
            )
