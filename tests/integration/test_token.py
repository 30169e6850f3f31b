"""In a cluster the operator's token is a file that the kubelet replaces: an old token that is no good any more stops nothing."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dev.cluster.controlplane import ControlPlane
from tests.integration.operators import FINE_TUNE_JOB, Namespace, OperatorProcess
from tunesmith.core.objects import Object

FOLDER = "/run/secrets/kubernetes.io/serviceaccount"
# In a mount namespace of its own, so that this machine has no such folder.
MOUNT = f'mount -t tmpfs tmpfs /run && mkdir -p {FOLDER} && mount --bind "$0" {FOLDER} && exec "$@"'


class Account:
    """A ServiceAccount that may do all, and tokens of it that hold as long as the Secret that each is bound to."""

    def __init__(self, space: Namespace) -> None:
        self._space = space
        self._post("/api/v1/namespaces/{}/serviceaccounts", {"metadata": {"name": "robot"}})
        subject = {"kind": "ServiceAccount", "name": "robot", "namespace": space.name}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
        binding = {"metadata": {"name": f"robot-{space.name}"}, "roleRef": role, "subjects": [subject]}
        self._post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding)

    def token(self, name: str) -> str:
        """A token bound to a new Secret of that name."""
        secret = self._post("/api/v1/namespaces/{}/secrets", {"metadata": {"name": name}})
        bound = {"apiVersion": "v1", "kind": "Secret", "name": name, "uid": secret["metadata"]["uid"]}
        asked = {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {"boundObjectRef": bound, "expirationSeconds": 3600}}
        return str(self._post("/api/v1/namespaces/{}/serviceaccounts/robot/token", asked)["status"]["token"])

    def revoke(self, name: str) -> None:
        """The token bound to that Secret is no good any more."""
        assert self._space.api.send("DELETE", f"/api/v1/namespaces/{self._space.name}/secrets/{name}").code == 200

    def _post(self, path: str, body: Object) -> Object:
        answer = self._space.api.send("POST", path.format(self._space.name), body)
        assert answer.code == 201, answer.body
        return answer.body


@pytest.fixture
def in_cluster(operator_process: OperatorProcess, control_plane: ControlPlane, space: Namespace, tmp_path: Path) -> Iterator[OperatorProcess]:
    """The operator as a pod has it: the server's address in its environment, its account in a folder. `tmp_path` is that folder."""
    operator_process.stop()
    shutil.copy(control_plane.pki.path("ca.crt"), tmp_path / "ca.crt")
    process = OperatorProcess(control_plane, tmp_path, "in-cluster")
    process.command = ["unshare", "--mount", "sh", "-c", MOUNT, str(tmp_path), *process.command]
    address = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": control_plane.server.rpartition(":")[2]}
    # Without relists, which have a client of their own, so that only the watches can tell what is new.
    process.environment |= address | {"TUNESMITH_NAMESPACES": space.name, "TUNESMITH_RESYNC_SECONDS": "600"}
    del process.environment["KUBECONFIG"]
    yield process
    process.stop()


def is_accepted(control_plane: ControlPlane, space: Namespace, token: str) -> bool:
    """Whether the server still takes the token: it remembers for some seconds which are good."""
    request = urllib.request.Request(f"{control_plane.server}{space.path('Job')}", headers={"Authorization": f"Bearer {token}"})
    context = space.api.context_without_identity()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as refused:
        with refused:
            assert refused.code == 401
            return False


def watches_since(control_plane: ControlPlane, space: Namespace, since: datetime) -> bool:
    """Whether the audit log has a watch of FineTuneJobs by kopf that was asked for since then and let in."""
    path = space.path("FineTuneJob")
    entries = map(json.loads, (line for line in control_plane.audit_log.read_text().splitlines() if path in line and "kopf/" in line))
    let_in = (entry for entry in entries if (entry["verb"], entry.get("responseStatus", {}).get("code")) == ("watch", 200))
    return any(datetime.fromisoformat(entry["requestReceivedTimestamp"]) > since for entry in let_in)


def test_a_token_that_was_replaced_and_revoked_stops_nothing(
    in_cluster: OperatorProcess, control_plane: ControlPlane, space: Namespace, tmp_path: Path
) -> None:
    account = Account(space)
    old = account.token("old")
    (tmp_path / "token").write_text(old)
    in_cluster.start()
    tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
    space.wait_pods(tune, "Prepare")
    (tmp_path / "token").write_text(account.token("new"))
    account.revoke("old")
    space.wait(lambda: not is_accepted(control_plane, space, old), "the old token to be refused")
    refused = datetime.now(UTC)
    space.wait(lambda: watches_since(control_plane, space, refused), "a watch to be let in with the new token")
    again = space.create("FineTuneJob", "again", FINE_TUNE_JOB)
    space.wait_pods(again, "Prepare")
    assert in_cluster.running
    assert in_cluster.probe("/healthz") == 200
