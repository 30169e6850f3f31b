"""Few-shot examples that are never the question asked.

lm-eval leaves the row that it asks about out of its examples only where the examples' split is named, and is the one named as
`test_split`: not where a task has a test split alone, nor where its validation split is what is asked; and never another row with the
same question. The sampler here draws what lm-eval's own would have drawn, and draws again where that holds the question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

from tunesmith_trainer.errors import StageError
from tunesmith_trainer.suites.overlap import normal

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
    asked = list(task.eval_docs)
    questions = Questions(task, asked)
    pool = Pool(list(task.sampler.df), questions.of)
    for document in asked:
        left = len(pool.documents) - len(pool.like(questions.of(document)))
        if left < shots:
            message = f"numFewshot: task {name} has {left} examples with another question than one that it asks, fewer than {shots}"
            raise StageError("InvalidSettings", f"{message}: lower numFewshot, or give the task more examples (fewshot_split)")
    own_split = task.fewshot_cfg.split == task.config.test_split
    task.sampler = Sampler(pool, task.sampler, questions.of, own_split)
    # lm-eval hands the sampler the document that it asks about where these two are one.
    task.fewshot_cfg.split = task.config.test_split


class Questions:
    """What a task's documents ask, in forms that tell equal questions: two documents ask the same where they share one of theirs.

    One form is the question as the task words it. Where that holds the choices too, which another row may have in another order, it
    is the texts that the wording is made of: those that are no list, and all of them whatever their order.
    """

    def __init__(self, task: Any, asked: Sequence[Document]) -> None:
        """Find the forms that are instructions: what the documents `asked` ask is in their choices."""
        self._task = task
        self._fields = _fields_of(task)
        seen = Counter(form for document in asked for form in self._plain(document))
        total = len(asked)
        self._instructions = {form for form, times in seen.items() if (total > 1 and times == total) or times > max(FORM, total / 10)}

    def _plain(self, document: Document) -> list[str]:
        """Return the forms that may be instructions."""
        text = "" if self._task.multiple_input else normal(str(self._task.doc_to_text(document)))
        parts = [normal(document[name]) for name in self._fields if isinstance(document.get(name), str)]
        return [form for form in (text, "\n".join(parts)) if form.strip()]

    def of(self, document: Document) -> frozenset[str]:
        """Return the forms of a document's question."""
        try:
            plain = [form for form in self._plain(document) if form not in self._instructions]
            return frozenset([*plain, *self._whole(document)])
        except Exception:  # an example of other fields than the task's, which lm-eval renders by templates of its own
            own = self._task.fewshot_cfg.doc_to_text
            return frozenset([normal(str(self._task.doc_to_text(document, own))) if own else normal(str(document))])

    def _whole(self, document: Document) -> Iterator[str]:
        """Yield forms with the choices, which are no two questions' together."""
        text = "" if self._task.multiple_input else normal(str(self._task.doc_to_text(document)))
        choices = self._task.doc_to_choice(document) if self._task.config.doc_to_choice else [self._task.doc_to_target(document)]
        yield "\n".join([text, *sorted(normal(str(choice)) for choice in choices)])
        values = [normal(str(value)) for name in self._fields for value in _listed(document.get(name))]
        if values:
            yield "\n".join(sorted(values))


def _fields_of(task: Any) -> list[str]:
    """Return the columns of a task's rows that its wording of a question names."""
    from jinja2 import Environment, meta

    template = task.config.doc_to_text
    if not isinstance(template, str):
        return []
    names = {template} | meta.find_undeclared_variables(Environment().parse(template))
    return [name for name in task.features if name in names]


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


class Pool:
    """The documents that examples are drawn from, by their questions."""

    def __init__(self, documents: list[Document], question: Callable[[Document], frozenset[str]]) -> None:
        """Take the documents' questions down, each once."""
        self.documents = documents
        self._places: dict[str, set[int]] = {}
        for place, document in enumerate(documents):
            for form in question(document):
                self._places.setdefault(form, set()).add(place)
        self._place = {id(document): place for place, document in enumerate(documents)}

    def like(self, question: frozenset[str]) -> set[int]:
        """Return the places of documents that ask the same."""
        return set().union(*(self._places.get(form, ()) for form in question))

    def place(self, document: Document) -> int:
        """Return a document's place."""
        return self._place[id(document)]


class Sampler:
    """Draws examples as the task's own sampler does, but none that asks what is asked."""

    def __init__(self, pool: Pool, own: Any, question: Callable[[Document], frozenset[str]], own_split: bool) -> None:
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

        same = self._pool.like(self._question(eval_doc)) if eval_doc else set()
        try:
            drawn = list(self._own.sample(n, eval_doc=eval_doc if self._own_split else None))
        except (ValueError, AssertionError):  # it asks for one more than it needs, and has no more
            drawn = []
        if len(drawn) == n and not any(self._pool.place(example) in same for example in drawn):
            return drawn
        left = [document for place, document in enumerate(self._pool.documents) if place not in same]
        return left[:n] if isinstance(self._own, FirstNSampler) else self._again.sample(left, n)
