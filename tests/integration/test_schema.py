"""What the real API server accepts and refuses of the three kinds, and which path it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dev.cluster.processes import wait_until
from tests.integration.schema_examples import CHANGED, FULL, MESSAGES, MINIMAL, changed
from tests.integration.schema_server import APPLY, PLURALS, Object, Server, manifest
from tests.unit.operator.statuses import WALKS
from tunesmith import crd
from tunesmith.evalrun import api as evalrun
from tunesmith.finetunejob import api as finetunejob
from tunesmith.kinds import KINDS

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.yaml"))
EVERY_KIND = pytest.mark.parametrize("kind", PLURALS)
IMMUTABLE = [("FineTuneJob", name) for name in finetunejob.IMMUTABLE] + [("EvalRun", name) for name in evalrun.IMMUTABLE]
CHANGEABLE = [(kind, field) for kind, field in IMMUTABLE if field in CHANGED[kind]]
EVERY_IMMUTABLE = pytest.mark.parametrize(("kind", "field"), IMMUTABLE)
W8A8 = FULL["FineTuneJob"]["variants"][0]
JOB_MODEL = {"fineTuneJobRef": {"name": "other"}, "artifact": "Merged"}
ADAPTER = {"fineTuneJobRef": {"name": "other"}, "artifact": "Adapter"}
VARIANT = {"fineTuneJobRef": {"name": "other"}, "artifact": "w8a8"}


@EVERY_KIND
@pytest.mark.parametrize("examples", [MINIMAL, FULL], ids=["minimal", "full"])
def test_a_valid_object_is_accepted_and_does_not_look_done(server: Server, kind: str, examples: dict[str, Object]) -> None:
    answer = server.create(kind, examples[kind])
    assert (answer.code, answer.warnings) == (201, []), answer.body
    assert answer.body["status"] == {"observedGeneration": -1}
    added = {"replicas": 1} if kind == "ModelDeployment" else {}
    assert answer.body["spec"] == added | examples[kind]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: "/".join(path.parts[-2:]))
def test_an_example_is_accepted_as_it_is(server: Server, path: Path) -> None:
    done = server.kubectl("create", "--dry-run=server", "--validate=strict", f"--filename={path}")
    assert done.returncode == 0, done.stderr


REFUSED = [
    # floats and wrong types
    ("FineTuneJob", "retries", 1.5, "spec.retries", "type int32"),
    ("FineTuneJob", "training.learningRate", 0.0002, "spec.training.learningRate", "string"),
    ("EvalRun", "gate.0.min", 0.45, "spec.gate[0].min", "string"),
    ("FineTuneJob", "training.learningRate", "fast", "spec.training.learningRate", "should match"),
    ("FineTuneJob", "resources.memory", "much", "spec.resources.memory", "should match"),
    # enums
    ("FineTuneJob", "training.precision", "FP64", "spec.training.precision", "supported values"),
    ("FineTuneJob", "datasets.0.format", "messages", "spec.datasets[0].format", "supported values"),
    ("EvalRun", "precision", "INT8", "spec.precision", "supported values"),
    # unions: more than one member, and none
    ("FineTuneJob", "model", {"uri": "pvc://models/base"} | JOB_MODEL, "spec.model", "exactly one of `uri`, `fineTuneJobRef`"),
    ("FineTuneJob", "model", {}, "spec.model", "exactly one of `uri`, `fineTuneJobRef`"),
    ("FineTuneJob", "model", {"fineTuneJobRef": {"name": "other"}}, "spec.model", "`artifact` goes with `fineTuneJobRef`"),
    ("FineTuneJob", "model", {"uri": "pvc://models/base", "artifact": "Merged"}, "spec.model", "`artifact` goes with `fineTuneJobRef`"),
    ("EvalRun", "model.modelDeploymentRef", {"name": "served"}, "spec.model", "exactly one of `uri`, `fineTuneJobRef`, `modelDeploymentRef`"),
    ("EvalRun", "model", {"modelDeploymentRef": {"name": "a"}, "artifact": "Merged"}, "spec.model", "`artifact` goes with `fineTuneJobRef`"),
    ("FineTuneJob", "validation", {"fraction": "0.1", "dataset": MESSAGES}, "spec.validation", "exactly one of"),
    ("FineTuneJob", "validation", {}, "spec.validation", "exactly one of"),
    ("FineTuneJob", "method", {}, "spec.method", "exactly one of"),
    ("FineTuneJob", "adapter", {}, "spec.adapter", "exactly one of"),
    ("FineTuneJob", "parallelism", {"nodes": 2}, "spec.parallelism", "exactly one of"),
    ("FineTuneJob", "parallelism", {"nodes": 2, "minNodes": 3, "ddp": {}}, "spec.parallelism.minNodes", "at most `nodes`"),
    ("FineTuneJob", "parallelism", {"minNodes": 2, "ddp": {}}, "spec.parallelism.minNodes", "at most `nodes`"),
    ("FineTuneJob", "parallelism", {"ddp": {}, "fsdp": {}}, "spec.parallelism", "exactly one of"),
    ("FineTuneJob", "parallelism", {"deepSpeed": {"zeroStage": 1}}, "spec.parallelism.deepSpeed.zeroStage", "supported values"),
    ("EvalRun", "suites.0.perplexity", {"dataset": MESSAGES}, "spec.suites[0]", "exactly one of"),
    ("EvalRun", "suites.0.harness", None, "spec.suites[0]", "exactly one of"),
    ("EvalRun", "gate.0.max", "0.9", "spec.gate[0]", "exactly one of"),
    ("EvalRun", "gate.0.min", None, "spec.gate[0]", "exactly one of"),
    ("ModelDeployment", "engine", {}, "spec.engine", "exactly one of"),
    # bounds
    ("FineTuneJob", "training.numTrainEpochs", 0, "spec.training.numTrainEpochs", "greater than or equal to 1"),
    ("FineTuneJob", "training.seed", 2**31, "spec.training.seed", "less than or equal to 2147483647"),
    ("FineTuneJob", "checkpoints.gracePeriodSeconds", 5, "spec.checkpoints.gracePeriodSeconds", "greater than or equal to 10"),
    ("FineTuneJob", "validation.fraction", "0.5", "spec.validation.fraction", "below 0.5"),
    ("FineTuneJob", "validation.fraction", "0", "spec.validation.fraction", "above 0"),
    ("FineTuneJob", "datasets", [], "spec.datasets", "at least 1 items"),
    ("FineTuneJob", "datasets", [{"name": f"d{i}", **MESSAGES} for i in range(17)], "spec.datasets", "at most 16 items"),
    ("FineTuneJob", "preparation.dropPatterns", ["x" * 257], "spec.preparation.dropPatterns[0]", "more than 256"),
    ("FineTuneJob", "training.overrides", {f"k{i}": "1" for i in range(33)}, "spec.training.overrides", "at most 32"),
    ("ModelDeployment", "replicas", -1, "spec.replicas", "greater than or equal to 0"),
    ("ModelDeployment", "gate.evalRunRefs", [], "spec.gate.evalRunRefs", "at least 1 items"),
    # map keys
    ("FineTuneJob", "training.overrides", {"--flag": "1"}, "spec.training.overrides", "of the form"),
    ("FineTuneJob", "training.overrides", {"k" * 65: "1"}, "spec.training.overrides", "at most 64 characters"),
    ("FineTuneJob", "scheduling.nodeSelector", {"a b": ""}, "spec.scheduling.nodeSelector", "of the form"),
    # what a pod's schema would refuse later
    ("FineTuneJob", "scheduling.nodeSelector", {"pool": "a b"}, "spec.scheduling.nodeSelector.pool", "should match"),
    ("ModelDeployment", "scheduling.tolerations", [{}], "spec.scheduling.tolerations[0].operator", "must be Exists"),
    ("ModelDeployment", "scheduling.tolerations", [{"key": "", "value": "x"}], "spec.scheduling.tolerations[0].operator", "must be Exists"),
    ("EvalRun", "scheduling.tolerations.0.value", "x", "spec.scheduling.tolerations[0].value", "absent with `operator` Exists"),
    ("EvalRun", "scheduling.tolerations.0.effect", "NoSchedule", "spec.scheduling.tolerations[0].tolerationSeconds", "NoExecute"),
    # names
    ("FineTuneJob", "variants.0.name", "Merged", "spec.variants[0].name", "should match"),
    ("FineTuneJob", "datasets.0.name", "n" * 41, "spec.datasets[0].name", "more than 40"),
    ("EvalRun", "model.artifact", "merged_model", "spec.model.artifact", "should match"),
    ("EvalRun", "baselines.0.name", "tested", "spec.baselines[0].name", "the model under test"),
    # an adapter is no model
    ("EvalRun", "model.artifact", "Adapter", "spec.model.artifact", "no model by itself: name Merged or a variant"),
    ("EvalRun", "baselines.2.model", ADAPTER, "spec.baselines[2].model.artifact", "no model by itself: name Merged or a variant"),
    ("ModelDeployment", "model.artifact", "Adapter", "spec.model.artifact", "no model by itself: name Merged or a variant"),
    ("FineTuneJob", "model", ADAPTER, "spec.model.artifact", "no model by itself: name Merged or a variant"),
    # a variant is quantized
    ("FineTuneJob", "model", VARIANT, "spec.model.artifact", "must be Merged: a variant is quantized, and a quantized model cannot be fine-tuned"),
    # references stay in the namespace
    ("EvalRun", "model.fineTuneJobRef.name", "other-team/job", "spec.model.fineTuneJobRef.name", "should match"),
    ("ModelDeployment", "gate.evalRunRefs.0.name", "other-team.job", "spec.gate.evalRunRefs[0].name", "should match"),
    # URIs stay on their claim
    ("FineTuneJob", "output.uri", "pvc://models/../other", "spec.output.uri", "must not contain `..`"),
    ("FineTuneJob", "model", {"uri": "pvc://models/.."}, "spec.model.uri", "must not contain `..`"),
    ("FineTuneJob", "datasets.0.uri", "pvc://../chat.jsonl", "spec.datasets[0].uri", "must not contain `..`"),
    ("FineTuneJob", "datasets.0.uri", "/etc/passwd", "spec.datasets[0].uri", "should match"),
    ("EvalRun", "suites.0.harness.includePath", "pvc://x/../y", "spec.suites[0].harness.includePath", "must not contain `..`"),
    # duplicate names
    ("FineTuneJob", "datasets", [{"name": "chat", **MESSAGES}] * 2, "spec.datasets", "must be unique"),
    ("FineTuneJob", "variants", [W8A8, W8A8], "spec.variants", "must be unique"),
    ("EvalRun", "suites", [FULL["EvalRun"]["suites"][1]] * 2, "spec.suites", "must be unique"),
    ("EvalRun", "baselines", [*FULL["EvalRun"]["baselines"], {"name": "base"}], "spec.baselines", "must be unique"),
    # fields that depend on one another
    ("FineTuneJob", "adapter", None, "spec.output.artifacts", "Adapter needs `adapter`"),
    ("FineTuneJob", "adapter", None, "spec.baseQuantization", "needs `adapter`"),
    ("FineTuneJob", "parallelism", {"fsdp": {}}, "spec.baseQuantization", "needs `parallelism.ddp`"),
    ("FineTuneJob", "parallelism", {"deepSpeed": {"zeroStage": 3}}, "spec.baseQuantization", "needs `parallelism.ddp`"),
    ("FineTuneJob", "parallelism.processesPerNode", 2, "spec.parallelism.processesPerNode", "at most `resources.gpus`"),
    ("FineTuneJob", "resources", {"gpuMemory": "80Gi"}, "spec.resources.gpuMemory", "needs `gpus`"),
    ("FineTuneJob", "resources", {"gpus": 8, "gpuMemory": "80"}, "spec.resources.gpuMemory", "should match"),
    ("FineTuneJob", "variants.1.quantization.algorithm", "SmoothQuantGPTQ", "spec.variants[1].quantization.algorithm", "needs scheme W8A8"),
    ("FineTuneJob", "variants.0.quantization.groupSize", 64, "spec.variants[0].quantization.groupSize", "needs scheme W4A16"),
    ("EvalRun", "gate.2.baseline", None, "spec.gate[2]", "need `baseline`"),
    ("EvalRun", "gate.0.baseline", "base", "spec.gate[0]", "need `baseline`"),
    ("EvalRun", "gate.2.baseline", "stranger", "spec.gate", "one of `baselines`"),
    ("EvalRun", "baselines.2.model", None, "spec.baselines[2].model", "needs `model`"),
    ("EvalRun", "model", {"uri": "pvc://models/base"}, "spec.baselines", "need a model that is a FineTuneJob's"),
]


@pytest.mark.parametrize(("kind", "path", "value", "field", "told"), REFUSED)
def test_a_bad_value_is_refused_with_its_path(server: Server, kind: str, path: str, value: Any, field: str, told: str) -> None:
    answer = server.create(kind, changed(kind, path, value))
    assert answer.code == 422, answer.body
    assert told in answer.refused[field], answer.refused


@pytest.mark.parametrize(("processes", "resources"), [(8, None), (8, {"gpus": 0}), (8, {"memory": "8Gi"}), (4, {"gpus": 4}), (2, {"gpus": 4})])
def test_as_many_processes_as_gpus_are_accepted_and_any_number_on_cpus(server: Server, processes: int, resources: Object | None) -> None:
    spec = MINIMAL["FineTuneJob"] | {"parallelism": {"processesPerNode": processes, "ddp": {}}} | ({"resources": resources} if resources else {})
    answer = server.create("FineTuneJob", spec)
    assert answer.code == 201, answer.body


def test_an_object_that_a_newer_rule_would_refuse_can_be_changed_suspended_and_written_a_status(server: Server) -> None:
    kind = KINDS["FineTuneJob"]
    field = "spec.parallelism.processesPerNode"
    spec = changed("FineTuneJob", "parallelism.processesPerNode", 2)
    before = crd.manifest(kind)
    rules = before["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"]
    rules[:] = [rule for rule in rules if "optionalOldSelf" not in rule]
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{before['metadata']['name']}"
    try:
        assert server.send("PATCH", f"{path}?fieldManager=test&force=true", before, APPLY).code == 200
        wait_until(lambda: server.create("FineTuneJob", spec, "older").code in (201, 409), "the older rules to hold", 30, 0.1)
    finally:
        server.install(kind)
    wait_until(lambda: field in server.create("FineTuneJob", spec).refused, "the newer rules to hold", 30, 0.1)
    older = server.send("GET", server.path("FineTuneJob", "older"))
    older.body["kind"] = "FineTuneJob"
    written = server.write_status(older, {"observedGeneration": 1, "retriesSpent": 1})
    assert written.code == 200, written.body
    edited = server.update(written, lambda spec: spec.update(suspend=True, retries=7, resources=spec["resources"] | {"memory": "8Gi"}))
    assert edited.code == 200, edited.body
    assert server.write_status(edited, {"observedGeneration": 2}).code == 200


@pytest.mark.parametrize("model", [{"uri": "pvc://models/base"}, {"modelDeploymentRef": {"name": "served"}}], ids=["uri", "served"])
def test_a_model_that_is_not_a_jobs_needs_an_output(server: Server, model: Object) -> None:
    spec = MINIMAL["EvalRun"] | {"model": model}
    assert "`output` is needed" in server.create("EvalRun", spec).refused["spec.output"]
    assert server.create("EvalRun", spec | {"output": {"uri": "pvc://models/out"}}).code == 201


def test_a_job_cannot_be_trained_from_its_own_model(server: Server) -> None:
    spec = MINIMAL["FineTuneJob"] | {"model": JOB_MODEL}
    answer = server.create("FineTuneJob", spec, "other")
    assert answer.code == 422, answer.body
    assert "cannot be trained from its own model" in answer.refused["spec.model.fineTuneJobRef.name"]
    assert server.create("FineTuneJob", spec, "another").code == 201


@EVERY_KIND
@pytest.mark.parametrize("name", ["n" * 41, "has.dot", "1st"])
def test_a_name_that_children_could_not_be_named_after_is_refused(server: Server, kind: str, name: str) -> None:
    answer = server.create(kind, MINIMAL[kind], name)
    assert answer.code == 422
    assert "metadata.name" in answer.refused, answer.body


@EVERY_KIND
def test_a_name_of_forty_characters_is_accepted(server: Server, kind: str) -> None:
    assert server.create(kind, MINIMAL[kind], "n" * 40).code == 201


@pytest.mark.parametrize(("kind", "field"), CHANGEABLE)
def test_an_immutable_field_cannot_be_changed(server: Server, kind: str, field: str) -> None:
    created = server.create(kind, FULL[kind])
    answer = server.update(created, lambda spec: spec.update({field: CHANGED[kind][field]}))
    assert answer.code == 422, answer.body
    assert "is immutable" in answer.refused[f"spec.{field}"], answer.refused


@EVERY_IMMUTABLE
def test_an_immutable_field_cannot_be_removed_to_be_set_anew(server: Server, kind: str, field: str) -> None:
    answer = server.update(server.create(kind, FULL[kind]), lambda spec: spec.pop(field))
    assert answer.code == 422, answer.body
    assert f"spec.{field}" in answer.refused, answer.refused


@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind, field in IMMUTABLE if field not in MINIMAL[kind]])
def test_an_immutable_field_cannot_be_added_later(server: Server, kind: str, field: str) -> None:
    value = [FULL[kind][field][0]] if field == "gate" else FULL[kind][field]  # the others need baselines
    answer = server.update(server.create(kind, MINIMAL[kind]), lambda spec: spec.update({field: value}))
    assert answer.code == 422, answer.body
    assert "is immutable" in answer.refused[f"spec.{field}"], answer.refused


def test_every_changed_value_of_the_table_is_valid_by_itself(server: Server) -> None:
    for kind, field in CHANGEABLE:
        spec = FULL[kind] | {field: CHANGED[kind][field]}
        if field in ("baselines", "suites"):
            spec = {name: value for name, value in spec.items() if name != "gate"}
        assert server.create(kind, spec).code == 201, (kind, field)


@pytest.mark.parametrize("kind", ["FineTuneJob", "EvalRun"])
def test_what_does_not_determine_the_result_can_be_changed(server: Server, kind: str) -> None:
    free = {"suspend": True, "retries": 7} | ({"checkpoints": {"keep": 5}} if kind == "FineTuneJob" else {})
    for examples in (MINIMAL, FULL):
        larger = {"resources": examples[kind].get("resources", {}) | {"memory": "64Gi"}}
        assert server.update(server.create(kind, examples[kind]), lambda spec, change=free | larger: spec.update(change)).code == 200


@pytest.mark.parametrize(
    ("before", "after"), [({"gpus": 4}, {"gpus": 8}), ({"gpus": 4}, {}), ({"gpus": 4}, None), (None, {"gpus": 4}), ({}, {"gpus": 4})]
)
def test_a_job_keeps_its_gpus_since_as_many_processes_train(server: Server, before: Object | None, after: Object | None) -> None:
    def with_resources(resources: Object | None) -> Object:
        return MINIMAL["FineTuneJob"] | ({} if resources is None else {"resources": resources})

    created = server.create("FineTuneJob", with_resources(before))
    answer = server.update(created, lambda spec: (spec.clear(), spec.update(with_resources(after))))
    assert answer.code == 422, answer.body
    assert "is immutable" in answer.refused["spec.resources.gpus"], answer.refused


@pytest.mark.parametrize(("before", "after"), [(None, {"gpus": 0}), ({"gpus": 0}, {"memory": "8Gi"}), ({"gpus": 4}, {"gpus": 4, "cpu": "8"})])
def test_resources_that_ask_for_as_many_gpus_can_be_changed(server: Server, before: Object | None, after: Object) -> None:
    created = server.create("FineTuneJob", MINIMAL["FineTuneJob"] | ({"resources": before} if before else {}))
    assert server.update(created, lambda spec: spec.update(resources=after)).code == 200


@pytest.mark.parametrize("kind", ["FineTuneJob", "EvalRun"])
def test_scheduling_can_be_changed_while_suspended_only(server: Server, kind: str) -> None:
    elsewhere = {"scheduling": {"nodeSelector": {"zone": "b"}}}
    running = server.create(kind, FULL[kind])
    assert "only while suspended" in server.update(running, lambda spec: spec.update(elsewhere)).refused["spec.scheduling"]
    assert "only while suspended" in server.update(running, lambda spec: spec.pop("scheduling")).refused["spec.scheduling"]
    held = server.update(running, lambda spec: spec.update(suspend=True))
    moved = server.update(held, lambda spec: spec.update(elsewhere))
    assert moved.code == 200, moved.body
    back = server.update(moved, lambda spec: spec.update(suspend=False, scheduling=FULL[kind]["scheduling"]))
    assert back.code == 200, back.body


def test_everything_in_a_model_deployment_can_be_changed(server: Server) -> None:
    created = server.create("ModelDeployment", FULL["ModelDeployment"])
    assert server.update(created, lambda spec: (spec.clear(), spec.update(MINIMAL["ModelDeployment"]))).code == 200


UNKNOWN = [
    ("FineTuneJob", "training.lr", "spec.training.lr"),
    ("EvalRun", "model.fineTuneJobRef.namespace", "spec.model.fineTuneJobRef.namespace"),
    ("ModelDeployment", "gate.evalRunRefs.0.namespace", "spec.gate.evalRunRefs[0].namespace"),
]
EVERY_UNKNOWN = pytest.mark.parametrize(("kind", "path", "field"), UNKNOWN)


@EVERY_UNKNOWN
def test_kubectl_refuses_an_unknown_field(server: Server, kind: str, path: str, field: str) -> None:
    done = server.kubectl("create", "-f", "-", body=manifest(kind, changed(kind, path, "x")))
    assert done.returncode != 0
    assert f'unknown field "{field}"' in done.stderr


@EVERY_UNKNOWN
def test_server_side_apply_refuses_an_unknown_field(server: Server, kind: str, path: str, field: str) -> None:
    body = manifest(kind, changed(kind, path, "x"))
    answer = server.send("PATCH", server.path(kind, body["metadata"]["name"]) + "?fieldManager=test", body, APPLY)
    assert answer.code >= 400
    assert f".{field}: field not declared in schema" in answer.body["message"]


@EVERY_UNKNOWN
def test_a_plain_post_prunes_an_unknown_field_with_a_warning(server: Server, kind: str, path: str, field: str) -> None:
    answer = server.create(kind, changed(kind, path, "x"), query="")
    assert answer.code == 201
    assert any(f'unknown field \\"{field}\\"' in warning for warning in answer.warnings), answer.warnings
    assert answer.body["spec"] == FULL[kind]


def test_scale_reads_and_writes_replicas(server: Server) -> None:
    created = server.create("ModelDeployment", FULL["ModelDeployment"])
    server.write_status(created, {"observedGeneration": 1, "replicas": 3, "selector": "a=b,c=d"})
    path = server.path("ModelDeployment", created.body["metadata"]["name"])
    scale = server.send("GET", f"{path}/scale")
    assert (scale.body["spec"], scale.body["status"]) == ({"replicas": 2}, {"replicas": 3, "selector": "a=b,c=d"})
    scale.body["spec"]["replicas"] = 5
    assert server.send("PUT", f"{path}/scale", scale.body).code == 200
    assert server.send("GET", path).body["spec"]["replicas"] == 5


@EVERY_KIND
def test_every_status_that_the_operator_writes_is_kept_as_it_is(server: Server, kind: str) -> None:
    answer = server.create(kind, MINIMAL[kind])
    for status in WALKS[kind]():
        answer = server.write_status(answer, status)
        assert answer.code == 200, answer.body
        assert answer.body["status"] == status


def test_status_written_with_the_object_itself_is_ignored(server: Server) -> None:
    created = server.create("EvalRun", MINIMAL["EvalRun"])
    body = created.body | {"status": {"observedGeneration": 1, "verdict": "Passed"}}
    answer = server.send("PUT", server.path("EvalRun", created.body["metadata"]["name"]), body)
    assert answer.body["status"] == {"observedGeneration": -1}


def test_get_tunesmith_lists_all_three_kinds_with_their_columns(server: Server) -> None:
    created = server.create("FineTuneJob", MINIMAL["FineTuneJob"])
    progress = {"progressPercentage": 42, "estimatedRemainingSeconds": 77, "metrics": [{"name": "loss", "value": "1.234"}]}
    assert server.write_status(created, {"observedGeneration": 1, "stage": "Train", "progress": progress}).code == 200
    server.create("EvalRun", MINIMAL["EvalRun"])
    server.create("ModelDeployment", MINIMAL["ModelDeployment"])
    listed = server.kubectl("get", "tunesmith").stdout
    row = next(line for line in listed.splitlines() if f"finetunejob.tunesmith.dev/{created.body['metadata']['name']} " in line)
    assert row.split()[1:5] == ["Train", "42", "1.234", "77"]
    assert "evalrun.tunesmith.dev/" in listed
    assert "modeldeployment.tunesmith.dev/" in listed
