"""Rows as tokens, and which tokens the loss is taken on.

A row is one of `{"messages": […]}`, `{"prompt", "completion"}` (both texts, or both lists of messages) and `{"text"}`
(data/*.jsonl). Training, the sample and the counts that Prepare shows, the perplexity that Evaluate measures and the rows
that Quantize calibrates on all go through `Encoder`, so they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tunesmith_trainer.data.conversation import Conversation, conversation
from tunesmith_trainer.data.template import Talk, Templates, end_of_turn
from tunesmith_trainer.data.tokens import Encoded, Span, Words
from tunesmith_trainer.data.turns import Chain, chains, shows, texts
from tunesmith_trainer.errors import RowError, StageError

__all__ = ["Encoded", "Encoder", "Encoding", "encode", "end_of_turn", "is_conversation", "training_template"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Encoding:
    """A row's sequences; one, but where a template renders earlier turns otherwise than the last one.

    `stripped`: the template leaves out a text of the row. `switch`: the setting, as `enable_thinking=false`, under which
    the template renders an answer of the row otherwise than a server does that is not asked for it.
    """

    sequences: list[Encoded]
    stripped: bool = False
    switch: str | None = None


@dataclass
class Encoder:
    """Encodes the rows of one model. With `answers` the loss is taken on the assistant's turns of `messages`, else on the whole."""

    tokenizer: Any
    answers: bool
    words: Words = field(init=False)
    templates: Templates = field(init=False)

    def __post_init__(self) -> None:
        """Nothing is rendered or encoded yet."""
        self.words, self.templates = Words(self.tokenizer), Templates(self.tokenizer)

    def check_template(self) -> None:
        """Refuse a tokenizer without a chat template, or with one that no answer can be learnt from: StageError(UnsupportedTemplate)."""
        ending = self.templates.pick().ending
        if self.answers and ending and not ending.end:
            raise StageError(
                "UnsupportedTemplate",
                "the model's chat template writes nothing after an assistant's answer, so a model trained on answers would never "
                "stop. Add a token that ends the assistant's turns to the chat template in the model's folder (inside of {% generation %}, "
                "where it has that mark), or set assistantOnlyLoss to false",
            )

    def encode(self, row: Row) -> Encoding:
        """Return a row's sequences. A completion is trained without its prompt, a text whole; both end with the end token.

        Raises RowError where the model's template does not render, or its tokenizer not encode, what the row says.
        """
        if is_conversation(row):
            found = conversation(self.templates, row)
            return self._answers(found) if self.answers or "completion" in row else self._everything(found)
        if "text" in row:
            ids = self.words.with_end(self.words.document(row["text"]))
            return Encoding([Encoded(ids, [True] * len(ids))])
        if self.words.ends_prompts:
            raise RowError("the tokenizer adds its end token to every text, and so to a prompt: set add_eos_token to false in tokenizer_config.json")
        end = self.tokenizer.eos_token
        if end and end in row["completion"].removesuffix(end):
            raise RowError(f"the completion holds {end!r}, by which it ends: take it out of the text")
        prompt = self.words.document(row["prompt"])
        completion = self.words.with_end(self.words.follow(row["prompt"], prompt, row["completion"]))
        return Encoding([Encoded(prompt + completion, [False] * len(prompt) + [True] * len(completion))])

    def whole(self, row: Row) -> list[int]:
        """Return the tokens of a whole row, whatever the loss is taken on."""
        if is_conversation(row):
            found = conversation(self.templates, row)
            return self.words.ids(found.template.render(found.talk))
        return self.encode(row).sequences[0].ids

    def question(self, row: Row) -> list[int] | None:
        """Return the tokens of a server's prompt for the last answer of a conversation; None where nothing is asked before it."""
        if not is_conversation(row):
            return None
        found = conversation(self.templates, row)
        last = max((number for number, message in enumerate(found.talk.messages) if message["role"] == "assistant"), default=0)
        return self.words.ids(found.template.render(found.talk.upto(last), prompt=True)) if last else None

    def _everything(self, found: Conversation) -> Encoding:
        """Return a conversation as one sequence, trained whole."""
        if found.weighed:
            raise RowError("a weight of 0 leaves a message out of the loss, which needs method.sft.assistantOnlyLoss: true")
        text = found.template.render(found.talk)
        ids = self.words.ids(text)
        return Encoding([Encoded(ids, [True] * len(ids))], stripped=_strips(found.talk, [text]))

    def _answers(self, found: Conversation) -> Encoding:
        """Return a conversation's answers, in as few sequences as its renderings allow."""
        parts = chains(found.template, found.talk, found.answers)
        sequences: list[Encoded] = []
        for chain in parts:
            encoded, odd = self.words.mark(chain.last.text, chain.spans)
            if len(odd) < len(chain.spans):
                sequences.append(self._narrowed(found, chain, encoded))
            sequences += [self._apart(chain.last.text, span) for span in odd]
        switch = next((chain.last.switch for chain in parts if chain.last.switch), {})
        heard = found.talk.upto(max(found.answers, default=-1) + 1)
        return Encoding(
            sequences,
            stripped=_strips(heard, [chain.last.text for chain in parts]),
            switch=", ".join(f"{name}={str(value).lower()}" for name, value in switch.items()) or None,
        )

    def _apart(self, text: str, span: Span) -> Encoded:
        """Return an answer whose first letters would share a token with its prompt's last ones, encoded as a server meets it."""
        before, answer = text[: span[0]], text[span[0] : span[1]]
        prompt = self.words.ids(before)
        ids = self.words.follow(before, prompt, answer)
        return Encoded(prompt + ids, [False] * len(prompt) + [True] * len(ids))

    def _narrowed(self, found: Conversation, chain: Chain, encoded: Encoded) -> Encoded:
        """Return a sequence in which only that part of the answers is trained that the template's own marks hold.

        They count only where they hold every end of turn: a template whose marks leave it out would never teach to stop.
        """
        last = chain.last
        if not found.template.marked or last.verbatim:
            return encoded
        marks = found.template.marks(found.talk.upto(last.number + 1), **last.switch)
        held = [(max(start, begin), min(end, stop)) for start, end in chain.spans for begin, stop in marks if begin < end and start < stop]
        if held == chain.spans or not {end for _, end in chain.spans} <= {end for _, end in held}:
            return encoded
        narrow, odd = self.words.mark(last.text, held)
        return encoded if odd else narrow


def training_template(tokenizer: Any) -> str | dict[str, str] | None:
    """Return what conversations are rendered with, in training as by a server: the model's own chat template, or templates by name."""
    template: str | dict[str, str] | None = tokenizer.chat_template
    return template


def encode(tokenizer: Any, row: Row, template: Any) -> Encoded:
    """Return a row's tokens, for comparisons by hand: with `training_template(tokenizer)` trained on answers, with None on everything.

    Raises RowError for a row of several sequences.
    """
    sequences = Encoder(tokenizer, answers=template is not None).encode(row).sequences
    if len(sequences) != 1:
        raise RowError(f"the row is trained as {len(sequences)} sequences")
    return sequences[0]


def is_conversation(row: Row) -> bool:
    """Return whether a normalised row consists of messages, and so needs a chat template."""
    return "messages" in row or isinstance(row.get("prompt"), list)


def _strips(talk: Talk, rendered: list[str]) -> bool:
    """Return whether a message has a text that none of the renderings shows."""
    return not all(any(shows(text, piece) for text in rendered) for message in talk.messages for piece in texts(message))
