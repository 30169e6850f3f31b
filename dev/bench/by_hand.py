"""The TRL script that a person would write for the run that `dev/bench/train.py` measures, and the run's model and data.

Run by the trainer's python, on a folder with `settings.json`:

    python -m dev.bench.by_hand make FOLDER     write `model/` (a random Llama) and `text.jsonl`
    … under torchrun:           train FOLDER    train on them, and write tokens and seconds to `by-hand.json`
"""

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from dev.rows import WORDS, write_rows


def make(settings: dict[str, Any]) -> None:
    """Write the model and its data."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    dice = random.Random(1)
    rows = [" ".join(dice.choices(WORDS, k=dice.randint(20, 200))) for _ in range(settings["rows"])]
    write_rows(Path("text.jsonl"), ({"text": row} for row in rows))
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(rows, trainers.WordLevelTrainer(special_tokens=["<pad>", "<eos>", "<unk>"]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>").save_pretrained("model")
    torch.manual_seed(1)
    hidden = settings["hidden"]
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=settings["layers"],
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained("model")


def train(settings: dict[str, Any]) -> None:
    """Train, as TRL's documentation shows it, without a checkpoint."""
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    training = settings["training"]
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained("model", dtype="float32"),
        args=SFTConfig(
            output_dir="by-hand",
            use_cpu=True,
            bf16=False,
            packing=True,
            max_steps=training["maxSteps"],
            learning_rate=float(training["learningRate"]),
            per_device_train_batch_size=training["perDeviceTrainBatchSize"],
            gradient_accumulation_steps=training["gradientAccumulationSteps"],
            max_length=training["maxLength"],
            logging_steps=training["loggingSteps"],
            seed=training["seed"],
            gradient_checkpointing=False,
            # Of packed rows none is padding, so all are real tokens, which the stage counts.
            include_num_input_tokens_seen="all",
            dataloader_pin_memory=False,
            ddp_backend="gloo",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=load_dataset("json", data_files="text.jsonl", split="train"),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM") if settings["method"] == "lora" else None,
    )
    seconds = trainer.train().metrics["train_runtime"]
    if trainer.is_world_process_zero():
        Path("by-hand.json").write_text(json.dumps({"tokens": trainer.state.num_input_tokens_seen, "seconds": seconds}))


if __name__ == "__main__":
    os.chdir(sys.argv[2])
    {"make": make, "train": train}[sys.argv[1]](json.loads(Path("settings.json").read_text()))
