"""A gate that does not hold: nothing is served, and the objects say why."""

from __future__ import annotations

from typing import Any

import pytest

from dev.demo import follow, seed
from dev.demo.chain import NAME
from dev.demo.kube import Kube, Object, ours

MODEL = {"fineTuneJobRef": {"name": NAME}, "artifact": "w8a8"}
SUITE = {"name": "heldOut", "perplexity": {"dataset": {"uri": "pvc://datasets/heldout.jsonl", "format": "Messages"}}}
# A baseline of its own name: the same model as the base, where the user put it.
GIVEN = {"name": "given", "model": {"uri": "pvc://datasets/smollm2-135m-instruct"}}
GATE = [
    {"metric": "heldOut/perplexity", "baseline": "given", "maxRatio": "0.95"},
    {"metric": "heldOut/perplexity", "max": "1"},
]


@pytest.fixture(scope="module")
def run(kube: Kube, chain: Any) -> Object:
    """An EvalRun whose gate asks for what no model has, at its end."""
    spec = {"model": MODEL, "baselines": [GIVEN], "suites": [SUITE], "gate": GATE, "resources": {"cpu": "600m", "memory": "4Gi"}}
    before = cached(kube)
    kube.apply(ours("EvalRun", "unmet", spec))
    ended = follow.follow(kube, [("EvalRun", "unmet")], print, 600)["EvalRun", "unmet"]
    assert cached(kube) == before, "what had been measured for the chain was measured again"
    return ended


def cached(kube: Kube) -> list[str]:
    """Names of the files in the evaluation cache, one for each suite and model measured."""
    return kube.run("exec", seed.LOADER, "--", "ls", "/mnt/pvc/models/team-a/eval-cache").split()


def test_each_criterion_is_judged_by_its_bounds_over_all_rows(run: Object) -> None:
    assert run["status"]["verdict"] == "Failed"
    passed, failed = run["status"]["gate"]
    assert (passed["outcome"], failed["outcome"]) == ("Passed", "Failed")
    assert passed["samples"] == failed["samples"] == 212
    assert float(passed["upper"]) <= 0.95 < 1 < float(failed["lower"])


def test_a_named_baseline_gets_the_figures_that_the_same_model_has_as_base(run: Object, chain: Any) -> None:
    before = next(entry for entry in chain["EvalRun", f"{NAME}-eval"]["status"]["results"] if entry["metric"] == "heldOut/perplexity")
    now = next(entry for entry in run["status"]["results"] if entry["metric"] == "heldOut/perplexity")
    assert now["tested"] == before["tested"]
    assert now["baselines"]["given"] == before["baselines"]["base"]


def test_a_model_whose_gate_failed_is_not_served(kube: Kube, run: Object) -> None:
    kube.apply(ours("ModelDeployment", "unjudged", {"model": MODEL, "gate": {"evalRunRefs": [{"name": "unmet"}]}}))
    kube.run("wait", "modeldeployment/unjudged", "--for=condition=Stalled", "--timeout=60s")
    thing = kube.get("modeldeployment", "unjudged")
    assert follow.condition(thing, "Stalled")["reason"] == "GateFailed"
    assert follow.condition(thing, "GatePassed")["status"] == "False"
    assert "heldOut/perplexity" in follow.condition(thing, "Stalled")["message"]
    assert not kube.get("deployments", "--selector=tunesmith.dev/name=unjudged")["items"]
