"""How far what one model says is from what another says: their logits over the same tokens, and the outputs of their layers.

A model that was merged, smoothed or quantized is called good by this, and not by the form of its files. Logits alone do not show one
broken layer of many, since all others pass on what they were given.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tunesmith_trainer.errors import StageError

# So few that logits of a large vocabulary fit beside a model, and that the CPU computes them in minutes.
PROBES = 8
PROBE_TOKENS = 64


@dataclass(frozen=True)
class Distance:
    """How far logits are from others over some tokens."""

    error: float
    """The root mean square of their differences in parts of their own, after each token's mean, which says nothing, is taken off."""
    same: float
    """The share of tokens after which the likeliest token is the same one."""
    tokens: int

    def within(self, bound: float) -> bool:
        """Return whether the error is a number and at most `bound`."""
        return self.error <= bound


def probes(rows: Iterable[list[int]]) -> list[list[int]]:
    """Return the beginnings of the first rows of tokens that say anything."""
    return list(islice((row[:PROBE_TOKENS] for row in rows if row), PROBES))


def logits(model: Any, rows: list[list[int]]) -> list[Any]:
    """Return what a model says of each row, a row at a time: tokens x vocabulary, on the CPU and in the model's own precision."""
    return list(_logits(model, rows))


def _logits(model: Any, rows: list[list[int]]) -> Iterator[Any]:
    import torch

    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    for row in rows:
        ids = torch.tensor([row], device=device)
        with torch.no_grad():
            yield model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0].cpu()
    model.train(was_training)


def pass_through(model: Any, layers: Sequence[Any], rows: list[list[int]], given: list[Any] | None = None) -> tuple[list[Any], list[Any]]:
    """Return the logits, and what each layer is given and makes of it, a row after another.

    These are pairs of (tokens x width), on the CPU; None for what is no tensor.

    `given`: pairs of another model, whose inputs its layers get in place of their own, so that each is judged by itself.
    """
    import torch

    found: list[Any] = []
    inputs: list[Any] = []

    def take(_: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        own = args[0] if args else kwargs.get("hidden_states")
        other = given[len(found)] if given is not None and len(found) < len(given) else None
        if isinstance(own, torch.Tensor) and other is not None and other[0].shape == own[0].shape:
            own = other[0].unsqueeze(0).to(own)
            args, kwargs = ((own, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": own})
        inputs.append(own)
        return args, kwargs

    def keep(_: Any, args: Any, kwargs: Any, made: Any) -> None:
        own, made = inputs.pop(), made[0] if isinstance(made, tuple) else made
        alike = isinstance(own, torch.Tensor) and isinstance(made, torch.Tensor) and own.shape == made.shape
        found.append((own[0].cpu(), made[0].cpu()) if alike else None)

    handles = [layer.register_forward_pre_hook(take, with_kwargs=True) for layer in layers]
    handles += [layer.register_forward_hook(keep, with_kwargs=True) for layer in layers]
    try:
        return logits(model, rows), found
    finally:
        for handle in handles:
            handle.remove()


def worst_layer(before: list[Any], after: list[Any], depth: int) -> tuple[int, float] | None:
    """Return the number of the layer whose outputs are furthest away, and how far; None where they cannot be compared.

    `before` and `after` are what `pass_through` returned of two models with `depth` layers each. The distance is that of the outputs in parts
    of what the layer adds to its input, the median over all tokens: the first ones of a text are often much larger than all others.
    """
    if not depth or len(before) != len(after) or len(before) % depth or None in before or None in after:
        return None
    found = []
    for number in range(depth):
        parts: list[float] = []
        for (source, old), (_, new) in zip(before[number::depth], after[number::depth], strict=True):
            moved, added = (new.double() - old.double()).norm(dim=-1), (old.double() - source.double()).norm(dim=-1)
            parts += (moved / added.clamp(min=1e-30)).tolist()
        found.append((number, statistics.median(parts)))
    return max(found, key=lambda pair: (pair[1] != pair[1], pair[1]))


def compare(before: list[Any], after: list[Any]) -> Distance:
    """Return how far `after` is from `before`, which are logits of the same rows."""
    moved = own = same = tokens = 0.0
    for old, new in zip(before, after, strict=True):
        old, new = _centred(old), _centred(new)
        moved += float((new - old).square().sum())
        own += float(old.square().sum())
        same += int((new.argmax(-1) == old.argmax(-1)).sum())
        tokens += old.shape[0]
    error = (moved / own) ** 0.5 if own else float("inf") if moved else 0.0
    return Distance(error=error, same=same / tokens, tokens=int(tokens))


def share(base: list[Any], tuned: list[Any], found: list[Any]) -> float | None:
    """Return how much of the step from the base's logits to the tuned ones another model's have made; None where there is no such step.

    It is 0 for the base and 1 for the tuned model. What rounding adds lies across that step, so it hardly counts, even where it is as large.
    """
    made = whole = 0.0
    for old, wanted, new in zip(base, tuned, found, strict=True):
        origin = _centred(old)
        step = _centred(wanted) - origin
        made += float(((_centred(new) - origin) * step).sum())
        whole += float(step.square().sum())
    return made / whole if whole else None


def require(found: Distance, bound: float, what: str) -> None:
    """Refuse a model whose logits are further away than `bound`: StageError(OutputDiffers)."""
    if not found.within(bound):
        raise StageError(
            "OutputDiffers",
            f"{what} (over {found.tokens} tokens of the run's rows its logits are off by {found.error:.2f} of their size, at most "
            f"{bound} is allowed; the likeliest next token is the same at {found.same:.0%})",
        )


def _centred(found: Any) -> Any:
    found = found.double()
    return found - found.mean(-1, keepdim=True)
