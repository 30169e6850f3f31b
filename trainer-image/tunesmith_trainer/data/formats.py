"""The shapes that a row of data may have, checked and brought into the form that `chat.py` encodes.

A key that would change what is learnt is used or refused by name, never left out in silence; any other column of a row is
left out, and its name is reported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tunesmith_contract.data import Format
from tunesmith_trainer.data import files
from tunesmith_trainer.data.template import REASONING
from tunesmith_trainer.errors import RowError

Row = dict[str, Any]
ALPACA_HEAD = "Below is an instruction that describes a task{}. Write a response that appropriately completes the request.\n\n"
ROLES = ("system", "user", "assistant", "developer", "tool", "function", "ipython")
OTHER_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatbot": "assistant", "ai": "assistant"}
"""What other data sets call a role: said in the error."""
FLAGS = ("weight", "train", "training", "loss")
"""Keys by which a message says whether it is trained."""
CONTEXT = ("tools", "documents", "chat_template_kwargs")
"""Columns that chat templates take beside the messages."""
SPLIT_COLUMNS = ("split", "subset", "partition", "data_split", "dataset_split")
HELD_OUT_FLAGS = ("is_test", "is_validation", "is_eval", "held_out")
"""Columns by which a row says that it is not to be trained on."""
UNUSED = {
    "functions": "write them as tools",
    "function_call": "write it as tool_calls of a message",
    "tool_calls": "write it into a message of the assistant",
    "system": "write it as the first message, of the role system",
    "system_prompt": "write it as the first message, of the role system",
    "system_message": "write it as the first message, of the role system",
    "instructions": "write it as the first message, of the role system",
    "history": "write it as messages",
    "reasoning": "write it into the assistant's message as reasoning_content",
    "reasoning_content": "write it into the assistant's message",
    "thinking": "write it into the assistant's message as reasoning_content",
}
"""Columns that change what is learnt and are not used, and what to do instead."""
UNUSED_IN: dict[str, dict[str, str]] = {
    "PromptCompletion": dict.fromkeys(("context", "suffix", "instruction", "input"), "write it into the prompt, or into the completion"),
    "Alpaca": {"context": "write it as the input"},
}
"""Columns that belong to a question in rows of these formats, which have another place for it."""
_MEDIA = (
    "image",
    "images",
    "audio",
    "audios",
    "video",
    "videos",
    *(f"{kind}_{form}" for kind in ("image", "audio", "video") for form in ("path", "url")),
)
MEDIA = dict.fromkeys(_MEDIA, "only texts can be trained on")
WEIGHTS = frozenset(
    "sample_weight loss_weight loss_weights weights mask masks loss_mask "
    "train_mask completion_mask assistant_mask assistant_masks train_on_inputs train_on_input train_on_prompt trainable".split()
)
MESSAGE_KEYS = frozenset(("role", "content", "name", "tool_calls", "tool_call_id", *REASONING, *FLAGS))
MESSAGE_NOTES = frozenset(
    "id message_id uuid parent_id timestamp created created_at updated_at date time model language lang source metadata annotations "
    "token_count tokens num_tokens index idx turn turn_id finish_reason stop_reason".split()
)
"""Keys of a message that only describe it: left out, and reported."""
MESSAGE_UNUSED = {
    "function_call": "write it as tool_calls",
    "refusal": "write a refusal as the message's content",
    "from": "these are ShareGPT's names: write role and content",
    "value": "these are ShareGPT's names: write role and content",
    **MEDIA,
}
SHAREGPT = (
    "this is a ShareGPT row ('conversations' with 'from' and 'value'); write it as {\"messages\": [{\"role\", \"content\"}, …]}, with the "
    "roles user for human and assistant for gpt"
)


def normalise(row: Any, data_format: Format) -> tuple[Row, set[str]]:
    """Return a row in its normal form, and the names of what was left out of it: columns, and keys of messages.

    Raises RowError naming the key that is wrong, or that cannot be used.
    """
    if not isinstance(row, dict):
        raise RowError("not a JSON object" + (": one object a line is expected, this line is an array" if isinstance(row, list) else ""))
    left: set[str] = set()
    normal, used = NORMALISERS[data_format](row, left)
    columns = {key for key, value in row.items() if key not in used and not _empty(value)}
    _check_columns(row, columns, data_format)
    return normal, left | columns


def _empty(value: Any) -> bool:
    return value is None or value == "" or value == [] or value == {}


def _check_columns(row: Row, columns: set[str], data_format: Format) -> None:
    """Refuse columns that change what is learnt and have no place in the format."""
    for column in sorted(columns):
        key, value = re.sub(r"[ -]", "_", column.lower()), row[column]
        if key in MEDIA or key in WEIGHTS or (key in FLAGS and value not in (1, True)):
            raise RowError(f"{column!r} is not used: {MEDIA.get(key, 'what is trained is said by the weight of a message')}; or take the column out")
        if data_format != "Text" and (advice := _advice(key, data_format)):
            raise RowError(f"{column!r} is not used: {advice}; or take the column out")
        if (key in SPLIT_COLUMNS and files.split_of(str(value)) != "train") or (key in HELD_OUT_FLAGS and value in (1, True)):
            raise RowError(f"its column {column!r} says that the row is held out: such rows are not read; take them out of the file, or the column")
    if isinstance(row.get("label"), bool):
        raise RowError("'label' says whether the answer is a good one, which supervised fine-tuning does not use: keep the good rows, without it")


def _advice(key: str, data_format: Format) -> str:
    """Return what to do with a column that changes what is learnt; empty for any other."""
    if data_format == "Alpaca" and key in ("system", "history"):
        return "Alpaca's wording has no place for it: write the rows as messages (format Messages)"
    fallback = "write the rows as messages (format Messages)" if key in CONTEXT else ""
    return UNUSED.get(key) or UNUSED_IN.get(data_format, {}).get(key) or fallback


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"{key!r} must be a text that is not empty{'' if key in row else _other_shape(row)}")
    return value


def _other_shape(row: Row) -> str:
    """Say which other format a row seems to have."""
    for key in ("conversations", "conversation", "dialogue", "dialog"):
        if isinstance(turns := row.get(key), list) and turns and isinstance(turns[0], dict):
            return f": {SHAREGPT}" if "from" in turns[0] else f": the messages stand under {key!r}: call them messages"
    shapes = {"Messages": ("messages",), "PromptCompletion": ("prompt", "completion"), "Alpaca": ("instruction", "output"), "Text": ("text",)}
    fitting = [name for name, keys in shapes.items() if all(row.get(key) for key in keys)]
    if not fitting and "chosen" in row and "rejected" in row:
        return ": this is a row of preference (chosen, rejected), which supervised fine-tuning does not take"
    return f"; the row has the keys of the format {fitting[0]}" if fitting else ""


def _messages(row: Row, left: set[str]) -> tuple[Row, set[str]]:
    given = row.get("messages")
    if isinstance(given, str | dict):
        what = "a text" if isinstance(given, str) else "an object"
        raise RowError(f"'messages' must be a list of at least one message; here it is {what}: write the list itself")
    if not isinstance(given, list) or not given:
        raise RowError(f"'messages' must be a list of at least one message{_other_shape(row)}")
    normal = [_message(message, f"messages[{number}]", left) for number, message in enumerate(given)]
    _check_answers(normal)
    return {"messages": normal} | _context(row), {"messages", *CONTEXT}


def _check_answers(messages: list[Row]) -> None:
    said = ("content", "tool_calls", *REASONING)
    if not any(message["role"] == "assistant" and any(_said(message.get(key)) for key in said) for message in messages):
        raise RowError("no message of the assistant: there is nothing to learn from this row")


def _said(value: Any) -> bool:
    return bool(value.strip() if isinstance(value, str) else value)


def _message(message: Any, name: str, left: set[str]) -> Row:
    """Return a message with the keys that a template may take; to `left` go the names of those that only describe it."""
    if not isinstance(message, dict):
        raise RowError(f"{name} must be an object with role and content")
    given = {key: value for key, value in message.items() if not _empty(value) or key == "content"}
    role = given.get("role")
    if role not in ROLES:
        if "from" in given and "value" in given:
            raise RowError(SHAREGPT)
        known = OTHER_ROLES.get(role.lower(), role.lower()) if isinstance(role, str) else None
        raise RowError(f"{name}.role must be one of {', '.join(ROLES)}" + (f"; write {known}" if known in ROLES else ""))
    normal: Row = {"role": role, **_content(given, name)}
    for key in given.keys() & MESSAGE_UNUSED.keys():
        raise RowError(f"{name}.{key} is not used: {MESSAGE_UNUSED[key]}; or take the key out")
    if "tool_calls" in given:
        normal["tool_calls"] = _calls(given["tool_calls"], name)
    for key in (*REASONING, "name", "tool_call_id"):
        if key in given:
            if not isinstance(given[key], str):
                raise RowError(f"{name}.{key} must be a text")
            normal[key] = given[key]
    if not _trained(given, role, name):
        normal["weight"] = 0
    left |= {f"messages[].{key}" for key in given.keys() & MESSAGE_NOTES}
    return normal | {key: given[key] for key in given.keys() - MESSAGE_KEYS - MESSAGE_NOTES}


def _content(message: Row, name: str) -> Row:
    """Return a message's content: a text, a list of several parts that are texts, or none beside calls of tools."""
    content = message.get("content")
    if isinstance(content, str):
        return {"content": content}
    if content is None and message["role"] == "assistant" and any(key in message for key in ("tool_calls", *REASONING)):
        return {}
    if not isinstance(content, list) or not content:
        raise RowError(f"{name}.content must be a text")
    parts = []
    for number, part in enumerate(content):
        given = {key: value for key, value in part.items() if value is not None} if isinstance(part, dict) else {}
        if given.keys() != {"type", "text"} or given["type"] not in ("text", "input_text", "output_text") or not isinstance(given["text"], str):
            raise RowError(f"{name}.content[{number}] must be a part of the type text: only texts can be trained on")
        parts.append({"type": "text", "text": given["text"]})
    return {"content": parts if len(parts) > 1 else parts[0]["text"]}


