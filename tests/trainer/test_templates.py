"""Chat templates as they are: where a turn ends, what of a conversation is trained under each that a pinned library ships."""

import pytest

from tests.trainer.bench import make_tokenizer
from tests.trainer.templates import MISTRAL, VICUNA, ZEPHYR, shipped, tokenizer
from tunesmith_trainer import chat

SHIPPED = shipped()
ENDS = {
    "llama3_1": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "phi3": "<|end|>",  # and not the token by which it ends the whole conversation
    "gptoss": "<|return|>",
    "cohere2": "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    "glm4moe": "<|user|>",  # the next turn's beginning
    "deepseek_r1_distill": "<\uff5cend▁of▁sentence\uff5c>",
}


@pytest.mark.parametrize("name", ENDS)
def test_the_end_of_turn_of_a_shipped_template_is_known(name):
    tokens = tokenizer(SHIPPED[name])
    assert "".join(tokens.convert_ids_to_tokens(chat.end_of_turn(tokens))) == ENDS[name]


@pytest.mark.parametrize("source", [MISTRAL, ZEPHYR, VICUNA])
def test_the_end_token_ends_a_turn_where_the_template_writes_it(source):
    tokens = tokenizer(source)
    assert chat.end_of_turn(tokens) == [tokens.eos_token_id]


def test_an_end_of_turn_that_is_no_token_has_the_ids_of_its_text():
    tokens = tokenizer(SHIPPED["gemma"], tokens=False)
    assert tokens.decode(chat.end_of_turn(tokens)) == "<end_of_turn>"


@pytest.mark.parametrize("source", [None, "{% for m in messages %}{{ m.content }}\n{% endfor %}", "{{ raise_exception('no') }}"])
def test_a_template_that_ends_no_turn_has_no_end(source):
    tokens = make_tokenizer()
    tokens.chat_template = source
    assert chat.end_of_turn(tokens) == []
