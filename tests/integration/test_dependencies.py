"""What the three kinds make of one another on a real API server: failed, deleted, made anew, waiting in a ring."""

from __future__ import annotations

from dev.bench.life import COMPARED, DIGEST, MERGED, answer
from dev.cluster.controlplane import ControlPlane
from tests.integration import served
from tests.integration.operators import EVAL_RUN, EVALUATED, FINE_TUNE_JOB, MODEL_DEPLOYMENT, RESULTS, Namespace, OperatorProcess, Writes
from tunesmith.api.conditions import find
from tunesmith.core.objects import Object

BAD_SETTINGS = {"outcome": "Failed", "exitCode": 64, "reason": "InvalidOverrides", "message": "lerning_rate is unknown"}
OTHER_DIGEST = "sha256:" + "1" * 64
OTHER_MODEL: Object = {**MERGED, "digest": OTHER_DIGEST}


def told(space: Namespace, kind: str, name: str) -> str:
    """Reason of the Stalled condition; empty unless it is True."""
    found = find(space.status(kind, name), "Stalled") or {"status": ""}
    return found["reason"] if found["status"] == "True" else ""


def evaluate(space: Namespace, run: Object, model: Object = MERGED) -> None:
    """Let an EvalRun of the job's artefact pass."""
    space.play(run, "Evaluate", {**EVALUATED, "model": {"name": "tested", "uri": model["uri"], "digest": model["digest"]}}, part="tested")
    space.play(run, "Compare", COMPARED)


def train(space: Namespace, artifact: Object = MERGED) -> None:
    """A FineTuneJob `tune` that makes `artifact`."""
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    for stage, result in (RESULTS | {"Finalize": {"artifacts": [artifact]}}).items():
        space.play(tune, stage, result)


def chain(space: Namespace) -> str:
    """The whole chain, serving; the name of its revision."""
    train(space)
    evaluate(space, space.create("EvalRun", "judge", EVAL_RUN))
    return served.serve(space, MODEL_DEPLOYMENT)


def test_a_failed_job_stalls_what_waits_for_it_until_it_is_made_anew(operator: OperatorProcess, space: Namespace) -> None:
    run = space.create("EvalRun", "judge", EVAL_RUN)
    space.create("ModelDeployment", "serve", MODEL_DEPLOYMENT)
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    (pod,) = space.wait_pods(tune, "Prepare")
    space.end_pod(pod, answer("Prepare", 1, BAD_SETTINGS), 64)
    for kind, name in (("EvalRun", "judge"), ("ModelDeployment", "serve")):
        space.wait(lambda kind=kind, name=name: told(space, kind, name) == "DependencyFailed", f"{kind} to stall")  # type: ignore[misc]
        message = (find(space.status(kind, name), "Stalled") or {})["message"]
        assert "lerning_rate is unknown" in message
    assert (find(space.status("EvalRun", "judge"), "Finished") or {})["status"] == "False"
    space.delete("FineTuneJob", "tune")
    space.wait(lambda: space.get("FineTuneJob", "tune") is None, "the job to go")
    space.wait(lambda: not told(space, "EvalRun", "judge"), "the EvalRun to wait for another")
    train(space)
    evaluate(space, run)
    served.answer_requests(space, served.wait_revision(space, "Candidate"))
    space.wait_condition("ModelDeployment", "serve", "Ready")


def test_a_gate_that_waits_for_itself_is_told_and_what_serves_without_it_is_measured(operator: OperatorProcess, space: Namespace) -> None:
    spec = {**EVAL_RUN, "model": {"modelDeploymentRef": {"name": "serve"}}, "output": {"uri": "pvc://models/out"}}
    run = space.create("EvalRun", "judge", spec)
    space.create("ModelDeployment", "serve", {"model": {"uri": "pvc://models/base"}, "gate": {"evalRunRefs": [{"name": "judge"}]}})
    served.wait_told(space, "Stalled", "GateCycle")
    space.wait(lambda: told(space, "EvalRun", "judge") == "DependencyFailed", "the EvalRun to say so too")
    space.patch("ModelDeployment", "serve", {"spec": {"gate": None}})
    served.answer_requests(space, served.wait_revision(space, "Candidate"))
    space.wait_condition("ModelDeployment", "serve", "Ready")
    assert served.told(space, "GatePassed") == ("Unknown", "NoGate")
    evaluate(space, run, {"uri": "pvc://models/base", "digest": DIGEST})
    assert space.wait_condition("EvalRun", "judge", "Finished")["evaluated"] == {"uri": "pvc://models/base", "digest": DIGEST}


def test_what_was_read_may_be_deleted_and_other_settings_still_roll_out(
    operator: OperatorProcess, space: Namespace, control_plane: ControlPlane
) -> None:
    old = chain(space)
    # Events come after the status that they tell of.
    operator.wait_resyncs(2)
    before = served.status(space)
    writes = Writes(control_plane, space.name)
    space.delete("EvalRun", "judge")
    space.delete("FineTuneJob", "tune")
    space.wait(lambda: not space.all("EvalRun", "FineTuneJob", "Job"), "both to go")
    operator.wait_resyncs(2)
    assert (served.status(space), writes.seen()) == (before, [])
    space.patch("ModelDeployment", "serve", {"spec": {"engine": {"vllm": {"maxModelLen": 64}}}})
    new = served.wait_revision(space, "Candidate")
    served.answer_requests(space, new)
    space.wait(lambda: served.selected(space) == new, "the Service to be switched")
    assert served.wait_revision(space, "Draining") == old


def test_what_is_deleted_before_it_was_read_is_waited_for(operator: OperatorProcess, space: Namespace) -> None:
    space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    space.create("EvalRun", "judge", EVAL_RUN)
    space.create("ModelDeployment", "serve", MODEL_DEPLOYMENT)
    space.wait(lambda: "has not finished" in served.message(space, "Ready"), "it to wait", lambda: served.status(space))
    space.delete("FineTuneJob", "tune")
    for kind, name in (("EvalRun", "judge"), ("ModelDeployment", "serve")):
        space.wait(
            lambda kind=kind, name=name: "FineTuneJob tune does not exist" in (find(space.status(kind, name), "Ready") or {})["message"],  # type: ignore[misc]
            f"{kind} to say what it waits for",
        )


def test_a_job_made_anew_is_served_only_once_its_own_digest_has_passed(operator: OperatorProcess, space: Namespace) -> None:
    old = chain(space)
    before = served.status(space)
    space.delete("FineTuneJob", "tune")
    space.wait(lambda: space.get("FineTuneJob", "tune") is None, "the job to go")
    train(space, OTHER_MODEL)
    space.wait_condition("FineTuneJob", "tune", "Finished")
    operator.wait_resyncs(2)
    # The verdict is about the first digest.
    assert served.status(space) == before
    space.delete("EvalRun", "judge")
    space.wait(lambda: space.get("EvalRun", "judge") is None, "the EvalRun to go")
    run = space.create("EvalRun", "judge", EVAL_RUN)
    space.wait_pods(run, "Evaluate", part="tested")
    operator.wait_resyncs(1)
    assert served.status(space) == before
    evaluate(space, run, OTHER_MODEL)
    new = served.wait_revision(space, "Candidate")
    assert (new != old, served.selected(space)) == (True, old)
    assert {entry["digest"]: entry["state"] for entry in served.status(space)["revisions"]} == {OTHER_DIGEST: "Candidate", DIGEST: "Active"}
