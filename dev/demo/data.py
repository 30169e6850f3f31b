"""Make the demo's data out of chatterbot-corpus: conversations to train on, others held out, and a task on the latter.

`python -m dev.demo.data` (any python with PyYAML, such as the trainer's) prints the folder, which holds `train.jsonl` and
`heldout.jsonl` (format Messages) and `tasks/` (an lm-evaluation-harness task: pick the right answer out of four).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dev.cluster import paths
from dev.rows import write_rows

from .packages import fingerprint, install, keep_first

TASK = "support_choice"
# One conversation in four is held out: 212, of which the gate can decide on what examples/support-bot/evalrun.yaml asks (docs/gate.md).
# Which one depends on its first question alone.
HELD_OUT = 4
CHOICES = 4
Row = dict[str, list[dict[str, str]]]


def corpus_folder() -> Path:
    """Return the data's folder, made on the first call."""
    packages = install()
    task_file = Path(__file__).with_name(f"{TASK}.yaml")
    target = paths.data_root() / f"chatterbot-{fingerprint(Path(__file__), task_file)}"
    if not target.is_dir():
        building = target.with_name(f"{target.name}.{os.getpid()}")
        train, held_out = split(list(rows(packages / "chatterbot_corpus" / "data" / "english")))
        write_rows(building / "train.jsonl", train)
        write_rows(building / "heldout.jsonl", held_out)
        write_rows(building / "tasks" / f"{TASK}.jsonl", questions(held_out))
        shutil.copyfile(task_file, building / "tasks" / task_file.name)
        keep_first(building, target)
    return target


def rows(folder: Path) -> Iterator[Row]:
    """Yield the corpus's conversations, each once."""
    seen = set()
    for path in sorted(folder.glob("*.yml")):
        for turns in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            row = conversation(turns)
            mark = json.dumps(row)
            if row and mark not in seen:
                seen.add(mark)
                yield row


def conversation(turns: list[Any]) -> Row | None:
    """Return turns as messages of user and assistant in turn; None where a turn is no text or there is no answer."""
    if len(turns) < 2 or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        return None
    whole = turns[: len(turns) // 2 * 2]
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": turn.strip()} for i, turn in enumerate(whole)]}


def asked(row: Row) -> set[str]:
    """Return what the user asks in a row, in a form that tells equal questions."""
    return {message["content"].casefold() for message in row["messages"] if message["role"] == "user"}


def number(text: str) -> int:
    """Return a number that a text always has."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def split(all_rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Return the rows to train on and the rows held out: no question of the latter is in the former."""
    held_out = [row for row in all_rows if number(row["messages"][0]["content"].casefold()) % HELD_OUT == 0]
    hidden = set().union(*(asked(row) for row in held_out))
    return [row for row in all_rows if not asked(row) & hidden], held_out


def questions(held_out: list[Row]) -> Iterator[dict[str, Any]]:
    """Yield each held-out question with its answer among the answers to others, in an order that is always the same."""
    pairs = [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in held_out]
    right: dict[str, set[str]] = {}
    for prompt, answer in pairs:
        right.setdefault(prompt.casefold(), set()).add(answer)
    answers = sorted({answer for _, answer in pairs})
    for prompt, answer in pairs:
        others = [other for other in answers if other not in right[prompt.casefold()]]
        wrong = sorted(others, key=lambda other: number(f"{prompt}\0{answer}\0{other}"))[: CHOICES - 1]
        choices = sorted([answer, *wrong], key=lambda choice: number(f"{prompt}\0{choice}\0order"))
        yield {"prompt": prompt, "choices": choices, "label": choices.index(answer)}


if __name__ == "__main__":
    print(corpus_folder())
