"""Digests that the last release of contract version 1 (9dfedbe) gave to recorded orders: a later one must give the same."""

import json

import pytest

from tests.trainer.bench import ROOT
from tunesmith_trainer import evaluate, store
from tunesmith_trainer.contract import PrepareInput, ResolvedDataset
from tunesmith_trainer.contract_eval import EvaluateInput
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


def cache_keys(given, monkeypatch):
    """The cache keys of the suites that need no template, under no library's version, and by the method of then."""
    monkeypatch.setattr(evaluate, "versions", dict)
    monkeypatch.setattr(evaluate.perplexity, "METHOD", 1)
    monkeypatch.setattr(evaluate.perplexity, "template_of", lambda *_: "template")
    monkeypatch.setattr(evaluate.perplexity, "data_digest", lambda *_: DIGEST)
    stage = EvaluateInput.model_validate(given)
    return [store.digest_of(evaluate.ingredients(suite, None, DIGEST, stage, None)) for suite in stage.suites]


@pytest.mark.parametrize("name", sorted(orders("Prepare")))
def test_a_recorded_run_keeps_its_digest(name):
    assert run_digest(orders("Prepare")[name]) == RECORDED["runs"][name]


@pytest.mark.parametrize("name", sorted(orders("Evaluate")))
def test_a_recorded_suite_keeps_its_cache_key(name, monkeypatch):
    assert cache_keys(orders("Evaluate")[name], monkeypatch) == RECORDED["suites"][name]
