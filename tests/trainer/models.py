"""A store with the tiny model and its quantized variants, made once, and the rows and the lm-eval task that they are measured on."""

import shutil
from types import SimpleNamespace

import pytest

from dev.rows import write_rows
from tunesmith_trainer import store
from tunesmith_trainer.errors import StageError

OBJECT = {"kind": "EvalRun", "namespace": "team-a", "name": "support-bot-eval", "uid": "6f1c"}
NAMES = "red green blue one two three cat dog bird runs sleeps eats".split()
TASK = """\
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: colours.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}} Answer:"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
- {metric: acc, aggregation: mean, higher_is_better: true}
- {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
VARIANTS = {
    "w8a8": {"scheme": "W8A8", "algorithm": "SmoothQuantGPTQ", "numCalibrationSamples": 8},
    "w4a16": {"scheme": "W4A16", "algorithm": "GPTQ", "numCalibrationSamples": 8, "groupSize": 32},
}


def conversations(count, first=0):
    """Conversations of unlike lengths, one in three with two turns."""
    for number in range(first, first + count):
        words = [NAMES[(number * step) % len(NAMES)] for step in range(1, 3 + number % 7)]
        turn = [{"role": "user", "content": " ".join(words)}, {"role": "assistant", "content": " ".join(reversed(words))}]
        yield {"messages": turn * (2 if number % 3 == 0 else 1)}


def write_task(folder, count=24):
    """Write a multiple-choice task with choices of unlike lengths."""
    rows = [
        {
            "question": " ".join(NAMES[(number + step) % len(NAMES)] for step in range(2 + number % 5)),
            "choices": [" ".join(NAMES[(number * (pick + 2) + step) % len(NAMES)] for step in range(1 + (number + pick) % 3)) for pick in range(4)],
            "answer": number % 4,
        }
        for number in range(count)
    ]
    write_rows(folder / "colours.jsonl", rows)
    (folder / "colours.yaml").write_text(TASK)


def pinned(uri):
    """A model's folder with its digest; with another where there is no such folder."""
    try:
        return {"uri": uri, "digest": store.verify(uri, None)[1]}
    except StageError:
        return {"uri": uri, "digest": "sha256:" + "0" * 64}


def quantize_input(name, quantization, model="pvc://models/base"):
    """Quantize's stage file."""
    return {
        "schemaVersion": 2, "stage": "Quantize", "attempt": 1, "device": "CPU", "object": OBJECT | {"kind": "FineTuneJob"},
        "runURI": "pvc://models/run", "model": pinned(model), "variant": {"name": name, "quantization": quantization},
        "training": {"maxLength": 64},
    }  # fmt: skip


SUITES = [
    {"name": "heldOut", "perplexity": {"dataset": {"uri": "pvc://data/test.jsonl", "format": "Messages"}, "maxLength": 64}},
    {"name": "knowledge", "harness": {"tasks": ["colours"], "includePath": "pvc://data/tasks"}},
]


def evaluate_input(uri, name="tested", **changes):
    """Evaluate's stage file."""
    return {
        "schemaVersion": 2, "stage": "Evaluate", "attempt": 1, "device": "CPU", "object": OBJECT, "runURI": "pvc://out/team-a/eval/0123456789ab",
        "outputURI": "pvc://out", "model": {"name": name, "uri": uri}, "suites": SUITES, "precision": "BF16",
    } | changes  # fmt: skip


@pytest.fixture
def base_store(tmp_path, monkeypatch, tiny_model):
    """A store of its own with the tiny model at `models/base` and nothing else; its root."""
    shutil.copytree(tiny_model, tmp_path / "pvc" / "models" / "base")
    monkeypatch.setenv("TUNESMITH_PVC_ROOT", str(tmp_path / "pvc"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "pvc"


@pytest.fixture(scope="session")
def zoo(tmp_path_factory, tiny_model):
    """The store's root, and Quantize's answers by variant."""
    from tunesmith_trainer import quantize

    root = tmp_path_factory.mktemp("zoo")
    shutil.copytree(tiny_model, root / "models" / "base")
    write_rows(root / "models" / "run" / "data" / "train.jsonl", conversations(24))
    write_rows(root / "data" / "test.jsonl", conversations(40, first=24))
    write_task(root / "data" / "tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_PVC_ROOT", str(root))
        patch.setenv("HF_HUB_OFFLINE", "1")
        answers = {name: quantize.run(quantize.INPUT.model_validate(quantize_input(name, settings))) for name, settings in VARIANTS.items()}
    return SimpleNamespace(root=root, variants=answers)


@pytest.fixture
def in_zoo(zoo, monkeypatch):
    """The zoo, with its store as this test's store."""
    monkeypatch.setenv("TUNESMITH_PVC_ROOT", str(zoo.root))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return zoo
