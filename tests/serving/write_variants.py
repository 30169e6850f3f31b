"""Write a tiny model and its variants as the stage Quantize does, and what transformers says of a row: write_variants.py FOLDER.

Run by the trainer's python. FOLDER gets base/, w8a8/, w4a16/ and said.json: the row's tokens, and by model each token's log-probability.
"""

import json
import os
import sys
from pathlib import Path

import torch

from dev.rows import write_rows
from tests.trainer import bench
from tests.trainer.models import VARIANTS, conversations, quantize_input
from tunesmith_trainer import evaluate, quantize

ROW = 48


def log_probabilities(folder, row):
    """What transformers says of each token of a row but the first, given those before it."""
    ids = torch.tensor([row])
    with torch.no_grad():
        logits = evaluate.load_model(folder, "BF16", "CPU")(input_ids=ids).logits[0, :-1]
    return logits.float().log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].tolist()


def lively(folder):
    """Give a model weights large enough that what is lost of them shows."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    model.save_pretrained(folder)


def main(root):
    base = bench.make_model(root / "models" / "base")
    lively(base)
    write_rows(root / "models" / "run" / "data" / "train.jsonl", conversations(24))
    for name, settings in VARIANTS.items():
        quantize.run(quantize.INPUT.model_validate(quantize_input(name, settings)))
    row = torch.randint(8, 200, (ROW,), generator=torch.Generator().manual_seed(5)).tolist()
    folders = {"base": base, **{name: root / "models" / "run" / "variants" / name for name in VARIANTS}}
    said = {name: log_probabilities(folder, row) for name, folder in folders.items()}
    (root / "said.json").write_text(json.dumps({"row": row, "folders": {name: str(folder) for name, folder in folders.items()}, "said": said}))


if __name__ == "__main__":
    os.environ["TUNESMITH_PVC_ROOT"] = sys.argv[1]
    main(Path(sys.argv[1]))
