"""A row's messages in the form that the model's chat template takes, as a server would give them to it.

What a row says beside role and content is passed on, and looked for in what the template makes of it: where it changes
nothing, the row is refused, for the model would learn something else than the row says.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

from tunesmith_trainer.data.template import REASONING, Message, Talk, Template, Templates
from tunesmith_trainer.data.turns import shows, texts
from tunesmith_trainer.errors import RowError, key_name

LINKS = frozenset(("role", "content", "tool_call_id"))
"""Keys that every template takes, and those by which messages only name one another."""
TOOL_ROLES = ("tool", "function", "ipython")
PLAIN_ROLES = ("system", "user", "assistant")
RESERVED = frozenset(
    "messages conversation tools documents chat_template add_generation_prompt continue_final_message tokenize padding truncation max_length "
    "return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs".split()
)
"""Variables that a row's chat_template_kwargs must not set: who renders sets them."""
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*(.*)", re.DOTALL)


@dataclass(frozen=True)
class Conversation:
    """A row ready to be rendered: the answers that are to be trained, by number, if the loss is taken on answers alone.

    `weighed`: the row itself says that some of its answers are not to be trained.
    """

    template: Template
    talk: Talk
    answers: list[int]
    weighed: bool


def conversation(templates: Templates, row: dict[str, Any]) -> Conversation:
    """Return a normalised row of messages, or of a prompt and a completion that are messages, in its template's form.

    Raises RowError for what the template does not render or refuses; StageError(UnsupportedTemplate) where there is none.
    """
    prompt = row.get("prompt", [])
    given: list[Message] = [*prompt, *row.get("completion", row.get("messages", []))]
    names = [f"prompt[{number}]" for number in range(len(prompt))]
    word = "completion" if prompt else "messages"
    names += [f"{word}[{number}]" for number in range(len(given) - len(prompt))]
    template = templates.pick(row.get("tools"))
    messages = [_form(template, message, name) for message, name in zip(given, names, strict=True)]
    talk = Talk(messages, row.get("tools"), row.get("documents"), row.get("chat_template_kwargs", {}), names)
    _check(template, talk)
    answers = [number for number, message in enumerate(given) if message["role"] == "assistant" and message.get("weight") != 0]
    weighed = any(message.get("weight") == 0 for message in given)
    return Conversation(template, talk, [number for number in answers if number >= len(prompt)], weighed)


def _form(template: Template, message: Message, name: str) -> Message:
    """Return a message without its weight, in the forms that the template takes; raises RowError naming it."""
    formed = {key: value for key, value in message.items() if key != "weight"}
    content = formed.get("content")
    if isinstance(content, list) and not (template.takes_parts or template.joins_parts):
        # As servers do for templates that take plain texts.
        formed["content"] = "\n".join(part["text"] for part in content)
    elif isinstance(content, str) and template.takes_parts:
        formed["content"] = [{"type": "text", "text": content}]
    if formed["role"] == "developer" and not any(f"{quote}developer{quote}" in template.source for quote in "'\""):
        formed["role"] = "system"  # as servers do
    if "tool_calls" in formed:
        formed |= _calls(template, formed, name)
    if formed["role"] == "assistant":
        formed = _reasoning(template, formed, name)
    if formed.get("content") is None and "tool_calls" not in formed:
        formed["content"] = ""
    return formed


def _calls(template: Template, message: Message, name: str) -> Message:
    """Return a message's calls of tools, and its content, in the template's form."""
    form = template.call_form
    if form is None:
        raise RowError(f"{name}.tool_calls: the model's chat template does not render calls of tools: take the row out, or use another model")
    calls = []
    for number, call in enumerate(message["tool_calls"]):
        function = call.get("function", call)
        arguments = function.get("arguments")
        if form.as_text and not isinstance(arguments, str):
            arguments = json.dumps(arguments or {}, ensure_ascii=False)
        elif not form.as_text and not isinstance(arguments, dict):
            arguments = _parsed(arguments, f"{name}.tool_calls[{number}]")
        function = function | {"arguments": arguments}
        calls.append(call | {"function": function} if "function" in call else function)
    return {"tool_calls": calls} | ({} if message.get("content") else {"content": form.no_content})


