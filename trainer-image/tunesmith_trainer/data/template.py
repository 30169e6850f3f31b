"""A model's chat template: conversations rendered as a server renders them, and where an assistant's turn ends.

What a template does is found by rendering, never by reading its source: a marked text is rendered and looked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product, takewhile
from typing import Any

from tunesmith_trainer.errors import RowError, StageError

Message = dict[str, Any]
MARK = "tunesmithmark"
"""A text that stands for an answer: no data and no template has it."""
ARGUMENT, THOUGHT = "tunesmithplace", "tunesmiththought"
CALL: dict[str, Any] = {"id": "a1b2c3d4e", "type": "function", "function": {"name": MARK, "arguments": {"place": ARGUMENT}}}
REASONING = ("reasoning_content", "reasoning", "thinking")
"""The keys of a message by which data sets and templates name an answer's reasoning."""
EMPTY_THOUGHT = ("<think></think>", "<think>\n</think>", "<think>\n\n</think>")
SWITCHES = ("enable_thinking", "thinking")
"""Variables by which templates and servers turn reasoning on and off."""
WORDS = 300
"""How much of a template's own words an error quotes."""
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Talk:
    """A conversation as its template takes it: what a request to a server would hold."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    """What each message is called in its row, as `messages[0]`."""

    def upto(self, count: int, *more: Message) -> Talk:
        """Return the conversation's first `count` messages, and more after them."""
        return Talk([*self.messages[:count], *more], self.tools, self.documents, self.settings, self.names)


@dataclass(frozen=True)
class CallForm:
    """How a template takes calls of tools: arguments as a JSON text or as a map, and which content means none."""

    as_text: bool
    no_content: str | None


@dataclass(frozen=True)
class Ending:
    """What follows an answer: the end of its turn, which the model has to produce, and what the template adds after it.

    Empty where the template ends no turn. `borrowed`: the model stops by beginning the next turn (GLM's `<|user|>`).
    """

    end: str
    tail: str = ""
    borrowed: bool = False


