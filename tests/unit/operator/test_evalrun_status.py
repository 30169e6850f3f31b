"""An EvalRun's states: what it waits for, what it pins, how it ends."""

import pytest

from tests.unit.operator.evalruns import (
    BASE,
    BY_URI,
    CLAIMS,
    FAILED,
    FOUND,
    GATED,
    MERGED,
    PLAIN,
    READY_JOB,
    RUN,
    W8A8,
    Evaluation,
    artifact,
    job,
)
from tests.unit.operator.makers import claim, condition, refusal
from tunesmith.core.objects import Key, Object
from tunesmith.evalrun.api import references
from tunesmith.evalrun.status_schema import EvalRunStatus

JOB = Key("FineTuneJob", "team-a", "bot")
RUNNING = (condition("Ready", "False"), condition("Stalled", "False"), condition("Succeeded", "Unknown"))


def gated(*named: Object) -> Evaluation:
    return Evaluation(GATED, *(named or (READY_JOB,)), *CLAIMS)


@pytest.mark.parametrize(
    ("named", "reason", "message"),
    [
        ((), "DependencyNotReady", "FineTuneJob bot does not exist"),
        ((job(conditions=()),), "DependencyNotReady", "has not finished artifact w8a8"),
        ((job(artifact("Merged", MERGED), conditions=RUNNING),), "DependencyNotReady", "has not finished artifact w8a8"),
    ],
)
def test_it_waits_for_the_artifact(named: tuple[Object, ...], reason: str, message: str) -> None:
    world = Evaluation(GATED, *named, *CLAIMS)
    world.rest()
    assert world.told("Reconciling") == ("True", reason)
    assert message in world.message("Ready")
    assert world.truths() == {
        "Ready": "False",
        "Reconciling": "True",
        "Stalled": "False",
        "Succeeded": "Unknown",
        "Finished": "False",
        "Suspended": "False",
    }
    assert world.children == {}
    assert not {"evaluated", "resolved"} & world.status.keys()


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (job(conditions=FAILED), "FineTuneJob bot failed before artifact w8a8: EmptyDataset: no row is left"),
        (job(artifact("Merged", MERGED)), "is done and has no artifact w8a8"),
    ],
)
def test_a_job_that_will_never_make_the_artifact_stalls_it_but_does_not_end_it(named: Object, message: str) -> None:
    world = gated(named)
    world.rest()
    assert world.told("Stalled") == ("True", "DependencyFailed")
    assert message in world.message("Stalled")
    assert (world.told("Succeeded")[0], world.told("Finished")[0]) == ("Unknown", "False")
    world.references[JOB] = READY_JOB
    world.rest()
    assert world.jobs() == ["Evaluate base 1", "Evaluate tested 1", "Evaluate unquantized 1"]


def deployment(*states: str, **conditions: str) -> Object:
    """A ModelDeployment with revisions in these states; the n-th serves the n-th digest."""
    digests = (W8A8, MERGED)
    revisions = [{"state": state, "uri": f"{RUN}/{state}", "digest": digest} for state, digest in zip(states, digests, strict=False)]
    told = [condition(kind, "True", reason, "for a reason") for kind, reason in conditions.items()]
    status = {"revisions": revisions, "conditions": told}
    return {"kind": "ModelDeployment", "metadata": {"name": "served"}, "spec": {}, "status": status}


OF_SERVED: Object = BY_URI | {"model": {"modelDeploymentRef": {"name": "served"}}}


@pytest.mark.parametrize(
    ("named", "condition", "reason", "message"),
    [
        ((), "Reconciling", "DependencyNotReady", "ModelDeployment served does not exist"),
        ((deployment("Candidate"),), "Reconciling", "DependencyNotReady", "ModelDeployment served does not serve a model yet"),
        (
            (deployment("Candidate", Stalled="OutOfMemory"),),
            "Stalled",
            "DependencyFailed",
            "ModelDeployment served failed before it served a model: OutOfMemory: for a reason",
        ),
    ],
)
def test_a_deployment_that_serves_nothing_yet_is_waited_for(named: tuple[Object, ...], condition: str, reason: str, message: str) -> None:
    world = Evaluation(OF_SERVED, *named, *CLAIMS)
    world.rest()
    assert (world.told(condition), world.message("Ready")) == (("True", reason), message)
    world.references[Key("ModelDeployment", "team-a", "served")] = deployment("Active")
    world.rest()
    assert world.jobs() == ["Evaluate tested 1"]


def test_of_a_deployment_what_serves_is_measured_and_stays_pinned_when_it_changes_or_goes() -> None:
    baseline = {"name": "served", "model": {"modelDeploymentRef": {"name": "served"}}}
    world = Evaluation(OF_SERVED | {"baselines": [baseline]}, deployment("Candidate", "Active"), *CLAIMS)
    world.rest()
    pinned = {"uri": f"{RUN}/Active", "digest": MERGED}
    assert (world.status["evaluated"], world.status["resolved"]["baselines"]) == (pinned, [{"name": "served", **pinned}])
    world.references[Key("ModelDeployment", "team-a", "served")] = deployment("Active")
    world.rest()
    assert world.status["evaluated"] == pinned
    del world.references[Key("ModelDeployment", "team-a", "served")]
    assert world.finish()["evaluated"] == pinned