def _parsed(arguments: Any, name: str) -> dict[str, Any]:
    try:
        value = json.loads(arguments or "{}")
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise RowError(f"{name}.function.arguments must be a JSON object, or a text that holds one")
    return value


def _reasoning(template: Template, message: Message, name: str) -> Message:
    """Return an answer with its reasoning under the key that the template renders."""
    given = {key: message[key] for key in REASONING if message.get(key)}
    rest = {key: value for key, value in message.items() if key not in REASONING}
    if not given and template.splits_reasoning and isinstance(message.get("content"), str):
        found = _THOUGHT.fullmatch(message["content"])
        if found and found[1].strip():
            return rest | {template.reasoning[0]: found[1].strip("\n"), "content": found[2]}
    if not given:
        return rest
    if len(set(given.values())) > 1:
        raise RowError(f"{name} has reasoning under {' and '.join(given)}, which differ: keep one")
    key, text = next(iter(given.items()))
    if not template.reasoning:
        raise RowError(
            f"{name}.{key}: the model's chat template does not render it; write the reasoning into the content as the model does, "
            "such as <think>…</think>, or take the key out"
        )
    return rest | {key if key in template.reasoning else template.reasoning[0]: text}


def _check(template: Template, talk: Talk) -> None:
    """Refuse what has no effect on what is rendered; plain rows of plain roles cost nothing here."""
    for number, message in enumerate(talk.messages):
        extra = message.keys() - LINKS
        if message["role"] in TOOL_ROLES:
            extra -= {"name"}
        if extra or message["role"] not in PLAIN_ROLES:
            _check_message(template, talk.upto(number + 1), number, sorted(extra))
    whole = template.render(talk) if talk.tools or talk.documents else ""
    for key, value in (("tools", talk.tools), ("documents", talk.documents)):
        if value and template.render(replace(talk, **{key: None})) == whole:
            raise RowError(f"{key}: the model's chat template does not render them: take the row out, or use another model")
    for key in talk.settings:
        if key in RESERVED or not template.names(key):
            raise RowError(f"chat_template_kwargs.{key_name(key)}: the model's chat template has no such variable, or it is not a row's to set")


def _check_message(template: Template, talk: Talk, number: int, extra: list[str]) -> None:
    message, name = talk.messages[number], talk.names[number]
    settings = [{}, *template.switches(talk.settings)]
    whole = [template.render(talk, **settings[0]), *(_render(template, talk, switch) for switch in settings[1:])]

    def changes(**values: Any) -> bool:
        """Return whether a message with other values (None: without the key) is rendered otherwise under some setting."""
        other = {key: value for key, value in (message | values).items() if values.get(key, "") is not None}
        return any(_render(template, talk.upto(number, other), switch) != text for switch, text in zip(settings, whole, strict=True))

    for key in extra:
        if not changes(**{key: None}):
            raise RowError(f"{name}.{key_name(key)}: the model's chat template does not render it; take the key out, or use another model")
    calls = message.get("tool_calls") or []
    for place in range(len(calls)):
        if len(calls) > 1 and not changes(tool_calls=calls[:place] + calls[place + 1 :]):
            raise RowError(f"{name}.tool_calls[{place}]: the model's chat template does not render it")
    missing = [piece for piece in texts(message) if not any(shows(text, piece) for text in whole)]
    if missing and (calls or message["role"] not in PLAIN_ROLES):
        beside = " beside its calls of tools" if calls else f" of the role {message['role']}"
        raise RowError(f"{name}.content{beside}: the model's chat template does not render it")


def _render(template: Template, talk: Talk, switch: dict[str, bool]) -> str:
    try:
        return template.render(talk, **switch)
    except RowError:
        return ""
