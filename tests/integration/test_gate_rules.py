"""What the real API server refuses of a gate, and what it goes on taking."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.cluster.processes import wait_until
from tests.integration.schema_examples import MINIMAL, changed
from tests.integration.schema_server import MERGE, Object, Server, manifest
from tunesmith import crd
from tunesmith.kinds import KINDS

REFUSED = [
    ("gate.0.metric", "knowlege/mmlu/acc", "spec.gate", "the name of one of `suites`"),
    ("gate.0.metric", "heldOutMore/perplexity", "spec.gate", "the name of one of `suites`"),
    ("gate.1.metric", "heldOut/perplexty", "spec.gate", "a perplexity suite measures"),
    ("gate.1.metric", "heldOut/mmlu/acc", "spec.gate", "a perplexity suite measures"),
    ("gate.0.metric", "knowledge/perplexity", "spec.gate", "suite/task/metric"),
    ("gate.0.metric", "knowledge/mmlu/acc/none", "spec.gate", "suite/task/metric"),
    ("gate.1", {"metric": "heldOut/perplexity", "min": "5"}, "spec.gate", "would ask for a worse model"),
    ("gate.1", {"metric": "heldOut/bits_per_byte", "baseline": "base", "minRatio": "1"}, "spec.gate", "would ask for a worse model"),
    ("gate.1.higherIsBetter", True, "spec.gate", "would ask for a worse model"),
    ("gate.1", {"metric": "heldOut/stopped", "max": "0.5"}, "spec.gate", "would ask for a worse model"),
    ("gate.1", {"metric": "heldOut/stopped", "min": "0.5", "higherIsBetter": False}, "spec.gate", "would ask for a worse model"),
    ("gate.6", {"metric": "heldOut/overlap", "min": "0.1"}, "spec.gate", "use `max`"),
    ("gate.6", {"metric": "knowledge/overlap", "baseline": "base", "maxDrop": "0.1"}, "spec.gate", "use `max`"),
    ("gate.4.baseline", None, "spec.gate[4]", "need `baseline`"),
    ("gate.4.maxDrop", "0.1", "spec.gate[4]", "exactly one of"),
    ("gate.5.confidence", "0.4", "spec.gate[5].confidence", "at least 0.5"),
    ("gate.5.confidence", "1.0", "spec.gate[5].confidence", "should match"),
    ("gate.4.minSamples", 0, "spec.gate[4].minSamples", "greater than or equal to 1"),
]


@pytest.mark.parametrize(("path", "value", "field", "told"), REFUSED)
def test_a_gate_that_could_not_be_judged_or_asks_for_a_worse_model_is_refused(server: Server, path: str, value: Any, field: str, told: str) -> None:
    answer = server.create("EvalRun", changed("EvalRun", path, value))
    assert answer.code == 422, answer.body
    assert told in answer.refused[field], answer.refused


BEFORE = [
    {"metric": "heldOut/perplexty", "max": "20"},
    {"metric": "heldOut/perplexity", "min": "5"},
    {"metric": "nowhere/perplexity", "max": "20"},
]
"""Gates that releases before let in."""


@pytest.fixture
def lenient(server: Server) -> Iterator[Server]:
    """The server as long as its CRD lacks the rules for new objects alone, as that of a release before did."""
    plain = KINDS["EvalRun"]
    before = crd.manifest(plain)
    spec = before["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["x-kubernetes-validations"] = [each for each in spec["x-kubernetes-validations"] if not each.get("optionalOldSelf")]
    replace_crd(server, before, 201)
    yield server
    replace_crd(server, crd.manifest(plain), 422)


def replace_crd(server: Server, body: Object, code: int) -> None:
    """Put another CRD in its place, and wait until the server answers by it."""
    done = server.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", body=body)
    assert done.returncode == 0, done.stderr
    bad = MINIMAL["EvalRun"] | {"gate": BEFORE[:1]}
    wait_until(lambda: server.create("EvalRun", bad, query="?dryRun=All").code == code, "the CRD to be in force", 30)


def test_an_object_that_new_rules_would_refuse_can_still_be_worked_on(lenient: Server) -> None:
    made = [lenient.create("EvalRun", MINIMAL["EvalRun"] | {"gate": [gate]}) for gate in BEFORE]
    assert [answer.code for answer in made] == [201] * len(BEFORE)
    plain = KINDS["EvalRun"]
    replace_crd(lenient, crd.manifest(plain), 422)
    for answer, gate in zip(made, BEFORE, strict=True):
        judged = [gate | {"outcome": "Missing"}]
        written = lenient.write_status(answer, {"observedGeneration": 1, "verdict": "Failed", "gate": judged})
        assert (written.code, written.body["status"]["gate"]) == (200, judged), written.body
        held = lenient.update(written, lambda spec: spec.update(suspend=True, retries=7))
        assert held.code == 200, held.body
        assert "is immutable" in lenient.update(held, lambda spec: spec.update(gate=[])).refused["spec.gate"]
        path = lenient.path("EvalRun", answer.body["metadata"]["name"])
        labelled = lenient.send("PATCH", path, {"metadata": {"labels": {"a": "b"}}}, MERGE)
        assert labelled.code == 200, labelled.body
        assert lenient.send("DELETE", path).code == 200


def test_the_policy_of_the_documents_demands_a_gate_where_it_is_bound(server: Server) -> None:
    text = (Path(__file__).parents[2] / "docs/operations.md").read_text().split("## Gates that cannot be left out")[1]
    policy = list(yaml.safe_load_all(text.split("```yaml")[1].split("```")[0]))
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "gated", "labels": {"tunesmith.dev/gated": ""}}}
    assert all(server.kubectl("apply", "-f", "-", body=each).returncode == 0 for each in (space, *policy))

    def told(kind: str, spec: Object) -> str:
        return server.kubectl("create", "--namespace=gated", "--dry-run=server", "-f", "-", body=manifest(kind, spec)).stderr

    gate = {"evalRunRefs": [{"name": "judge"}]}
    try:
        wait_until(lambda: "has a gate" in told("ModelDeployment", MINIMAL["ModelDeployment"]), "the policy to be in force", 30)
        assert "has a gate" in told("EvalRun", MINIMAL["EvalRun"])
        assert "at least one criterion" in told("EvalRun", MINIMAL["EvalRun"] | {"gate": []})
        assert told("EvalRun", MINIMAL["EvalRun"] | {"gate": [{"metric": "heldOut/perplexity", "max": "9"}]}) == ""
        assert told("ModelDeployment", MINIMAL["ModelDeployment"] | {"gate": gate}) == ""
        assert told("FineTuneJob", MINIMAL["FineTuneJob"]) == ""
        assert server.create("ModelDeployment", MINIMAL["ModelDeployment"]).code == 201, "elsewhere it says nothing"
    finally:
        for each in (*policy, space):
            server.kubectl("delete", "-f", "-", "--wait=false", body=each)