def _calls(calls: Any, name: str) -> list[Row]:
    calls = _json(calls, f"{name}.tool_calls")
    if not isinstance(calls, list):
        raise RowError(f"{name}.tool_calls must be a list")
    for number, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError(f"{name}.tool_calls[{number}] must be an object with a function that has a name")
    return [_without_nulls(call) for call in calls]


def _without_nulls(call: Row) -> Row:
    function = call.get("function")
    kept = {key: value for key, value in call.items() if value is not None}
    return kept | ({"function": {key: value for key, value in function.items() if value is not None}} if isinstance(function, dict) else {})


def _json(value: Any, name: str) -> Any:
    """Return a value that may be written as a JSON text, as data sets on hubs have it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise RowError(f"{name} is a text, but not one that holds JSON") from None


def _trained(message: Row, role: str, name: str) -> bool:
    """Return whether a message may be trained, by its weight (OpenAI, Mistral) or its flags (axolotl and others)."""
    flags = {key: message[key] for key in FLAGS if key in message}
    for key, value in flags.items():
        if not isinstance(value, int | float) or value not in (0, 1):
            raise RowError(f"{name}.{key} must be 0 or 1, false or true")
        if role != "assistant" and value == 1 and key != "weight":
            raise RowError(f"{name}.{key} says that a message of the role {role} is trained, but only the assistant's are: take the key out")
    if len({bool(value) for value in flags.values()}) > 1:
        raise RowError(f"{name} says by {' and '.join(flags)} both that it is trained and that it is not")
    return all(flags.values())


def _context(row: Row) -> Row:
    """Return what a template takes beside the messages: tools, documents and settings."""
    found: Row = {}
    for key in ("tools", "documents"):
        value = _json(row.get(key), repr(key))
        if _empty(value):
            continue
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise RowError(f"{key!r} must be a list of objects")
        found[key] = value
    settings = _json(row.get("chat_template_kwargs"), "'chat_template_kwargs'") or {}
    if not isinstance(settings, dict):
        raise RowError("'chat_template_kwargs' must be an object")
    settings = {key: value for key, value in settings.items() if value is not None}
    return found | ({"chat_template_kwargs": settings} if settings else {})


def _alpaca(row: Row, _: set[str]) -> tuple[Row, set[str]]:
    """Word a row as Stanford Alpaca does, with its two heads."""
    instruction, output = _text(row, "instruction"), _text(row, "output")
    given = row.get("input") or ""
    if not isinstance(given, str):
        raise RowError("'input' must be a text where it is present")
    head = ALPACA_HEAD.format(", paired with an input that provides further context" if given else "")
    middle = f"### Input:\n{given}\n\n" if given else ""
    prompt = f"{head}### Instruction:\n{instruction}\n\n{middle}### Response:\n"
    return {"prompt": prompt, "completion": output}, {"instruction", "input", "output"}


def _prompt_completion(row: Row, left: set[str]) -> tuple[Row, set[str]]:
    used = {"prompt", "completion"}
    if not isinstance(row.get("prompt"), list) and not isinstance(row.get("completion"), list):
        return {"prompt": _text(row, "prompt"), "completion": _text(row, "completion")}, used
    normal: Row = {}
    for key in ("prompt", "completion"):
        if not isinstance(row.get(key), list) or not row[key]:
            raise RowError(f"{key!r} must be a list of messages, as the other of prompt and completion is")
        normal[key] = [_message(message, f"{key}[{number}]", left) for number, message in enumerate(row[key])]
    _check_answers(normal["completion"])
    return normal | _context(row), {*used, *CONTEXT}


def _plain(row: Row, _: set[str]) -> tuple[Row, set[str]]:
    return {"text": _text(row, "text")}, {"text"}


NORMALISERS: dict[Format, Callable[[Row, set[str]], tuple[Row, set[str]]]] = {
    "Messages": _messages,
    "Alpaca": _alpaca,
    "PromptCompletion": _prompt_completion,
    "Text": _plain,
}
