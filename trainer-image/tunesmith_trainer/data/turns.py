"""Which text of a conversation an assistant's turn is: what the model has to produce after a server's prompt.

For message k, the conversation before it is rendered as a server's prompt, and the conversation up to it as it is. Where the
first is the beginning of the second, what lies between them is the answer with its end of turn. Turns of one rendering are
trained in one sequence; where a template renders earlier turns otherwise than the last one (it takes reasoning out of them),
each is trained in a sequence of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from tunesmith_trainer.data.template import MARK, REASONING, Message, Talk, Template
from tunesmith_trainer.errors import RowError

_THINK = re.compile(r"</?think>")


@dataclass(frozen=True)
class Turn:
    """One answer: the conversation up to it as text, and where in it the answer begins and its end of turn ends.

    `switch` is the setting of the template under which it was rendered, beside the row's own; `lost` whether the
    template leaves out a part of the answer; `verbatim` whether the answer stands in the text as it was given, for the
    template would take out a part of it even from the last turn.
    """

    number: int
    text: str
    start: int
    end: int
    switch: dict[str, bool]
    lost: bool = False
    verbatim: bool = False

    @property
    def length(self) -> int:
        """The answer's length in characters, with all that the model has to produce before and after it."""
        return self.end - self.start


@dataclass
class Chain:
    """Turns that stand in one rendering: its text, and where each turn begins and ends."""

    last: Turn
    spans: list[tuple[int, int]]


def texts(message: Message) -> list[str]:
    """Return what a message says, in pieces that a template renders as they are: what it thinks, and its content."""
    content = message.get("content") or ""
    if len(message) == 2 and isinstance(content, str) and "think>" not in content:
        return [content] if content.strip() else []
    parts = [content] if isinstance(content, str) else [part.get("text") or "" for part in content]
    spoken = [*parts, *(message.get(key) or "" for key in REASONING)]
    return [piece for text in spoken if isinstance(text, str) for piece in _THINK.split(text) if piece.strip()]


def shows(text: str, piece: str) -> bool:
    """Return whether a rendered text holds a piece of a message, apart from white space; it may do so as a JSON text."""
    found = piece.strip()
    if found in text:
        return True
    return json.dumps(found, ensure_ascii=False)[1:-1] in text or "".join(found.split()) in "".join(text.split())


def thinks(message: Message) -> bool:
    """Return whether an answer has reasoning, in a key of its own or in its content."""
    content = message.get("content")
    return any(message.get(key) for key in REASONING) or (isinstance(content, str) and bool(_THINK.search(content)))


def chains(template: Template, talk: Talk, numbers: Iterable[int]) -> list[Chain]:
    """Return the turns of the given messages, those together that one rendering holds.

    Raises RowError where an answer does not follow from a server's prompt, or the template refuses the conversation.
    """
    found: list[Chain] = []
    for number in numbers:
        turn = find(template, talk, number)
        if found and turn.text.startswith(found[-1].last.text[: found[-1].last.end]):
            found[-1].spans.append((turn.start, turn.end))
            found[-1].last = turn
        else:
            found.append(Chain(turn, [(turn.start, turn.end)]))
    return found


def find(template: Template, talk: Talk, number: int) -> Turn:
    """Return the turn of one answer, under the template's default settings or those that fit an answer with or without reasoning.

    Among the settings under which the prompt is the beginning of the whole, the one counts that leaves the model the least
    to produce: an empty block of reasoning, which a server gives where reasoning is off, is then not trained.
    """
    message = talk.messages[number]
    best = _rendered(template, talk, number, {})
    if best is None or best.lost or not (thinks(message) or _bare(best, message)):
        for switch in template.switches(talk.settings):
            with suppress(RowError):
                turn = _rendered(template, talk, number, switch)
                if turn and (best is None or (turn.lost, turn.length) < (best.lost, best.length)):
                    best = turn
    if best is None or best.lost:
        best = _as_given(template, talk, number) or best
    if best is None:
        # The day may have ended between the two renderings of a template that writes it.
        best = _rendered(template, talk, number, {})
    if best is None:
        raise RowError(_why_not(template, talk, number))
    for stop in template.stops | {template.last_of(best.text[best.start : best.end])}:
        if any(stop in piece for piece in texts(message)):
            raise RowError(f"{talk.names[number]} holds {stop!r}, by which the model's turn ends: take it out of the text")
    return best


def _bare(turn: Turn, message: Message) -> bool:
    """Return whether an answer begins with its own words: no setting can leave less to produce."""
    said = texts(message)
    return bool(said) and turn.text.startswith(said[0].lstrip(), turn.start)


