"""Texts as tokens, in the way in which a server meets them: a prompt is encoded by itself, and an answer is what follows it.

A token that would hold a prompt's last letters and an answer's first ones is never met, so it is never trained.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tunesmith_trainer.errors import RowError

Span = tuple[int, int]
KNOWN_PIECES = 4096
"""How many encoded pieces are remembered; nearly all prompts end with the same one."""
ANCHORS = ("\n", "a", ":", "<")
"""Texts behind which a continuation may be encoded where it cannot be encoded by itself."""
TAIL = 8
"""How many tokens of a prompt are decoded with what follows."""
JOINS = (("a", "b"), ("a:", " b"), ("a\n", "b"), ("a ", "b"), ("a", "\nb"))


@dataclass(frozen=True)
class Encoded:
    """A sequence's tokens and, for each, whether the loss is taken on it."""

    ids: list[int]
    trained: list[bool]


@dataclass
class Words:
    """A tokenizer, and what was found of it."""

    tokenizer: Any
    _pieces: dict[str, list[int]] = field(default_factory=dict)

    def ids(self, text: str) -> list[int]:
        """Return a rendered conversation's tokens: its template has written the special ones."""
        return list(self._call(text, add_special_tokens=False)["input_ids"])

    def _call(self, text: str, **settings: Any) -> Any:
        try:
            return self.tokenizer(text, **settings)
        except MemoryError:
            raise
        except Exception as error:  # tokenizers raises Exception itself; its words may quote the text
            raise RowError(f"the model's tokenizer cannot encode this row: {type(error).__name__}") from None

    def document(self, text: str) -> list[int]:
        """Return a text's tokens with the special ones that the tokenizer adds, once where the text begins with them itself."""
        ids = list(self._call(text)["input_ids"])
        begin = self.tokenizer.bos_token_id
        return ids[1:] if begin is not None and ids[:2] == [begin, begin] else ids

    def with_end(self, ids: list[int]) -> list[int]:
        """Return tokens ended by the end token, once."""
        end = self.tokenizer.eos_token_id
        return ids if end is None or (ids and ids[-1] == end) else [*ids, end]

    @cached_property
    def ends_prompts(self) -> bool:
        """Whether the tokenizer adds its end token to every text, prompts too."""
        return self.tokenizer.eos_token_id is not None and self.document("a")[-1:] == [self.tokenizer.eos_token_id]

    def mark(self, text: str, spans: list[Span]) -> tuple[Encoded, list[Span]]:
        """Return a rendered text's tokens with those of `spans` trained, and the spans that cannot be: a token reaches beyond them."""
        output = self._call(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = list(output["input_ids"]), output["offset_mapping"]
        starts = [start for start, _ in offsets]
        trained = [False] * len(ids)
        odd = []
        for start, end in spans:
            first, last = bisect_left(starts, start), bisect_left(starts, end)
            if self._stands(text, ids, starts, start, first) and self._stands(text, ids, starts, end, last):
                trained[first:last] = [True] * (last - first)
            else:
                odd.append((start, end))
        return Encoded(ids, trained), odd

    def _stands(self, text: str, ids: list[int], starts: list[int], place: int, count: int) -> bool:
        """Return whether a text's first `count` tokens are those of its part before `place`, encoded alone.

        Looked at is what lies behind the last added token: tokenizers encode what is between two of these by itself.
        """
        first = next((index for index in range(count - 1, -1, -1) if ids[index] in self._added), 0)
        begin = starts[first] if count and ids[first] in self._added else 0
        return self._piece(text[begin:place]) == ids[first:count]

    def _piece(self, text: str) -> list[int]:
        found = self._pieces.get(text)
        if found is None:
            found = self.ids(text)
            if len(self._pieces) < KNOWN_PIECES and len(text) < 200:
                self._pieces[text] = found
        return found

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(number for number, token in self.tokenizer.added_tokens_decoder.items() if not token.normalized)

    def follow(self, text: str, prompt: list[int], completion: str) -> list[int]:
        """Return the tokens of a completion behind a prompt (its text and its tokens): what a model would have to produce.

        Raises RowError where no tokens give this very text behind that prompt.
        """
        apart = self.ids(completion)
        if self._joins:
            return apart
        choices = [apart, *self._behind_anchors(completion)]
        tail = prompt[-TAIL:]
        wanted = self._text(tail) + completion
        for ids in choices:
            if self._text([*tail, *ids]) == wanted:
                return ids
        # A tokenizer that changes letters, or does not know some, does so in the whole as well.
        whole = self._text(self.ids(text + completion))
        for ids in choices:
            if self._text(prompt + ids).endswith(whole):
                return ids
        raise RowError("the model's tokenizer has no tokens that give this text behind its prompt; a line break at the end of the prompt may help")

    def _behind_anchors(self, completion: str) -> list[list[int]]:
        found = []
        for anchor in ANCHORS:
            alone, both = self.ids(anchor), self.ids(anchor + completion)
            if both[: len(alone)] == alone:
                found.append(both[len(alone) :])
        return found

    @cached_property
    def _joins(self) -> bool:
        """Whether texts encoded apart and joined read as the whole: not so where each text gets a space before it (SentencePiece)."""
        return all(self._text(self.ids(one) + self.ids(other)) == one + other for one, other in JOINS)

    def _text(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text