class Template:
    """One chat template of a tokenizer."""

    def __init__(self, tokenizer: Any, source: str) -> None:
        """Take the template's source; nothing is rendered yet."""
        self._tokenizer = tokenizer
        self.source = source
        self.marked = bool(_GENERATION.search(source))

    def render(self, talk: Talk, *, prompt: bool = False, **switch: Any) -> str:
        """Return a conversation as text; with `prompt` as a server's prompt for the next answer.

        Raises RowError with the template's own words where it refuses the conversation.
        """
        try:
            text: str = self._tokenizer.apply_chat_template(
                talk.messages,
                tools=talk.tools,
                documents=talk.documents,
                chat_template=self.source,
                add_generation_prompt=prompt,
                tokenize=False,
                **(talk.settings | switch),
            )
        except MemoryError:
            raise
        except Exception as error:  # whatever a template raises, or what jinja and Python raise in it
            words = str(error) or type(error).__name__
            if type(error).__name__ == "TemplateSyntaxError":
                raise StageError("UnsupportedTemplate", f"the model's chat template is not a valid one: {words[:WORDS]}") from None
            raise RowError(f"the model's chat template refuses this row: {words[:WORDS]}") from None
        return text

    def marks(self, talk: Talk, **switch: Any) -> list[tuple[int, int]]:
        """Return the parts of the rendered text that the template's own `{% generation %}` blocks mark."""
        from transformers.utils.chat_template_utils import render_jinja_template

        settings = self._tokenizer.special_tokens_map | talk.settings | switch
        _, marks = render_jinja_template(
            [talk.messages],
            tools=talk.tools,
            documents=talk.documents,
            chat_template=self.source,
            return_assistant_tokens_mask=True,
            **settings,
        )
        return list(marks[0])

    def switches(self, settings: dict[str, Any]) -> list[dict[str, bool]]:
        """Return the settings by which this template turns reasoning off and on, but those that a row sets itself."""
        return [{name: value} for name in self._switches if name not in settings for value in (False, True)]

    @cached_property
    def _switches(self) -> list[str]:
        return [name for name in SWITCHES if self.names(name)]

    def names(self, variable: str) -> bool:
        """Return whether the template's source holds a variable's name."""
        return bool(re.search(rf"\b{re.escape(variable)}\b", self.source))

    @cached_property
    def takes_parts(self) -> bool:
        """Whether a text has to be a list of parts: a plain one is left out, or refused."""
        plain, parts = ([{"role": "user", "content": content}] for content in (MARK, [{"type": "text", "text": MARK}]))
        return not self._shows(plain) and self._shows(parts)

    @cached_property
    def joins_parts(self) -> bool:
        """Whether a list of several parts is rendered part by part."""
        parts = [{"type": "text", "text": f"{MARK}{number}"} for number in (1, 2)]
        return self._shows([{"role": "user", "content": parts}], f"{MARK}1", f"{MARK}2", without=("type",))

    def _shows(self, messages: list[Message], *wanted: str, without: tuple[str, ...] = ()) -> bool:
        """Return whether some setting of the template renders all of `wanted`, and none of `without`."""
        for switch in ({}, *self.switches({})):
            with suppress(RowError):
                text = self.render(Talk(messages), **switch)
                if all(word in text for word in wanted or (MARK,)) and not any(word in text for word in without):
                    return True
        return False

    @cached_property
    def call_form(self) -> CallForm | None:
        """In which form a tool's call is rendered as it is: the form that servers give first; None where it is left out."""
        name = CALL["function"]["name"]
        for as_text, content in product((False, True), ("", None)):
            arguments = json.dumps(CALL["function"]["arguments"]) if as_text else CALL["function"]["arguments"]
            call = CALL | {"function": {"name": name, "arguments": arguments}}
            turn = self.plain("assistant", "") | ({} if content is not None else {"content": None}) | {"tool_calls": [call]}
            # Escaped quotes are a text within a text, and single ones Python's way to write a map.
            if self._shows([self.plain("user", "a"), turn], name, ARGUMENT, without=(f'\\"{ARGUMENT}', f"'place': '{ARGUMENT}")):
                return CallForm(as_text, content)
        return None

    @cached_property
    def reasoning(self) -> list[str]:
        """The keys of a message whose reasoning the template renders, in an answer or beside a call of a tool."""
        user, answer, call = self.plain("user", "a"), self.plain("assistant", "b"), self.plain("assistant", "") | {"tool_calls": [CALL]}
        return [key for key in REASONING if any(self._shows([user, turn | {key: THOUGHT}], THOUGHT) for turn in (answer, call))]

    @cached_property
    def splits_reasoning(self) -> bool:
        """Whether reasoning in the content has to be given by a key: as it is, the template puts an empty block before it."""
        messages = [self.plain("user", "a"), self.plain("assistant", f"<think>\n{MARK}\n</think>\n\nb")]
        return bool(self.reasoning) and self._shows(messages) and not self._shows(messages, without=EMPTY_THOUGHT)

    @cached_property
    def ending(self) -> Ending | None:
        """What follows a plain answer; None where the template refuses the plainest conversation, or leaves its answer out."""
        user, answer = self.plain("user", "a"), self.plain("assistant", MARK)
        last, between = self._after(user, answer), self._after(user, answer, user)
        if last is None:
            return None
        # What stands there whatever follows is the turn's own (Phi ends the whole conversation by another token); gpt-oss has none.
        common = last if between is None else _shared(last, between)
        end = self.last_special(common) or self.last_special(last) or len(last.rstrip())
        # A template that begins the next turn whether it is asked to or not writes more that stands there always.
        token = self._tokenizer.eos_token
        end = common.index(token) + len(token) if token and token in common else end
        if end:
            return Ending(last[:end], last[end:])
        borrowed = self.first_special(between or "")
        return Ending((between or "")[:borrowed], borrowed=bool(borrowed))

    @cached_property
    def next_turn(self) -> str:
        """The special token by which a tool's turn begins, where the template ends no turn: what a call ends with; else empty."""
        call = self.plain("assistant", "") | {"tool_calls": [CALL]}
        answer = self.plain("tool", MARK) | {"tool_call_id": CALL["id"], "name": MARK}
        messages = [self.plain("user", "a"), call, answer]
        try:
            called, answered = (self.render(Talk(messages[:count])) for count in (2, 3))
        except RowError:
            return ""
        rest = answered.removeprefix(called)
        return rest[: self.first_special(rest)] if answered.startswith(called) else ""

    def plain(self, role: str, text: str) -> Message:
        """Return a message of a plain text, in the form that this template takes."""
        return {"role": role, "content": [{"type": "text", "text": text}] if self.takes_parts else text}

    def _after(self, *messages: Message) -> str | None:
        try:
            parts = self.render(Talk(list(messages))).split(MARK)
        except RowError:
            return None
        return parts[1] if len(parts) == 2 else None

    @cached_property
    def stops(self) -> set[str]:
        """The texts at which a server stops."""
        return {text for text in (self._tokenizer.eos_token, self.ending and self.last_of(self.ending.end)) if text}

    def last_of(self, text: str) -> str:
        """Return the special token that a text ends with; the whole text where there is none."""
        tokens = self._special.findall(text)
        return tokens[-1] if tokens and text.endswith(tokens[-1]) else text

    @cached_property
    def _special(self) -> re.Pattern[str]:
        tokens = {token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special}
        longest_first = sorted(tokens | set(self._tokenizer.all_special_tokens), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def last_special(self, text: str) -> int:
        """Return where the last special token in a text ends; 0: there is none."""
        return max((found.end() for found in self._special.finditer(text)), default=0)

    def first_special(self, text: str) -> int:
        """Return where the special token ends with which a text begins, apart from white space; 0: it begins otherwise."""
        found = self._special.search(text)
        return found.end() if found and not text[: found.start()].strip() else 0


class Templates:
    """A tokenizer's chat templates: one, or several by name, of which `tool_use` is for conversations with tools."""

    def __init__(self, tokenizer: Any) -> None:
        """Take the tokenizer; raises nothing, for data may need no template."""
        self._tokenizer = tokenizer
        self._found: dict[bool, Template] = {}

    def pick(self, tools: list[dict[str, Any]] | None = None) -> Template:
        """Return the template that a server takes; raises StageError(UnsupportedTemplate) where there is none."""
        key = tools is not None
        if key not in self._found:
            try:
                self._found[key] = Template(self._tokenizer, self._tokenizer.get_chat_template(None, tools))
            except ValueError:
                raise StageError("UnsupportedTemplate", missing(self._tokenizer.chat_template)) from None
        return self._found[key]


def _shared(one: str, other: str) -> str:
    """Return the beginning that two texts have in common."""
    return "".join(letter for letter, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def missing(templates: Any) -> str:
    """Say why no template can be picked."""
    if templates:
        names: Iterable[str] = sorted(templates)
        return f"the model's tokenizer has chat templates by the names {', '.join(names)}, and none by the name default: name one so"
    return "conversations need a chat template, and the model's tokenizer has none: use PromptCompletion or Text data, or add chat_template.jinja"


def end_of_turn(tokenizer: Any) -> list[int]:
    """Return the ids of the token or tokens that end an assistant's turn under the tokenizer's chat template.

    The model produces all of them after an answer, and the last one is where a server has to stop: one token for nearly
    all models, several where the template writes several (Cohere) or where its end is no token of the vocabulary.
    Empty where there is no template, where it ends no turn, or where it refuses a question with an answer.
    """
    try:
        ending = Templates(tokenizer).pick().ending
    except StageError:
        return []
    return list(tokenizer(ending.end, add_special_tokens=False)["input_ids"]) if ending else []
