"""Digests that the last release of contract version 1 (9dfedbe) gave to recorded orders: a later one must give the same."""

import json

import pytest

from tests.trainer.bench import ROOT
from tunesmith_contract.results import ResolvedDataset
from tunesmith_contract.stages import PrepareInput
from tunesmith_trainer.prepare import Data, digest_run

CORPUS = json.loads((ROOT / "tests/unit/operator/recorded/contract-1.json").read_text())
RECORDED = json.loads((ROOT / "tests/trainer/recorded/digests-1.json").read_text())
DIGEST = "sha256:" + "5" * 64


def orders(stage):
    """Every recorded input of a stage that is there as text, by entry and name."""
    made = {f"{entry['name']}: {name}": text for entry in CORPUS["entries"] for name, text in entry["made"].items() if text.startswith("{")}
    return {name: json.loads(text) for name, text in made.items() if json.loads(text)["stage"] == stage}


def run_digest(given):
    run = PrepareInput.model_validate(given).run
    data = [ResolvedDataset(name=item.name, digest=DIGEST, rows=1, dropped=0) for item in run.datasets]
    return digest_run(run, DIGEST, Data(data, DIGEST if run.validation and run.validation.dataset else None, [], []))


@pytest.mark.parametrize("name", sorted(orders("Prepare")))
def test_a_recorded_run_keeps_its_digest(name):
    assert run_digest(orders("Prepare")[name]) == RECORDED["runs"][name]
