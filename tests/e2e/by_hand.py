"""The libraries run by hand on the chain's files, for test_figures.py. Prints {"perplexity": …, "acc": …} as JSON.

Usage (in the trainer's environment): by_hand.py MODEL_FOLDER HELDOUT_JSONL TASK_FOLDER TASK LIMIT

It shares no code with Tunesmith: transformers' own loss on the assistant's tokens, and lm-eval's own command line.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def perplexity(folder: str, rows: Path) -> float:
    """exp of the mean loss over the tokens of every assistant turn, its closing "<|im_end|>" included."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    total, count = 0.0, 0
    for line in rows.read_text().splitlines():
        text = tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False)
        spans = [turn.span(1) for turn in re.finditer(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", text, re.DOTALL)]
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        trained = [any(start <= first and last <= end for start, end in spans) for first, last in encoded["offset_mapping"]]
        tokens = torch.tensor(encoded["input_ids"])
        with torch.no_grad():
            logits = model(tokens[None]).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")[torch.tensor(trained[1:])]
        total, count = total + losses.sum().item(), count + len(losses)
    return math.exp(total / count)


def accuracy(folder: str, tasks: str, task: str, limit: str) -> float:
    """acc as the lm_eval command reports it, with the batch size that EvalRun uses: in bf16 a batch's padding moves the last bits."""
    with tempfile.TemporaryDirectory() as out:
        arguments = [
            f"--model_args=pretrained={folder},dtype=bfloat16",
            f"--tasks={task}",
            f"--include_path={tasks}",
            f"--limit={limit}",
            f"--output_path={out}",
        ]
        subprocess.run(
            [sys.executable, "-m", "lm_eval", "run", "--model=hf", "--device=cpu", "--batch_size=8", *arguments],
            cwd=tasks,
            check=True,
            stdout=sys.stderr,
        )
        answer = json.loads(next(Path(out).rglob("results_*.json")).read_text())
    figure: float = answer["results"][task]["acc,none"]
    return figure


if __name__ == "__main__":
    model_folder, heldout, task_folder, task_name, row_limit = sys.argv[1:]
    print(json.dumps({"perplexity": perplexity(model_folder, Path(heldout)), "acc": accuracy(model_folder, task_folder, task_name, row_limit)}))
