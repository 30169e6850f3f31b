"""What a team trains on and the secrets of its pods are told by nothing that others may read: logs, results, metrics, cards."""

import json

import pytest

from dev.rows import write_rows
from tests.trainer.bench import SECRET, prepare_input

CANARY = "canary-9b1d"


def sentences(story):
    """The texts of the rows that were trained on, each of which occurs nowhere else."""
    rows = [json.loads(line) for line in (story.store.root / "data" / "chat.jsonl").read_text().splitlines()]
    return [message["content"] for row in rows for message in row["messages"]]


def told(story):
    """Path -> content of what is for others to read: logs, termination messages, and the run's folder without data and weights."""
    paths = [path for path in story.store.folder.glob("run-*/*") if path.name in ("log", "termination-log")]
    paths += [path for path in story.folder.rglob("*") if path.suffix in (".json", ".jsonl", ".md") and story.folder / "data" not in path.parents]
    return {path: path.read_text() for path in paths if not path.name.startswith("tokenizer")}


def test_no_sentence_of_the_data_and_no_secret_is_in_a_log_a_result_a_metric_or_a_card(story, finalized):
    texts, secrets = told(story), [SECRET, *sentences(story)]
    names = {path.name for path in texts}
    assert names >= {"log", "termination-log", "metrics.jsonl", "train.json", "README.md", "run.json"}, names
    assert any("loss" in text for path, text in texts.items() if path.name == "log")
    assert [(path, secret) for path, text in texts.items() for secret in secrets if secret in text] == []


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": CANARY, "content": CANARY}]},
        {"messages": [{"role": "user", "content": {CANARY: CANARY}}]},
        {"messages": CANARY},
        {CANARY: CANARY},
        [CANARY],
        CANARY,
    ],
)
def test_a_row_that_is_refused_is_not_quoted(store, row):
    write_rows(store.root / "data" / "rows.jsonl", [row])
    datasets = [{"name": "chat", "uri": "pvc://data/rows.jsonl", "format": "Messages"}]
    code, result = store.run(prepare_input(datasets=datasets))
    assert (code, result["reason"]) == (65, "InvalidDataset")
    assert CANARY not in json.dumps(result)
