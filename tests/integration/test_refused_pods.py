"""Pods that the API server does not let be made, with the real admission plugins and the real Job controller."""

from __future__ import annotations

import time

import pytest

from tests.integration.operators import FINE_TUNE_JOB, Namespace, OperatorProcess
from tests.integration.schema_server import Server
from tunesmith.api.conditions import find
from tunesmith.core.objects import Object

OBSTACLES: dict[str, tuple[str, Object, str]] = {
    "ResourceQuota": ("resourcequotas", {"hard": {"pods": "0"}}, "exceeded quota: obstacle"),
    "LimitRange": ("limitranges", {"limits": [{"type": "Container", "max": {"memory": "1Mi"}}]}, "maximum memory usage per Container is 1Mi"),
}


@pytest.mark.parametrize("kind", OBSTACLES)
def test_what_refuses_the_pods_is_named_within_15_seconds_and_mending_it_is_enough(
    operator: OperatorProcess, api: Server, space: Namespace, kind: str
) -> None:
    plural, spec, words = OBSTACLES[kind]
    path = f"/api/v1/namespaces/{space.name}/{plural}"
    body = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "obstacle"}, "spec": spec}
    assert api.send("POST", path, body).code == 201
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    begun = time.monotonic()

    def told() -> Object:
        return dict(find(space.status("FineTuneJob", "tune"), "Reconciling") or {})

    space.wait(lambda: told().get("reason") == "PodsRefused", "the status to name it", told)
    assert time.monotonic() - begun < 15
    assert words in told()["message"]
    assert api.send("DELETE", f"{path}/obstacle").code == 200
    # The Job's controller tries again after a pause that it doubles.
    space.wait_pods(tune, "Prepare")
    space.wait(lambda: told()["reason"] != "PodsRefused", "the status to be done with it", told)
