"""Tokenizers with other models' chat templates: those that TRL carries (read from there), and templates in the style of more."""

import re
from pathlib import Path

from tests.trainer.bench import make_tokenizer

# What templates write around roles and turns, which in their own tokenizers are special tokens.
# \uff5c is the bar that DeepSeek writes.
MARKERS = re.compile(r"<\|?[a-z_]+\|>|<[|\uff5c][^<>|\uff5c\s]+[|\uff5c]>|<[a-z]+_of_[a-z]+>|<turn\|>|<\|turn>|<\|?channel\|?>|</s>|\[/?[A-Z_]+\]")

# In the style of Mistral (no generation prompt), Zephyr and Vicuna (no token but the end).
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles have to alternate, beginning with a user') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}{% elif m.role == 'assistant' %}"
    "{{ 'ASSISTANT: ' + m.content + eos_token }}{% else %}{{ m.content + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def shipped():
    """Name -> source of every chat template that TRL carries."""
    import trl

    return {path.stem: path.read_text() for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))}


def tokenizer(source, *, tokens=True, **changes):
    """The tiny tokenizer with a template, whose markers are special tokens of it unless `tokens` is False."""
    made = make_tokenizer()
    for name, value in ({"bos_token": "<s>", "eos_token": "</s>"} | changes).items():
        setattr(made, name, value)
    made.add_special_tokens({"bos_token": made.bos_token, "eos_token": made.eos_token})
    if tokens and MARKERS.search(source):
        made.add_special_tokens({"additional_special_tokens": sorted(set(MARKERS.findall(source)))})
    made.chat_template = source
    return made
