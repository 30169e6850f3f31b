"""Few-shot examples that are never the question asked.

lm-eval leaves the row that it asks about out of its examples only where the examples' split is named, and is the one named as
`test_split`: not where a task has a test split alone, nor where its validation split is what is asked; and never another row with the
same question. The sampler here draws what lm-eval's own would have drawn, and draws again where that holds the question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tunesmith_trainer.errors import StageError
from tunesmith_trainer.overlap import normal

SEED = 1234
"""lm-eval's own for its examples."""
FORM = 10
"""A text that more documents than this, and than a tenth of them, share is an instruction; what they ask is in their choices."""

Document = dict[str, Any]


def shots_of(task: Any, wanted: int | None) -> int:
    """Return how many examples lm-eval puts before each question of a task. A task that sets 0 itself keeps it."""
    own = task.config.num_fewshot
    return int(own or 0) if wanted is None or own == 0 else wanted


def guard(task: Any, wanted: int | None) -> None:
    """Have a task draw no example that is the question asked.

    Raises StageError(InvalidSettings) where a task has too few other questions, or draws its examples in Python.
    """
    shots = shots_of(task, wanted)
    if not shots:
        return
    name = task.config.task
    if not hasattr(task, "sampler"):
        raise StageError("InvalidSettings", f"task {name} draws its examples by Python code that is not checked: set numFewshot to 0")
    questions = Questions(task)
    pool = list(task.sampler.df)
    others = Counter(questions.of(document) for document in pool)
    for document in task.eval_docs:
        left = len(pool) - others[questions.of(document)]
        if left < shots:
            message = f"numFewshot: task {name} has {left} examples with another question than one that it asks, fewer than {shots}"
            raise StageError("InvalidSettings", f"{message}: lower numFewshot, or give the task more examples (fewshot_split)")
    own_split = task.fewshot_cfg.split == task.config.test_split
    task.sampler = Sampler(pool, task.sampler, questions.of, own_split)
    # lm-eval hands the sampler the document that it asks about where these two are one.
    task.fewshot_cfg.split = task.config.test_split


class Questions:
    """What a task's documents ask, in a form that tells equal questions."""

    def __init__(self, task: Any) -> None:
        """Find the texts that are instructions: all documents of more than one share them."""
        self._task = task
        texts = Counter(self._text(document) for document in task.eval_docs)
        total = texts.total()
        self._forms = {text for text, times in texts.items() if not text or (total > 1 and times == total) or times > max(FORM, total / 10)}

    def _text(self, document: Document) -> str:
        return normal(str(self._task.doc_to_text(document)))

    def of(self, document: Document) -> str:
        """Return a document's question; of one that has not the task's fields (an example written into the task file) the words of its own."""
        try:
            text = self._text(document)
            if text not in self._forms and not self._task.multiple_input:
                return text
            choices = self._task.doc_to_choice(document) if self._task.config.doc_to_choice else self._task.doc_to_target(document)
        except Exception:  # an example of other fields than the task's: lm-eval renders it by templates of its own
            own = self._task.fewshot_cfg.doc_to_text
            return normal(self._task.doc_to_text(document, own)) if own else normal(str(document))
        return "\n".join([text if not self._task.multiple_input else "", *sorted(normal(str(choice)) for choice in _listed(choices))])


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


class Sampler:
    """Draws examples as the task's own sampler does, but none that asks what is asked."""

    def __init__(self, pool: list[Document], own: Any, question: Callable[[Document], str], own_split: bool) -> None:
        """Take over from the sampler `own`, which leaves out the document asked about where its split is the `own_split`."""
        self._pool, self._own, self._question, self._own_split = pool, own, question, own_split
        self._again = Random(SEED)

    def set_rnd(self, seed: int | None) -> Sampler:
        """Begin the draws again from a seed."""
        self._own.set_rnd(seed)
        self._again = Random(seed)
        return self

    def sample(self, n: int, eval_doc: Document | None = None, **_: Any) -> Sequence[Document]:
        """Return `n` examples for a document."""
        from lm_eval.api.samplers import FirstNSampler

        asked = self._question(eval_doc) if eval_doc else None
        try:
            drawn = list(self._own.sample(n, eval_doc=eval_doc if self._own_split else None))
        except (ValueError, AssertionError):  # it asks for one more than it needs, and has no more
            drawn = []
        if len(drawn) == n and all(self._question(example) != asked for example in drawn):
            return drawn
        left = [example for example in self._pool if self._question(example) != asked]
        return left[:n] if isinstance(self._own, FirstNSampler) else self._again.sample(left, n)
