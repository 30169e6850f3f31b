"""An operator that serves named namespaces, with rights in these alone, and a tenant whose namespace is deleted: real RBAC and real watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dev.cluster.controlplane import ControlPlane
from dev.cluster.pki import Identity
from dev.cluster.processes import wait_until
from tests.integration import rights
from tests.integration.operators import FINE_TUNE_JOB, Namespace, OperatorProcess
from tests.integration.schema_server import Server

USER = "tenants-operator"
"""Not an account of the chart's: it asks for what it may not, which is what is tried here."""


def allow(api: Server, namespace: str) -> None:
    """What the chart gives the operator, in that namespace."""
    group = "rbac.authorization.k8s.io"
    role, subject = {"apiGroup": group, "kind": "ClusterRole", "name": "tunesmith"}, {"apiGroup": group, "kind": "User", "name": USER}
    body = {"apiVersion": f"{group}/v1", "kind": "RoleBinding", "metadata": {"name": "tunesmith"}, "roleRef": role, "subjects": [subject]}
    answer = api.send("POST", f"/apis/{group}/v1/namespaces/{namespace}/rolebindings", body)
    assert answer.code == 201, answer.body


@pytest.fixture
def tenants(api: Server, control_plane: ControlPlane, new_namespace: Callable[[], str]) -> list[str]:
    """Two namespaces that the operator may act in."""
    rights.kubeconfig(control_plane)  # makes the chart's roles
    made = [new_namespace(), new_namespace()]
    for name in made:
        allow(api, name)
        Namespace(api, name).claim("models")
    return made


@pytest.fixture
def process(control_plane: ControlPlane, tenants: list[str], tmp_path: Path) -> Iterator[OperatorProcess]:
    """An operator of these namespaces."""
    made = OperatorProcess(control_plane, tmp_path, "tenants")
    control_plane.pki.issue(Identity(USER, f"/CN={USER}", "clientAuth"))
    kubeconfig = control_plane.pki.write_kubeconfig(USER, control_plane.server, tmp_path / "kubeconfig")
    made.environment |= {"KUBECONFIG": str(kubeconfig), "TUNESMITH_NAMESPACES": ",".join(tenants), "TUNESMITH_LEADER_ELECTION": "false"}
    made.start()
    yield made
    made.kill()


def works(api: Server, namespace: str, name: str) -> None:
    """A job that is made there is looked at, at once and by a watch."""
    space = Namespace(api, namespace)
    tune = space.create("FineTuneJob", name, FINE_TUNE_JOB)
    space.wait_pods(tune, "Prepare")


def test_a_tenant_that_goes_harms_no_other_and_may_come_back(api: Server, tenants: list[str], process: OperatorProcess) -> None:
    stays, goes = tenants
    works(api, stays, "first")
    works(api, goes, "first")
    # As where a namespace is deleted: its bindings go, and whatever is left is nobody's to read.
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{goes}/rolebindings/tunesmith"
    assert api.send("DELETE", path).code == 200
    wait_until(lambda: process.metric("tunesmith_unserved_namespaces") == 1, "the operator to do without it", 30)
    works(api, stays, "second")
    process.kill()
    process.start()
    works(api, stays, "third")
    assert f"namespace {goes} is not served" in process.log.read_text()
    # A watch of the start may be refused while the first relist ends, and is written down once.
    wait_until(lambda: process.metric("tunesmith_resync_seconds_count") > 3, "the watches of the start to be given up", 60)
    before = process.log.stat().st_size
    wait_until(lambda: process.metric("tunesmith_resync_seconds_count") > 13, "ten more relists", 60)
    assert process.log.read_bytes()[before:].count(b"403") == 0, "no watch is tried there again and again"
    allow(api, goes)
    wait_until(lambda: process.metric("tunesmith_unserved_namespaces") == 0, "the operator to serve it again", 30)
    works(api, goes, "second")