def _rendered(template: Template, talk: Talk, number: int, switch: dict[str, Any]) -> Turn | None:
    """Return the turn as the template renders it; None where a server's prompt is not its beginning."""
    prompt = _prompt(template, talk, number, switch)
    whole = template.render(talk.upto(number + 1), **switch)
    if prompt is None or not whole.startswith(prompt) or len(whole) == len(prompt):
        return None
    lost = not all(shows(whole[len(prompt) :], piece) for piece in texts(talk.messages[number]))
    return _ended(template, talk, Turn(number, whole, len(prompt), len(whole), switch, lost))


def _prompt(template: Template, talk: Talk, number: int, switch: dict[str, Any]) -> str | None:
    """Return a server's prompt for an answer; before a conversation's first message there is only the turn's own beginning."""
    if number:
        return template.render(talk.upto(number), prompt=True, **switch)
    marked = talk.messages[0] | {"content": template.plain("assistant", MARK)["content"]}
    before = template.render(talk.upto(0, marked), **switch).partition(MARK)[0]
    header = _header(template, talk.upto(0, template.plain("user", MARK)), switch)
    return before[: before.rindex(header) + len(header)] if header and header in before else None


def _header(template: Template, talk: Talk, switch: dict[str, Any]) -> str:
    """Return what a server's prompt adds to a conversation: the beginning of the assistant's turn."""
    prompt, without = template.render(talk, prompt=True, **switch), template.render(talk, **switch)
    return prompt.removeprefix(without) if prompt.startswith(without) else ""


def _ended(template: Template, talk: Talk, turn: Turn) -> Turn | None:
    """Return a turn with its end of turn found; None where nothing ends it."""
    ending, span = template.ending, turn.text[turn.start :]
    if ending and not ending.end:
        return None
    if ending and ending.borrowed:
        added = template.next_turn if talk.messages[turn.number].get("tool_calls") else ending.end
        return replace(turn, text=turn.text + added, end=len(turn.text + added)) if added else None
    if ending and span.endswith(ending.end + ending.tail):
        return replace(turn, end=len(turn.text) - len(ending.tail))
    # A turn of another kind, such as one that calls a tool, may have an end of its own.
    end = template.last_special(span)
    end = len(span.rstrip()) if span[end:].strip() else end
    said = texts(talk.messages[turn.number])
    return None if said and span[:end].endswith(said[-1].rstrip()) else replace(turn, end=turn.start + end)


def _as_given(template: Template, talk: Talk, number: int) -> Turn | None:
    """Return the turn with the answer as it was given, in the place where the template puts an answer that it leaves alone.

    For templates that take reasoning out of the last turn too (DeepSeek-R1), and for those that render the conversation
    before it otherwise once it is there (gpt-oss): the prompt is then the server's, and what follows it the turn's own.
    """
    message = talk.messages[number]
    content = message.get("content")
    if not isinstance(content, str) or not content or not number:
        return None
    for switch in ({}, *template.switches(talk.settings)):
        with suppress(RowError):
            for prompt, whole in _in_place(template, talk, number, switch):
                if whole.startswith(prompt) and all(shows(whole[len(prompt) :], piece) for piece in texts(message)):
                    return _ended(template, talk, Turn(number, whole, len(prompt), len(whole), switch, verbatim=True))
    return None


def _in_place(template: Template, talk: Talk, number: int, switch: dict[str, bool]) -> Iterator[tuple[str, str]]:
    """Yield a server's prompt and the conversation up to an answer that stands in it as it was given, in the ways that there are."""
    message = talk.messages[number]
    prompt = template.render(talk.upto(number), prompt=True, **switch)
    parts = template.render(talk.upto(number, message | {"content": MARK}), **switch).split(MARK)
    header = _header(template, talk.upto(number), switch)
    if len(parts) == 2:
        before, after = parts
        yield prompt, before + message["content"] + after
        if header and header in before:
            yield prompt, prompt + before[before.rindex(header) + len(header) :] + message["content"] + after


def _why_not(template: Template, talk: Talk, number: int) -> str:
    name = talk.names[number]
    if not number:
        return f"{name}: as the model's chat template renders a conversation that begins with the assistant, no prompt of a server leads to it"
    if template.render(talk.upto(number + 1)).startswith(template.render(talk.upto(number), prompt=True)):
        return f"{name}: the model's chat template ends this turn by nothing, so the model would not learn to stop"
    header = _header(template, talk.upto(number), {})
    advice = "; give the answer its reasoning, as reasoning_content or as <think>…</think> in its content" if "think" in header else ""
    return (
        f"{name}: as the model's chat template renders this answer, it does not follow from what a server gives the model "
        f"to begin with ({header!r}){advice}"
    )
