"""What is made for an EvalRun. The golden file shows all of it; write it anew with UPDATE_GOLDEN=1."""

import os
from pathlib import Path

from tests.unit.operator.evalruns import BASE, BY_URI, CLAIMS, FOUND, GATED, MERGED, PLAIN, READY_JOB, RUN, W8A8, Evaluation
from tests.unit.operator.makers import as_yaml, claim
from tunesmith.core.objects import Object
from tunesmith.evalrun.api import Spec, references
from tunesmith_contract.stages import CompareInput, EvaluateInput

GOLDEN = Path(__file__).parent / "golden" / "evalrun.yaml"
FULL: Object = {
    **GATED,
    "baselines": [{"name": "base"}],
    "suites": [*GATED["suites"], {"name": "knowledge", "harness": {"tasks": ["mmlu"], "numFewshot": 5, "includePath": "pvc://tasks/mine"}}],
    "precision": "FP32",
    "resources": {"gpus": 1, "cpu": "4", "memory": "16Gi"},
    "scheduling": {"nodeSelector": {"pool": "gpu"}},
}
TASKS = claim("tasks")


def test_the_manifests_are_the_golden_ones() -> None:
    world = Evaluation(FULL, READY_JOB, *CLAIMS, TASKS)
    world.finish()
    made = [child for (kind, _), child in sorted(world.children.items()) if kind == "Job"]
    text = as_yaml(made)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_evaluate_is_told_the_model_and_the_suites_with_their_defaults() -> None:
    world = Evaluation(FULL, READY_JOB, *CLAIMS, TASKS)
    world.rest()
    given = world.input("Evaluate", "tested")
    EvaluateInput.model_validate(given)
    assert given["model"] == {"name": "tested", "uri": f"{RUN}/w8a8", "digest": W8A8}
    assert given["suites"][0]["perplexity"]["maxLength"] == 1024
    assert given["suites"][1] == FULL["suites"][1]
    assert (given["device"], given["precision"], given["outputURI"]) == ("GPU", "FP32", "pvc://models/team-a")


def test_evaluate_is_told_the_gate_to_check_it_first_where_its_image_knows_that() -> None:
    world = Evaluation(GATED, READY_JOB, *CLAIMS)
    world.rest()
    assert world.input("Evaluate", "base")["gate"] == GATED["gate"]
    older = Evaluation(GATED, READY_JOB, *CLAIMS)
    older.owner["status"] = {name: value for name, value in world.status.items() if name in ("evaluated", "resolved")}
    older.owner["status"]["resolved"].pop("contractVersion")
    older.rest()
    assert "gate" not in older.input("Evaluate", "base")
    without = Evaluation(PLAIN, READY_JOB, *CLAIMS)
    without.rest()
    assert "gate" not in without.input("Evaluate", "tested")


def test_precision_has_a_default() -> None:
    world = Evaluation(PLAIN, READY_JOB, *CLAIMS)
    world.rest()
    assert (world.input("Evaluate", "tested")["precision"], world.input("Evaluate", "tested")["device"]) == ("BF16", "CPU")


def test_a_plain_uri_has_no_digest_until_it_is_evaluated() -> None:
    world = Evaluation(BY_URI, *CLAIMS)
    world.rest()
    assert world.input("Evaluate", "tested")["model"] == {"name": "tested", "uri": "pvc://models/mine"}
    world.finish()
    assert world.input("Compare")["tested"] == {"name": "tested", "uri": "pvc://models/mine", "digest": FOUND}
    assert "lineage" not in world.input("Compare")


def test_compare_is_told_all_models_where_their_results_lie_and_the_lineage() -> None:
    world = Evaluation(GATED | {"resources": {"gpus": 2}}, READY_JOB, *CLAIMS)
    world.finish()
    given = world.input("Compare")
    CompareInput.model_validate(given)
    assert given["tested"]["digest"] == W8A8
    assert [(each["name"], each["digest"]) for each in given["baselines"]] == [("base", BASE), ("unquantized", MERGED)]
    assert given["evaluations"] == {name: f"{given['runURI']}/results/evaluate-{name}.json" for name in ("tested", "base", "unquantized")}
    assert given["gate"] == GATED["gate"]
    assert given["lineage"]["runURI"] == RUN
    assert given["lineage"]["stages"][1] == {"name": "Train", "startTime": "2026-01-01T00:01:00Z", "completionTime": "2026-01-01T02:00:00Z"}
    assert given["device"] == "CPU", "comparing needs no GPU"
    limits = world.job("Compare")["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert "nvidia.com/gpu" not in limits


def test_nothing_is_made_while_something_is_missing() -> None:
    world = Evaluation(GATED, *CLAIMS)
    world.rest()
    assert world.children == {}


def test_references_name_every_fine_tune_job_and_every_claim() -> None:
    rival = {"name": "rival", "model": {"fineTuneJobRef": {"name": "other"}, "artifact": "Merged"}}
    far = {"name": "far", "model": {"uri": "pvc://elsewhere/model"}}
    spec = FULL | {"baselines": [{"name": "base"}, rival, far], "output": {"uri": "pvc://results/x"}}
    Spec.model_validate(spec)
    claims = {("PersistentVolumeClaim", name) for name in ("datasets", "tasks", "elsewhere", "results")}
    assert references(spec) == {("FineTuneJob", "bot"), ("FineTuneJob", "other")} | claims


def test_a_stage_reads_its_inputs_and_writes_its_output_only() -> None:
    world = Evaluation(FULL | {"output": {"uri": "pvc://results"}}, READY_JOB, *CLAIMS, TASKS)
    world.rest()
    mounts = world.job("Evaluate", "tested")["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    writable = {mount["mountPath"]: not mount.get("readOnly") for mount in mounts if mount["mountPath"].startswith("/mnt")}
    assert writable == {"/mnt/pvc/datasets": False, "/mnt/pvc/models": False, "/mnt/pvc/results": True, "/mnt/pvc/tasks": False}
