"""Events on a real API server: found by `kubectl describe`, few, and not told again by a restarted operator."""

from __future__ import annotations

from tests.integration.operators import FINE_TUNE_JOB, RESULTS, Namespace, OperatorProcess, answer, play_all
from tests.integration.schema_server import Server


def told(space: Namespace, about: str) -> list[str]:
    """Reasons of the Events about an object, as describe asks for them: in core/v1, by the object's uid."""
    owner = space.get("FineTuneJob", about)
    assert owner
    query = f"?fieldSelector=involvedObject.uid={owner['metadata']['uid']}"
    items = space.api.send("GET", f"/api/v1/namespaces/{space.name}/events{query}").body["items"]
    return sorted(item["reason"] for item in items)


def test_a_clean_life_is_told_in_three_events_and_a_restart_adds_none(operator: OperatorProcess, space: Namespace) -> None:
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    play_all(space, tune)
    space.wait_condition("FineTuneJob", "tune", "Finished")
    space.wait(lambda: len(told(space, "tune")) == 3, "three Events", lambda: told(space, "tune"))
    operator.kill()
    operator.start()
    operator.wait_resyncs(2)
    assert told(space, "tune") == ["StageSucceeded", "StageSucceeded", "Succeeded"]


def test_kubectl_describe_shows_why_an_attempt_failed(operator: OperatorProcess, space: Namespace, api: Server) -> None:
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB | {"retries": 0})
    (pod,) = space.wait_pods(tune, "Prepare")
    failure = {"outcome": "Failed", "exitCode": 65, "reason": "EmptyDataset", "message": "the filters left no row"}
    space.end_pod(pod, answer("Prepare", 1, RESULTS["Prepare"] | failure), 65)
    space.wait(lambda: told(space, "tune") == ["AttemptFailed", "EmptyDataset"], "both Events", lambda: told(space, "tune"))
    shown = api.kubectl("describe", "finetunejob", "tune", f"--namespace={space.name}").stdout
    events = shown[shown.index("Events:") :]
    assert "tunesmith.dev/operator" in events
    assert "Prepare attempt 1: EmptyDataset: the filters left no row" in events
