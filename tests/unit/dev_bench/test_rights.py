"""What the audit log tells of an operator's rights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration import rights
from tests.integration.rights import Right

ACCOUNT = "system:serviceaccount:tunesmith-system:tunesmith"
LANE = "system:serviceaccount:lane-3:tunesmith"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    lines = [
        entry("create", "jobs", ACCOUNT),
        entry("get", "secrets", ACCOUNT, "forbid", 403),
        entry("create", "pods", ACCOUNT, "allow", 403),
        entry("update", "leases", LANE),
        entry("delete", "nodes", "system:serviceaccount:kube-system:tunesmith-other", "forbid", 403),
        entry("get", "secrets", "admin"),
    ]
    path = tmp_path / "audit.log"
    path.write_text("".join(lines) + entry("list", "cut", ACCOUNT)[:-5])
    return path


def entry(verb: str, resource: str, user: str, decision: str = "allow", code: int = 200) -> str:
    line = {
        "verb": verb,
        "requestURI": f"/api/v1/{resource}",
        "user": {"username": user},
        "objectRef": {"resource": resource},
        "responseStatus": {"code": code},
        "annotations": {"authorization.k8s.io/decision": decision},
    }
    return json.dumps(line, separators=(",", ":")) + "\n"


def test_used_is_what_an_operator_asked_for_and_got(log: Path) -> None:
    assert rights.used(log) == {Right("", "jobs", "create"), Right("", "leases", "update")}


def test_forbidden_is_what_no_role_allows_and_not_what_admission_refuses(log: Path) -> None:
    assert rights.forbidden(log) == ["get /api/v1/secrets"]
