"""Rows as tokens: rendering conversations with the model's chat template, and which tokens the loss is taken on.

A row is one of `{"messages": [{"role", "content"}, …]}`, `{"prompt", "completion"}` and `{"text"}` (data/*.jsonl). Training,
the sample that Prepare shows and the perplexity that Evaluate measures all go through `encode`, so they cannot disagree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tunesmith_trainer.errors import StageError
from tunesmith_trainer.template import end_of_turn

__all__ = ["Encoded", "encode", "end_of_turn", "training_template"]

# `{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}` as ChatML templates write it.
_QUOTE = r"['\"]"
_JOIN = r"\s*\+\s*"
_BREAK = r"(?:\\n|\n)"  # templates hold a line break as an escape or as itself
_CHATML_TURN = re.compile(
    rf"\{{\{{-?\s*{_QUOTE}<\|im_start\|>{_QUOTE}{_JOIN}message(?:\.role|\[{_QUOTE}role{_QUOTE}\])"
    rf"{_JOIN}{_QUOTE}{_BREAK}{_QUOTE}{_JOIN}message(?:\.content|\[{_QUOTE}content{_QUOTE}\])"
    rf"{_JOIN}{_QUOTE}<\|im_end\|>(?:{_QUOTE}{_JOIN}{_QUOTE})?{_BREAK}{_QUOTE}\s*-?\}}\}}"
)
# The turn's end is trained, so that the model learns to stop; the line break after it never is generated.
_CHATML_TRAINED_TURN = (
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}"
)
# Conversations that a training template must render exactly as the model's own template does.
_PROBES = (
    [("user", "a"), ("assistant", "b")],
    [("system", "s"), ("user", "a"), ("assistant", " b \n"), ("user", "<c>"), ("assistant", "d\n\ne")],
    [("user", "a\n"), ("assistant", ""), ("user", "b")],
)


@dataclass(frozen=True)
class Encoded:
    """A row's tokens and, for each, whether the loss is taken on it."""

    ids: list[int]
    trained: list[bool]


def training_template(tokenizer: Any) -> str:
    """Return a chat template that marks the assistant's tokens, for loss on these alone.

    It is the tokenizer's own where that has `{% generation %}`, else TRL's for that template, else a patched ChatML
    template that was checked to render identically. Raises StageError(UnsupportedTemplate) where there is none.
    """
    own = tokenizer.chat_template
    if not isinstance(own, str):
        raise StageError("UnsupportedTemplate", "the model's tokenizer has no chat template: use PromptCompletion or Text data")
    template = own if re.search(r"\{%-?\s*generation", own) else _patched_chatml(tokenizer, own) or _trl_template(tokenizer)
    if template is None:
        raise StageError(
            "UnsupportedTemplate",
            "assistantOnlyLoss needs a chat template that marks the assistant's tokens with {% generation %}; the model's "
            "has no such mark and is not one that can be patched. Set assistantOnlyLoss to false, or add the mark to the "
            "template in the model's folder",
        )
    _check_marks(tokenizer, template)
    return template


def _patched_chatml(tokenizer: Any, own: str) -> str | None:
    patched, count = _CHATML_TURN.subn(lambda _: _CHATML_TRAINED_TURN, own)
    return patched if count == 1 and _renders_alike(tokenizer, own, patched) else None


def _renders_alike(tokenizer: Any, one: str, other: str) -> bool:
    return all(_render(tokenizer, probe, one, prompt) == _render(tokenizer, probe, other, prompt) for probe in _PROBES for prompt in (False, True))


def _render(tokenizer: Any, probe: list[tuple[str, str]], template: str, prompt: bool) -> str:
    messages = [{"role": role, "content": content} for role, content in probe]
    text: str = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=prompt)
    return text


def _trl_template(tokenizer: Any) -> str | None:
    from trl.chat_template_utils import get_training_chat_template

    try:
        template: str | None = get_training_chat_template(tokenizer)
    except Exception:  # TRL raises what its probes raise: for us the template is one that it does not know
        return None
    return template


def _check_marks(tokenizer: Any, template: str) -> None:
    """Refuse a template under which an assistant's turn has no trained token (the marks are there but mark nothing)."""
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    if not any(encode(tokenizer, row, template).trained):
        raise StageError("UnsupportedTemplate", "the chat template's {% generation %} marks no token of an assistant's turn")


def encode(tokenizer: Any, row: dict[str, Any], template: str | None) -> Encoded:
    """Return a row's tokens and which of them are trained.

    `template` is `training_template(tokenizer)` for loss on the assistant's tokens alone, or None for loss on the whole
    conversation. A completion is trained without its prompt; a text is trained whole. Both end with the end token.
    """
    if "messages" in row:
        return _encode_messages(tokenizer, row["messages"], template)
    if "text" in row:
        ids = _with_end(tokenizer, tokenizer(row["text"])["input_ids"])
        return Encoded(ids, [True] * len(ids))
    # Prompt and completion are encoded apart, as a server does: it never merges a prompt's last letters with the answer.
    prompt = tokenizer(row["prompt"])["input_ids"]
    completion = _with_end(tokenizer, tokenizer(row["completion"], add_special_tokens=False)["input_ids"])
    return Encoded(prompt + completion, [False] * len(prompt) + [True] * len(completion))


def _encode_messages(tokenizer: Any, messages: list[dict[str, str]], template: str | None) -> Encoded:
    output = tokenizer.apply_chat_template(
        messages,
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=template is not None,
    )
    ids = list(output["input_ids"])
    if template is None:
        return Encoded(ids, [True] * len(ids))
    return Encoded(ids, [bool(mark) for mark in output["assistant_masks"]])


def _with_end(tokenizer: Any, ids: list[int]) -> list[int]:
    end = tokenizer.eos_token_id
    return ids if end is None or (ids and ids[-1] == end) else [*ids, end]
