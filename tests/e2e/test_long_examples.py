"""The examples of sharded and quantized training, each run to its end on real nodes.

make drills
"""

from __future__ import annotations

import pytest

from dev.demo import follow
from dev.demo.kube import Kube
from dev.demo.stack import ROOT
from tests.e2e.conftest import say

pytestmark = pytest.mark.long


@pytest.mark.parametrize("example", ["fsdp", "zero-3", "qlora"])
def test_the_example_trains_to_its_end_and_tells_what_each_process_held(kube: Kube, example: str) -> None:
    kube.run("apply", f"--filename={ROOT / 'examples' / example}")
    (name,) = kube.run("get", f"--filename={ROOT / 'examples' / example}", "--output=jsonpath={.metadata.name}").split()
    status = follow.follow(kube, [("FineTuneJob", name)], say, 1200)["FineTuneJob", name]["status"]
    assert status["artifacts"]
    (trained,) = (entry["result"] for entry in status["stages"] if entry["name"] == "Train")
    say(f"{example}: {trained}")
    assert trained["sharding"]
    kube.run("delete", "finetunejob", name, "--wait")
