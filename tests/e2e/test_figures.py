"""What an EvalRun reports of the chain's models is what the libraries report when run by hand on the same files.

On tiny models: tests/trainer/test_figures_by_hand.py.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from dev import checks
from dev.demo import seed
from dev.demo.chain import EVAL_RUN
from dev.demo.kube import Kube, Object

TASK, LIMIT = "support_choice", "200"


@pytest.fixture(scope="module")
def data(kube: Kube, chain: dict[tuple[str, str], Object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The held-out rows and the task, as they lie on the volume."""
    folder = tmp_path_factory.mktemp("data")
    seed.download(kube, "pvc://datasets/heldout.jsonl", folder)
    seed.download(kube, "pvc://datasets/tasks", folder)
    return folder


def reported(run: Object, model: str) -> tuple[float, float]:
    """(perplexity, accuracy) of "tested" or a baseline in the EvalRun's status."""
    rows = {entry["metric"]: entry for entry in run["status"]["results"]}
    chosen = [rows["heldOut/perplexity"], rows[f"replies/{TASK}/acc"]]
    perplexity, accuracy = (float(row["tested"] if model == "tested" else row["baselines"][model]) for row in chosen)
    return perplexity, accuracy


@pytest.mark.long
@pytest.mark.parametrize("model", ["tested", "base", "unquantized"])
def test_the_figures_equal_those_of_the_libraries_run_by_hand(
    model: str, kube: Kube, chain: dict[tuple[str, str], Object], data: Path, tmp_path: Path
) -> None:
    run = chain["EvalRun", EVAL_RUN]
    tune = chain["FineTuneJob", "support-bot"]["status"]
    (merged,) = (artifact["uri"] for artifact in tune["artifacts"] if artifact["name"] == "Merged")
    uris = {"tested": run["status"]["evaluated"]["uri"], "base": tune["resolved"]["model"]["uri"], "unquantized": merged}
    folder = seed.download(kube, uris[model], tmp_path)
    command = [
        checks.python("trainer"),
        str(Path(__file__).with_name("by_hand.py")),
        str(folder),
        str(data / "heldout.jsonl"),
        str(data / "tasks"),
        TASK,
        LIMIT,
    ]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    # As the pods that measured have it: figures in 16 bits depend on how sums are split.
    offline |= {"OMP_NUM_THREADS": "1"}
    by_hand = json.loads(subprocess.run(command, env=offline, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
    perplexity, accuracy = reported(run, model)
    assert perplexity == pytest.approx(by_hand["perplexity"], rel=0.005)
    assert accuracy == by_hand["acc"]
