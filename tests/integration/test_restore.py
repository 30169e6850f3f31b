"""A backup brings back objects without their status: the operator asks for each stage again and takes what was made before for what it is.

What a stage then answers is the trainer's part, tests/trainer/test_restore.py: the finished result, at once.
"""

from __future__ import annotations

from dev.bench.life import CHILDREN, COMPARED, OURS
from dev.bench.mask import snapshot
from tests.integration.operators import EVAL_RUN, EVALUATED, FINE_TUNE_JOB, MODEL_DEPLOYMENT, RESULTS, Namespace, OperatorProcess, answer
from tests.integration.served import answer_requests, wait_revision
from tunesmith.core.objects import Object

MADE = (("FineTuneJob", "tune", FINE_TUNE_JOB), ("EvalRun", "judge", EVAL_RUN), ("ModelDeployment", "serve", MODEL_DEPLOYMENT))


def live(space: Namespace, attempt: int) -> Object:
    """Apply the chain and let each stage answer, as of that attempt; returns what is there in the end, masked."""
    made = {kind: space.create(kind, name, spec) for kind, name, spec in MADE}
    for stage, result in RESULTS.items():
        (pod,) = space.wait_pods(made["FineTuneJob"], stage)
        space.end_pod(pod, answer(stage, attempt, result))
    space.play(made["EvalRun"], "Evaluate", EVALUATED, part="tested")
    space.play(made["EvalRun"], "Compare", COMPARED)
    answer_requests(space, wait_revision(space, "Candidate"))
    space.wait_condition("ModelDeployment", "serve", "Ready")
    space.wait(lambda: space.status("ModelDeployment", "serve")["stage"] == "Serving", "it to serve")
    return snapshot(space.all(*OURS, *CHILDREN), {obj["metadata"]["uid"]: kind for kind, obj in made.items()}, space.name)


def test_objects_applied_again_without_their_status_adopt_what_was_made(operator: OperatorProcess, space: Namespace) -> None:
    # The first life's Train succeeded at its third attempt: the second asks once and is told of that one.
    first = live(space, attempt=3)
    artifacts = space.status("FineTuneJob", "tune")["artifacts"]
    for kind, name, _ in MADE:
        space.delete(kind, name)
    space.wait(lambda: not space.all(*OURS, *CHILDREN), "the namespace to be empty", lambda: sorted(space.names(*OURS, *CHILDREN)))
    assert live(space, attempt=3) == first
    assert space.status("FineTuneJob", "tune")["artifacts"] == artifacts
    assert [(entry["stage"], entry["attempt"]) for entry in space.status("FineTuneJob", "tune")["attempts"]] == [(stage, 1) for stage in RESULTS]
    assert space.status("EvalRun", "judge")["resolved"]["runURI"].rpartition("/")[0].endswith(f"/{space.name}/judge")
    (revision,) = space.status("ModelDeployment", "serve")["revisions"]
    assert revision["digest"] == artifacts[0]["digest"]


def test_of_a_stage_that_ends_without_a_message_the_result_is_asked_for_again_and_nothing_else(operator: OperatorProcess, space: Namespace) -> None:
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    space.play(tune, "Prepare", RESULTS["Prepare"])
    (pod,) = space.wait_pods(tune, "Train")
    space.end_pod(pod, "")
    # The next attempt finds the finished result in the store and answers with it.
    space.wait_pods(tune, "Train", attempt=2)
    space.play(tune, "Train", RESULTS["Train"], attempt=2)
    space.wait_pods(tune, "Finalize")
    assert [(entry["stage"], entry["attempt"]) for entry in space.status("FineTuneJob", "tune")["attempts"]] == [
        ("Prepare", 1),
        ("Train", 1),
        ("Train", 2),
    ]