def test_the_volume_of_a_served_model_need_not_be_named_by_anything_that_is_left() -> None:
    world = Evaluation(OF_SERVED, deployment("Active"), claim("datasets"), claim("results"))
    world.rest()
    assert world.jobs() == ["Evaluate tested 1"]


def test_references_are_all_that_the_spec_names() -> None:
    models = [{"fineTuneJobRef": {"name": "bot"}, "artifact": "Merged"}, {"uri": "pvc://models/rival"}]
    baselines = [{"name": "base"}, *({"name": f"b{number}", "model": model} for number, model in enumerate(models))]
    assert references(OF_SERVED | {"baselines": baselines}) == {
        ("ModelDeployment", "served"),
        ("FineTuneJob", "bot"),
        *(("PersistentVolumeClaim", name) for name in ("datasets", "models", "results")),
    }


def test_a_base_model_that_is_not_resolved_is_waited_for() -> None:
    early = job(artifact("Merged", MERGED), artifact("w8a8", W8A8), conditions=RUNNING)
    early["status"]["resolved"]["model"].pop("digest")
    world = gated(early)
    world.rest()
    assert world.told("Ready") == ("False", "DependencyNotReady")
    assert "has not resolved its base model" in world.message("Ready")


def test_unquantized_needs_a_job_that_makes_merged() -> None:
    world = Evaluation(GATED, job(artifact("w8a8", W8A8)), *CLAIMS)
    world.rest()
    assert world.told("Stalled") == ("True", "NoUnquantizedModel")
    assert "`output.artifacts`" in world.message("Stalled")
    world.references[JOB] = job(artifact("w8a8", W8A8), conditions=RUNNING)
    world.rest()
    assert world.told("Reconciling") == ("True", "DependencyNotReady")


def test_volumes_that_do_not_exist_are_waited_for_and_named() -> None:
    world = Evaluation(GATED, READY_JOB, claim("models"))
    world.rest()
    assert world.told("Ready") == ("False", "VolumeNotFound")
    assert world.message("Ready").endswith("do not exist: datasets")
    world.references[Key("PersistentVolumeClaim", "team-a", "datasets")] = claim("datasets")
    world.rest()
    assert world.told("Ready") == ("False", "Starting")


def test_the_volume_of_the_fine_tune_job_must_exist_too() -> None:
    world = Evaluation(GATED, READY_JOB, claim("datasets"))
    world.rest()
    assert world.message("Ready").endswith("do not exist: models")


def test_more_volumes_than_a_pod_may_mount_are_refused() -> None:
    suites = [{"name": f"s{i}", "perplexity": {"dataset": {"uri": f"pvc://data-{i}/x.jsonl", "format": "Text"}}} for i in range(9)]
    world = Evaluation(PLAIN | {"suites": suites}, READY_JOB, *CLAIMS)
    world.rest()
    assert world.told("Stalled") == ("True", "TooManyVolumes")


def test_it_pins_the_models_the_images_and_the_folders() -> None:
    world = gated()
    world.rest()
    status = world.status
    assert status["evaluated"] == {"uri": f"{RUN}/w8a8", "digest": W8A8}
    resolved = status["resolved"]
    assert resolved["baselines"] == [
        {"name": "base", "uri": "pvc://models/cache/base", "digest": BASE},
        {"name": "unquantized", "uri": f"{RUN}/merged", "digest": MERGED},
    ]
    assert resolved["images"] == {"trainer": "registry.example/trainer:1"}
    assert resolved["outputURI"] == "pvc://models/team-a"
    assert resolved["runURI"].startswith("pvc://models/team-a/team-a/bot-eval/")
    assert len(resolved["runURI"].rsplit("/", 1)[1]) == 12
    assert [stage["name"] for stage in resolved["lineage"]["stages"]] == ["Prepare", "Train"]


def test_once_pinned_nothing_behind_the_names_matters() -> None:
    world = gated()
    pinned = world.rest()
    world.references.clear()
    world.upgrade()
    world.evaluated("tested")
    after = world.rest()
    assert (after["evaluated"], after["resolved"]) == (pinned["evaluated"], pinned["resolved"])
    world.evaluated("base")
    world.evaluated("unquantized")
    world.rest()
    world.compared()
    assert world.rest()["verdict"] == "Passed"


def test_the_folder_depends_on_all_that_determines_the_result_and_on_nothing_else() -> None:
    def folder(spec: Object, named: Object = READY_JOB, upgraded: bool = False) -> str:
        world = Evaluation(spec, named, *CLAIMS)
        if upgraded:
            world.upgrade()
        return str(world.rest()["resolved"]["runURI"])

    first = folder(GATED)
    assert folder(GATED | {"retries": 9, "resources": {"cpu": "2"}}) == first
    others = [
        folder(GATED | {"precision": "FP32"}),
        folder(GATED | {"gate": GATED["gate"][1:]}),
        folder(GATED | {"baselines": [{"name": "base"}]}),
        folder(GATED, upgraded=True),
        folder(GATED, named=job(artifact("Merged", MERGED), artifact("w8a8", FOUND))),
    ]
    assert len({first, *others}) == 6


