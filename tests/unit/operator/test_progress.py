"""Whose reports the progress endpoint takes, on a double that says of each token which pod it belongs to."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from tests.unit.operator.edge import KINDS, child, owner
from tunesmith.pods import progress_path
from tunesmith.progress import Progress
from tunesmith.store import Store
from tunesmith.values import Object

TUNE = owner()
REPORT: Object = {"trainerStatus": {"progressPercentage": 40}}


class Double:
    """An API server to which every token is the pod's."""

    def __init__(self, pod: Object) -> None:
        self.pod = pod

    async def review_token(self, token: str, audience: str) -> Object:
        metadata = self.pod["metadata"]
        extra = {f"authentication.kubernetes.io/pod-{part}": [metadata[part]] for part in ("name", "uid")}
        user = {"username": f"system:serviceaccount:{metadata['namespace']}:default", "extra": extra}
        return {"authenticated": True, "audiences": [audience], "user": user}


@pytest.mark.parametrize(("namespace", "code"), [("team", 200), ("neighbours", 403)])
async def test_a_pod_of_another_namespace_reports_nothing_whatever_owner_and_job_it_names(namespace: str, code: int) -> None:
    job, pod = child("Job", "job", TUNE), child("Pod", "pod", TUNE)
    pod["metadata"] |= {"namespace": namespace, "ownerReferences": [{"kind": "Job", "name": "job", "uid": "uid-Job-job", "controller": True}]}
    store = Store({name: kind.references for name, kind in KINDS.items()})
    for obj in (TUNE, job, pod):
        store.put(obj)
    cluster: Any = Double(pod)
    async with TestClient(TestServer(Progress(cluster, store, lambda keys: None).application())) as client:
        answer = await client.post(progress_path(TUNE), json=REPORT, headers={"Authorization": "Bearer any"})
    assert (answer.status, store.progress("uid-tune") is not None) == (code, code == 200)
