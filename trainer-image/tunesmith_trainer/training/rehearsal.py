"""Whether Train's way with rows changes what a model says of them: asked of a tiny model of the run's own architecture.

TRL computes log-probabilities by a head of its own and, with packing, puts rows one after another into one sequence, of which many
architectures make one text: their attention or their state reaches from each row into the next ones. No list of architectures is
kept; each is tried, on the CPU, within seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

from tunesmith_contract.stages import Run
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.failure import raise_surroundings
from tunesmith_trainer.model import shrink
from tunesmith_trainer.model.base import load_config

# Rows of unlike lengths, longer than the windows of a tiny model.
LENGTHS = (13, 21, 9)
# What rounding makes of log-probabilities stays far below this part of their spread, and what a row sees of another far above.
TOLERANCE = 1e-3


class Rehearsal:
    """A tiny model, and what it says of some rows: each alone, by the model's own head."""

    def __init__(self, model: Any) -> None:
        """Take a model with random weights, in 32 bits."""
        import torch
        from trl.trainer.utils import add_fused_lm_head

        self._model = _stir(model).eval()
        chance = torch.Generator().manual_seed(1)
        words = model.get_input_embeddings().weight.shape[0]
        self._rows = [torch.randint(min(8, words - 1), words, (length,), generator=chance).tolist() for length in LENGTHS]
        self._expected = [self._by_own_head(row) for row in self._rows]
        self._spread = float(torch.cat(self._expected).std())
        add_fused_lm_head(self._model, outputs=("log_probs", "entropy", "is_top1"))

    def _by_own_head(self, row: list[int]) -> Any:
        import torch

        ids = torch.tensor([row])
        with torch.no_grad():
            logits = self._model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, :-1]
        return logits.float().log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]

    def alone(self) -> float:
        """How far what TRL's head says of each row is from what the model's own says: the greatest difference, in parts of the spread."""
        return max(self._distance(self._by_trl([{"input_ids": row}], packed=False)[0], said) for row, said in self._said())

    def padded(self) -> float:
        """How far rows padded to one length are from each alone."""
        found = self._by_trl([{"input_ids": row} for row in self._rows], packed=False)
        return max(self._distance(line[: len(said)], said) for line, (_, said) in zip(found, self._said(), strict=True))

    def packed(self) -> float:
        """How far rows packed into one sequence are from each alone."""
        joined = {"input_ids": [token for row in self._rows for token in row], "seq_lengths": list(LENGTHS)}
        found = self._by_trl([joined], packed=True)[0]
        ends = list(accumulate(LENGTHS))
        # Between two rows nothing is predicted.
        parts = [found[end - length : end - 1] for end, length in zip(ends, LENGTHS, strict=True)]
        return max(self._distance(part, said) for part, (_, said) in zip(parts, self._said(), strict=True))

    def _said(self) -> Iterator[tuple[list[int], Any]]:
        return zip(self._rows, self._expected, strict=True)

    def _by_trl(self, rows: list[dict[str, Any]], packed: bool) -> Any:
        import torch
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=packed)(rows)
        with torch.no_grad():
            return self._model(**batch, use_cache=False, fused_lm_head=True).log_probs

    def _distance(self, found: Any, said: Any) -> float:
        return float((found - said).abs().max()) / self._spread


def _stir(model: Any) -> Any:
    """Give a model weights with which each part of it has a say: some begin at zero, and attention that is nearly even hides much."""
    import torch

    chance = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not name.endswith("A_log"):
                parameter.mul_(2).add_(0.02 * torch.randn(parameter.shape, generator=chance))
    return model


def rehearse(config: Any) -> Rehearsal | None:
    """Return the rehearsal of a model's configuration; None for an architecture of which no tiny model can be made."""
    for small in shrink.tiny(config):
        with suppress(Exception):  # as for shrink.candidates
            return Rehearsal(shrink.build(small, "cpu"))
    return None


def check(folder: Path, architecture: str, run: Run) -> None:
    """Refuse what would train another model than the user's: StageError(InvalidModel, InvalidSettings)."""
    assert run.method.sft is not None
    packing = run.method.sft.packing
    rehearsal = rehearse(load_config(folder))
    if rehearsal is None:
        if packing:
            raise StageError(
                "InvalidSettings", f"method.sft.packing: whether {architecture} keeps packed rows apart cannot be tried; set packing to false"
            )
        print(f"no tiny model of {architecture} can be made: what training does to its rows was not tried", flush=True)
        return
    if not _holds(rehearsal.alone):
        raise StageError(
            "InvalidModel", f"{architecture} cannot be trained: its predictions are not those of its last layer times lm_head, which TRL trains"
        )
    if packing and not _holds(rehearsal.packed):
        raise StageError("InvalidSettings", f"method.sft.packing: in {architecture} packed rows see one another; set packing to false")
    if not packing and run.training.per_device_train_batch_size > 1 and not _holds(rehearsal.padded):
        raise StageError(
            "InvalidSettings",
            f"{architecture} takes padding for text, so rows of unlike lengths cannot share a batch: set training.perDeviceTrainBatchSize to 1",
        )


def _holds(distance: Callable[[], float]) -> bool:
    """Return whether a distance is one of rounding; a model that fails at it fails in Train as well."""
    try:
        return distance() <= TOLERANCE
    except Exception as error:
        raise_surroundings(error)
        print(f"the rehearsal failed: {type(error).__name__}: {error}", flush=True)
        return False
