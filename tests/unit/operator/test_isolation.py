"""Only pods of the same object reach those of its stages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.operator import evalruns
from tests.unit.operator.finetunejobs import TWO_NODES, Life
from tests.unit.operator.makers import UID, World
from tunesmith.core.objects import Object

OURS: Object = {"podSelector": {"matchLabels": {"tunesmith.dev/uid": UID}}}
DNS: Object = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}
NAME = "support-bot-5f0c1"


def policy(life: World) -> Any:
    return life.children["NetworkPolicy", NAME]["spec"]


def worlds() -> list[World]:
    return [Life(parallelism=TWO_NODES), evalruns.Evaluation(evalruns.GATED, evalruns.READY_JOB, *evalruns.CLAIMS)]


@pytest.mark.parametrize("life", worlds(), ids=["FineTuneJob", "EvalRun"])
def test_it_is_there_before_the_first_pod_and_selects_all_pods_of_the_object(life: World) -> None:
    life.step()
    assert life.plan.apply[0]["kind"] == "NetworkPolicy"
    spec = life.plan.apply[0]["spec"]
    assert spec["podSelector"] == OURS["podSelector"]
    assert (spec["policyTypes"], spec["ingress"]) == (["Ingress", "Egress"], [{"from": [OURS]}])
    for job in (job for (kind, _), job in life.children.items() if kind == "Job"):
        assert job["spec"]["template"]["metadata"]["labels"]["tunesmith.dev/uid"] == UID


PROGRESS: dict[str, tuple[str, Object | None]] = {
    "of a chart": (
        "https://tunesmith.tunesmith-system.svc:443",
        {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "tunesmith-system"}}}]}
        | {"ports": [{"port": 443, "protocol": "TCP"}, {"port": 8443, "protocol": "TCP"}]},
    ),
    "elsewhere": ("https://192.0.2.7:9000", {"ports": [{"port": 8443, "protocol": "TCP"}, {"port": 9000, "protocol": "TCP"}]}),
    "none": ("", None),
}


@pytest.mark.parametrize("where", PROGRESS)
def test_out_they_reach_one_another_name_services_and_the_progress_endpoint(where: str) -> None:
    url, rule = PROGRESS[where]
    life = Life()
    life.config = replace(life.config, progress_url=url)
    life.step()
    assert policy(life)["egress"] == [{"to": [OURS]}, DNS, *([rule] if rule else [])]


def test_it_stays_as_long_as_the_jobs_do_and_goes_where_it_is_not_wanted() -> None:
    life = Life(ttlSecondsAfterFinished=60)
    life.step()
    life.succeed("Prepare").succeed("Train").succeed("Finalize")
    assert life.names("NetworkPolicy") == [NAME]
    life.later(60).step()
    assert life.names("NetworkPolicy") == []
    other = Life()
    other.step()
    other.config = replace(other.config, stage_policies=False)
    other.step()
    assert other.names("NetworkPolicy") == []
    made = Life(suspend=True)
    made.step()
    assert made.children == {}
