"""Checks a user's folder of lm-eval task files and makes a copy of it that runs no code.

A task file can make lm-eval import Python (`!function`, `class`, a metric or a dataset of the hub with a script) or read files
elsewhere. Keys that can do so are refused by name, everything that reaches outside is held to the folder, and lm-eval is given
the checked copy: what was checked is what runs, whatever happens to the folder in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith_trainer.errors import StageError
from tunesmith_trainer.failure import raise_surroundings

BUILDERS = ("json", "csv", "parquet", "text")
"""Values of `dataset_path`: the readers of the datasets library that only read files. `pandas`, for one, unpickles."""
BUILDER_SETTINGS = ("data_files", "field", "delimiter", "column_names")
CODE_KEYS = {
    "class": "names a Python class",
    "custom_dataset": "names a Python function",
    "use_prompt": "reads a prompt file that is not checked",
    "unsafe_code": "runs what the model writes",
    "hf_evaluate": "loads a metric's script",
}


@dataclass(frozen=True)
class TaskFolder:
    """A checked copy of a folder of tasks."""

    source: Path
    """The user's folder, links resolved."""
    folder: Path
    """The copy: what lm-eval's TaskManager may read."""
    data_files: tuple[Path, ...]
    """The files that the tasks read, each once, in order."""
    task_files: tuple[Path, ...]
    """The user's own task files."""


def copy_tasks(source: Path, target: Path) -> TaskFolder:
    """Check every task file under `source` and write it to `target` with its data files' paths made absolute.

    Raises StageError SourceNotFound for a folder without task files, InvalidSettings with file and line for what is refused.
    """
    import yaml

    root = source.resolve()
    files = sorted(path for path in root.rglob("*.yaml") if path.is_file())
    if not files:
        raise StageError("SourceNotFound", f"{source} has no *.yaml task file: includePath must be a folder of lm-eval tasks")
    checker = _Checker(root)
    queue = list(files)
    for path in queue:  # grows: a file may include one that does not end in .yaml
        text = _read(path, root)
        queue.extend(included for included in checker.check(path, text) if included not in queue)
        copy = target / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(yaml.safe_dump(checker.resolved(path, text), sort_keys=False, allow_unicode=True), encoding="utf-8")
    return TaskFolder(root, target, tuple(sorted(checker.data_files)), tuple(sorted(queue)))


def _read(path: Path, root: Path) -> str:
    if not path.resolve().is_relative_to(root):
        raise StageError("InvalidSettings", f"{path.relative_to(root)} is a link that leads out of its folder")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise_surroundings(error)
        raise StageError("InvalidSettings", f"{path.relative_to(root)} cannot be read: {error}") from error


class _Checker:
    """Checks task files of one folder and collects the data files that they name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data_files: set[Path] = set()

    def refuse(self, path: Path, line: int, why: str) -> StageError:
        return StageError("InvalidSettings", f"{path.relative_to(self.root)}, line {line}: {why}")

    def check(self, path: Path, text: str) -> list[Path]:
        """Refuse what is unsafe in `text`, the file at `path`; return the files it includes."""
        import yaml

        try:
            for event in yaml.parse(text, Loader=yaml.SafeLoader):
                tag = getattr(event, "tag", None)
                if tag is not None:
                    raise self.refuse(path, event.start_mark.line + 1, f"the tag {tag} is refused: a task may not name Python code")
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise self.refuse(path, line, f"not YAML: {error.problem}") from error
        if not isinstance(node, yaml.MappingNode):
            raise self.refuse(path, 1, "a task file must be a mapping")
        included: list[Path] = []
        for key, value in _pairs(node, set()):
            self._check_pair(path, key.value, key.start_mark.line + 1, value, included)
        return included

    def _check_pair(self, path: Path, key: str, line: int, value: Any, included: list[Path]) -> None:
        plain = _plain(value)
        if key in CODE_KEYS:
            raise self.refuse(path, line, f"`{key}` is refused: it {CODE_KEYS[key]}")
        if key == "dataset_path" and plain not in BUILDERS:
            raise self.refuse(path, line, f"dataset_path must be one of {', '.join(BUILDERS)}, with data_files beside the task, not {plain!r}")
        if key == "dataset_kwargs":
            unknown = [name for name in plain if name not in BUILDER_SETTINGS] if isinstance(plain, dict) else [plain]
            if unknown:
                raise self.refuse(path, line, f"dataset_kwargs may hold {', '.join(BUILDER_SETTINGS)}, not {unknown[0]!r}")
        if key == "data_files":
            _map_strings(plain, lambda name: self._data_file(path, name, line))
        if key == "metric_list":
            self._check_metrics(path, line, plain)
        if key == "include":
            included.extend(self._inside(path, name, line) for name in (plain if isinstance(plain, list) else [plain]))

    def _check_metrics(self, path: Path, line: int, metrics: Any) -> None:
        import lm_eval.api.metrics  # noqa: F401  registers the metrics
        from lm_eval.api.registry import metric_registry

        for entry in metrics if isinstance(metrics, list) else [metrics]:
            name = entry.get("metric") if isinstance(entry, dict) else None
            if name not in metric_registry:
                # lm-eval would look for a script of that name, in the working directory first.
                raise self.refuse(path, line, f"{name!r} is not one of lm-eval's metrics: {', '.join(sorted(metric_registry.keys()))}")

    def _inside(self, path: Path, name: Any, line: int) -> Path:
        """Return the file called `name` as seen from `path`; it must exist and lie within the folder of tasks."""
        if not isinstance(name, str) or "://" in name:
            raise self.refuse(path, line, f"{name!r} is not the path of a file beside the task")
        found = (path.parent / name).resolve()
        if not found.is_relative_to(self.root):
            raise self.refuse(path, line, f"{name} lies outside of includePath: put it beside the task")
        if not found.is_file():
            raise self.refuse(path, line, f"{name} does not exist beside the task")
        return found

    def _data_file(self, path: Path, name: Any, line: int) -> str:
        found = self._inside(path, name, line)
        self.data_files.add(found)
        return str(found)

    def resolved(self, path: Path, text: str) -> Any:
        """Return the parsed file with the paths of its data files made absolute."""
        import yaml

        return self._resolve(path, yaml.safe_load(text))

    def _resolve(self, path: Path, value: Any) -> Any:
        if isinstance(value, list):
            return [self._resolve(path, item) for item in value]
        if not isinstance(value, dict):
            return value
        return {
            key: _map_strings(item, lambda name: self._data_file(path, name, 0)) if key == "data_files" else self._resolve(path, item)
            for key, item in value.items()
        }


def _pairs(node: Any, seen: set[int]) -> Iterator[tuple[Any, Any]]:
    """Yield every key and value of every mapping below `node`; aliases are visited once, so that a cycle ends."""
    import yaml

    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key, value
            yield from _pairs(value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _pairs(item, seen)


def _plain(node: Any) -> Any:
    import yaml

    return yaml.constructor.SafeConstructor().construct_document(node)


def _map_strings(value: Any, change: Any) -> Any:
    """Return `value` (a string, or lists and mappings of strings) with `change` applied to each string."""
    if isinstance(value, dict):
        return {key: _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_strings(item, change) for item in value]
    return change(value)