def test_models_are_evaluated_side_by_side_and_then_compared() -> None:
    world = gated()
    assert world.rest()["stage"] == "Evaluate"
    assert world.jobs() == ["Evaluate base 1", "Evaluate tested 1", "Evaluate unquantized 1"]
    for name in ("tested", "base", "unquantized"):
        world.run("Evaluate", name)
    world.rest()
    assert world.told("Reconciling") == ("True", "Evaluate")
    world.evaluated("tested")
    world.evaluated("base")
    world.rest()
    assert world.jobs() == ["Evaluate unquantized 1"]
    world.evaluated("unquantized")
    assert world.rest()["stage"] == "Compare"
    assert world.jobs() == ["Compare 1"]


def test_the_digest_of_a_plain_uri_is_what_evaluate_found() -> None:
    world = Evaluation(BY_URI, *CLAIMS)
    assert world.rest()["evaluated"] == {"uri": "pvc://models/mine"}
    assert world.finish()["evaluated"] == {"uri": "pvc://models/mine", "digest": FOUND}
    assert "lineage" not in world.status["resolved"]


def test_bad_settings_end_it_at_once() -> None:
    world = gated()
    world.rest()
    world.end("Evaluate", refusal("Evaluate", 64, "SourceNotFound", "task mmlux is not known"), "tested")
    status = world.rest()
    assert world.told("Stalled") == ("True", "SourceNotFound")
    assert world.message("Stalled") == "Evaluate tested failed: task mmlux is not known"
    assert (world.told("Succeeded")[0], world.told("Finished")[0]) == ("False", "True")
    assert status["stage"] == "Failed"
    assert world.jobs() == []
    assert "verdict" not in status


def test_other_failures_are_tried_again_until_the_retries_are_spent() -> None:
    world = Evaluation(PLAIN | {"retries": 1}, READY_JOB, *CLAIMS)
    world.rest()
    world.end("Evaluate", refusal("Evaluate", 70, "InternalError", "no answer"), "tested")
    world.rest()
    assert world.told("Reconciling")[0] == "True"
    world.later(600)
    world.rest()
    assert world.jobs() == ["Evaluate tested 2"]
    world.end("Evaluate", refusal("Evaluate", 70, "InternalError", "no answer"), "tested")
    world.rest()
    assert world.told("Stalled") == ("True", "InternalError")
    assert [entry["attempt"] for entry in world.status["attempts"]] == [1, 2]


def test_suspend_removes_the_jobs_and_resume_goes_on() -> None:
    world = gated()
    world.rest()
    world.evaluated("base")
    world.rest()
    world.run("Evaluate", "tested")
    world.edit(suspend=True)
    world.rest()
    assert world.told("Reconciling") == ("True", "Suspending")
    world.vanish()
    world.rest()
    assert world.jobs() == []
    assert world.told("Suspended") == ("True", "Suspended")
    assert world.truths()["Reconciling"] == "False"
    world.edit(suspend=False)
    world.rest()
    assert [name.rsplit(" ", 1)[0] for name in world.jobs()] == ["Evaluate tested", "Evaluate unquantized"]
    assert world.status["retriesSpent"] == 0


def test_an_object_made_suspended_waits_for_its_dependencies_all_the_same() -> None:
    world = Evaluation(GATED | {"suspend": True}, *CLAIMS)
    world.rest()
    assert world.told("Suspended") == ("True", "Suspended")
    assert world.children == {}


def test_what_is_over_stays_over() -> None:
    world = gated()
    finished = world.finish()
    world.children.clear()
    world.references.clear()
    world.problem = {"reason": "Forbidden", "message": "no"}
    world.edit(suspend=True, retries=7)
    world.later(86400)
    after = world.rest()
    assert world.children == {}
    assert after["observedGeneration"] == 2
    kept = finished.keys() - {"observedGeneration", "conditions"}
    assert {name: after[name] for name in kept} == {name: finished[name] for name in kept}
    times = [[(entry["type"], entry["status"], entry["lastTransitionTime"]) for entry in status["conditions"]] for status in (finished, after)]
    assert times[0] == times[1]


def test_a_write_that_a_person_must_mend_is_told() -> None:
    world = gated()
    world.problem = {"reason": "NameConflict", "message": "Job x belongs to another"}
    world.rest()
    assert world.told("Stalled") == ("True", "NameConflict")
    assert world.told("Finished")[0] == "False"


def test_a_second_look_changes_nothing() -> None:
    world = gated()
    world.finish()
    before = world.status
    world.later(3600)
    world.step()
    assert world.status == before
    assert not (world.plan.create or world.plan.apply or world.plan.delete)


@pytest.mark.parametrize("world", [gated(), Evaluation(PLAIN, READY_JOB, *CLAIMS), Evaluation(BY_URI, *CLAIMS)])
def test_every_status_on_the_way_fits_the_schema(world: Evaluation) -> None:
    for status in (world.step(), world.rest(), world.finish()):
        EvalRunStatus.model_validate(status)
