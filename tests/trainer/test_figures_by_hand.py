"""What an EvalRun reports is what the libraries report when run by hand on the same folder."""

import json
import math
import os
import subprocess
import sys

import pytest

from tests.trainer.models import conversations, evaluate_input
from tunesmith_trainer import evaluate

TEXTS = ["red green blue one", "cat dog", "the bird runs and the cat sleeps, two by two"]


def run(uri, suites, precision):
    value = evaluate_input(uri, suites=suites, precision=precision, outputURI="pvc://by-hand")
    return {metric.metric: metric for metric in evaluate.run(evaluate.INPUT.model_validate(value)).metrics}


def uri_of(variant):
    return "pvc://models/base" if variant == "base" else f"pvc://models/run/variants/{variant}"


def folder_of(root, variant):
    return root / "models" / ("base" if variant == "base" else f"run/variants/{variant}")


def load(folder, precision):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.float32 if precision == "FP32" else torch.bfloat16
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval(), AutoTokenizer.from_pretrained(folder)


def nats(model, ids, labels):
    """The summed loss of one row alone, as transformers itself computes it, and how many tokens it was taken on."""
    import torch

    with torch.no_grad():
        loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
    count = sum(label != -100 for label in labels[1:])
    return float(loss) * count, count


def assistant_labels(tokenizer, messages):
    """Labels found in the text: from after `<|im_start|>assistant\\n` to `<|im_end|>`, with no help from the template."""
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    opening = tokenizer("<|im_start|>assistant\n")["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    labels, place = [-100] * len(ids), 0
    while place < len(ids):
        if ids[place : place + len(opening)] == opening:
            place += len(opening)
            stop = ids.index(end, place)
            labels[place : stop + 1] = ids[place : stop + 1]
        place += 1
    return ids, labels


@pytest.mark.parametrize(("variant", "precision"), [("base", "BF16"), ("base", "FP32"), ("w8a8", "BF16"), ("w4a16", "BF16")])
def test_perplexity_of_conversations_is_that_of_a_plain_loop_over_rows(in_zoo, variant, precision):
    suites = [{"name": "s", "perplexity": {"dataset": {"uri": "pvc://data/test.jsonl", "format": "Messages"}, "maxLength": 256}}]
    ours = run(uri_of(variant), suites, precision)
    model, tokenizer = load(folder_of(in_zoo.root, variant), precision)
    rows = [nats(model, *assistant_labels(tokenizer, row["messages"])) for row in conversations(40, first=24)]
    by_hand = math.exp(sum(nll for nll, _ in rows) / sum(count for _, count in rows))
    assert float(ours["s/perplexity"].value) == pytest.approx(by_hand, rel=0.001 if precision == "FP32" else 0.005)
    text = sum(len(turn["content"]) for row in conversations(40, first=24) for turn in row["messages"] if turn["role"] == "assistant")
    assert float(ours["s/bits_per_byte"].value) == pytest.approx(sum(nll for nll, _ in rows) / text / math.log(2), rel=0.005)


def test_perplexity_of_texts_and_of_completions_is_that_of_a_plain_loop_too(in_zoo):
    data = in_zoo.root / "data"
    (data / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (data / "pairs.jsonl").write_text("".join(json.dumps({"prompt": text, "completion": " yes"}) + "\n" for text in TEXTS))
    suites = [
        {"name": name, "perplexity": {"dataset": {"uri": f"pvc://data/{name}.jsonl", "format": kind}, "maxLength": 1024}}
        for name, kind in (("texts", "Text"), ("pairs", "PromptCompletion"))
    ]
    ours = run("pvc://models/base", suites, "FP32")
    model, tokenizer = load(folder_of(in_zoo.root, "base"), "FP32")
    end = [tokenizer.eos_token_id]
    whole = [tokenizer(text)["input_ids"] + end for text in TEXTS]
    answer = tokenizer(" yes")["input_ids"] + end
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    for name, rows in (
        ("texts", [nats(model, ids, ids) for ids in whole]),
        ("pairs", [nats(model, prompt + answer, [-100] * len(prompt) + answer) for prompt in prompts]),
    ):
        by_hand = math.exp(sum(nll for nll, _ in rows) / sum(count for _, count in rows))
        assert float(ours[f"{name}/perplexity"].value) == pytest.approx(by_hand, rel=0.001)


HARNESS = [{"name": "s", "harness": {"tasks": ["colours"], "includePath": "pvc://data/tasks", "limit": 16, "numFewshot": 0}}]


def check_harness(ours, by_hand):
    for metric in ("acc", "acc_norm"):
        assert float(ours[f"s/colours/{metric}"].value) == by_hand[f"{metric},none"]
        assert float(ours[f"s/colours/{metric}"].stderr) == by_hand[f"{metric}_stderr,none"]


@pytest.mark.long  # tests/e2e/test_figures.py has the command, too
@pytest.mark.timeout(900)  # the command reads lm-eval's own 14,000 task files first: ten seconds of processor time
def test_figures_of_the_harness_are_those_of_the_lm_eval_command(in_zoo, tmp_path):
    tasks = in_zoo.root / "data" / "tasks"
    ours = run(uri_of("w8a8"), HARNESS, "BF16")
    # The task names its data by a path relative to itself, which the command takes as relative to where it runs.
    arguments = [
        "run", "--model", "hf", "--model_args", f"pretrained={folder_of(in_zoo.root, 'w8a8')},dtype=bfloat16",
        "--tasks", str(tasks / "colours.yaml"), "--limit", "16", "--num_fewshot", "0", "--device", "cpu",
        "--batch_size", "8", "--output_path", str(tmp_path / "by-hand.json"),
    ]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    subprocess.run([sys.executable, "-m", "lm_eval", *arguments], cwd=tasks, env=environment, check=True)
    (written,) = tmp_path.rglob("*.json")
    check_harness(ours, json.loads(written.read_text())["results"]["colours"])


@pytest.mark.parametrize("variant", ["base", "w4a16"])
def test_figures_of_the_harness_are_those_of_the_library_when_it_loads_the_folder_itself(in_zoo, monkeypatch, variant):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    ours = run(uri_of(variant), HARNESS, "BF16")
    tasks = in_zoo.root / "data" / "tasks"
    monkeypatch.chdir(tasks)
    by_hand = simple_evaluate(
        model="hf", model_args={"pretrained": str(folder_of(in_zoo.root, variant)), "dtype": "bfloat16"}, tasks=["colours"], device="cpu",
        batch_size=8, limit=16, num_fewshot=0, task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
    )  # fmt: skip
    check_harness(ours, by_hand["results"]["colours"])
