"""The operator's rights on a real cluster: what it asked for there is granted by the chart, and no Secret is among it."""

from __future__ import annotations

from typing import Any

import pytest

from dev.cluster.cluster import Cluster
from dev.demo.stack import Stack
from tests.integration import rights
from tests.integration.rights import Right


def test_in_a_whole_chain_the_operator_asks_for_nothing_that_the_chart_does_not_grant_and_for_no_secret(stack: Stack, chain: Any) -> None:
    if not stack.ours:
        pytest.skip("KUBECONFIG names a cluster that is not the development cluster, whose audit log a test may read")
    log = Cluster().control_plane.audit_log
    used = rights.used(log)
    assert {Right("batch", "jobs", "create"), Right("apps", "deployments", "patch"), Right("tunesmith.dev", "evalruns/status", "update")} <= used
    assert rights.forbidden(log) == []
    assert used <= rights.granted()
    assert "secrets" not in {right.resource for right in used | rights.granted()}
