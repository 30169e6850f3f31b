"""The model and the data of the smoke test: random weights of a chosen size, nothing downloaded.

python -m dev.gpu.material STORE SIZE     write `models/base` and `data/*.jsonl` below the folder STORE
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from dev.rows import WORDS, write_rows

# Width, layers and vocabulary; parameters about 0.2 M, 300 M and 1 G.
SIZES = {"tiny": (64, 2, 512), "300M": (1024, 16, 32000), "1B": (2048, 16, 32000)}
# Rows of words, and how many words a row has.
ROWS = {"tiny": (80, 10, 40), "300M": (2000, 100, 800), "1B": (2000, 100, 800)}


def make(store: Path, size: str) -> None:
    """Write the model, which is random, and the rows."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    dice, (count, least, most) = random.Random(1), ROWS[size]
    rows = [" ".join(dice.choices(WORDS, k=dice.randint(least, most))) for _ in range(count)]
    write_rows(store / "data" / "train.jsonl", ({"text": row} for row in rows))
    write_rows(store / "data" / "test.jsonl", ({"text": row} for row in rows[:20]))
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(rows, trainers.WordLevelTrainer(special_tokens=["<pad>", "<eos>", "<unk>"]))
    folder = store / "models" / "base"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(1)
    hidden, layers, vocabulary = SIZES[size]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(2, hidden // 64),
        num_key_value_heads=max(1, hidden // 128),
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]), sys.argv[2])
