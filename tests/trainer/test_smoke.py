"""The script for one GPU, proven on CPUs: its steps run the real stages, and what fails or is missing is named."""

import argparse
import json
import subprocess
import sys
import time

import pytest

from dev.gpu import smoke
from dev.gpu.smoke import Outcome
from dev.gpu.steps import STEPS
from tests.trainer.bench import ROOT

pytestmark = pytest.mark.timeout(900)


def test_the_script_trains_stops_and_goes_on_by_the_real_stages_and_writes_what_it_found(tmp_path):
    wanted = ("devices", "material", "lora")
    arguments = ["--device", "cpu", "--tiny", "--only", ",".join(wanted), "--out", str(tmp_path), "--slower", "5", "--minutes", "14"]
    done = subprocess.run([sys.executable, "-m", "dev.gpu.smoke", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "smoke.json").read_text())
    steps = {step["name"]: step for step in report["steps"]}
    assert {name for name, step in steps.items() if step["outcome"] == "passed"} == set(wanted)
    assert {step["why"] for name, step in steps.items() if name not in wanted} == {"not asked for (--only)"}
    lora = steps["lora"]["figures"]
    assert 0 < lora["resumedFromStep"] < lora["globalStep"] == 30
    assert lora["tokensPerSecond"] > 0
    assert lora["memory"] == "not measured: no GPU"
    # This environment is the lock.
    assert (report["differs"], report["missing"]) == ({}, [])
    assert report["device"] == "no GPU seen (cpu)"
    markdown = (tmp_path / "smoke.md").read_text()
    assert "| lora | passed |" in markdown
    assert "- none" in markdown


def test_a_step_without_its_module_or_its_material_or_time_is_named(monkeypatch):
    passed = [Outcome("material", "passed")]
    assert smoke.obstacle(STEPS["lora"], passed, 10) == ""
    assert smoke.obstacle(STEPS["lora"], [Outcome("material", "failed")], 10) == "needs material, which did not pass"
    assert smoke.obstacle(STEPS["lora"], passed, 0) == "no time is left"
    monkeypatch.setattr(smoke.importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else object())
    assert smoke.obstacle(STEPS["qlora"], passed, 10) == "not installed: bitsandbytes"


def test_versions_that_differ_from_the_lock_are_told():
    lock = smoke.locked("torch==0.1 \\\n    --hash=sha256:ab\nno-such-package==2.0\nlm-eval[hf]==9.9 ; python_version > '3'\n")
    assert lock == {"torch": "0.1", "no-such-package": "2.0", "lm-eval": "9.9"}
    found, missing = smoke.differences(lock)
    assert found["torch"].endswith(" (lock: 0.1)")
    assert missing == ["no-such-package"]


def test_a_step_that_fails_or_never_ends_stops_none_that_does_not_need_it(tmp_path, monkeypatch):
    chosen = argparse.Namespace(device="cpu", size="tiny", slower=1.0)
    programs = {"devices": "raise ValueError('broken')", "compiles": "import time; time.sleep(600)", "material": "pass"}
    real = smoke.run
    monkeypatch.setattr(smoke, "run", lambda command, log, seconds: real([sys.executable, "-c", programs[command[3]]], log, min(seconds, 2)))
    (tmp_path / "material.figures").write_text("{}")
    began = time.monotonic()
    found = [smoke.attempt(STEPS[name], tmp_path, chosen, 60) for name in programs]
    assert [outcome.outcome for outcome in found] == ["failed", "failed", "passed"]
    assert found[0].why == "exit code 1: ValueError: broken"
    assert found[1].why == "it did not end within 2 s"
    assert time.monotonic() - began < 60


def test_a_step_that_is_ended_leaves_no_process_behind_whatever_session_it_is_in(tmp_path):
    # As torchrun's workers are.
    child = "[sys.executable, '-c', 'import time; time.sleep(600)  # orphan-5c1d']"
    program = f"import subprocess, sys, time; subprocess.Popen({child}, start_new_session=True); time.sleep(600)"
    assert "did not end" in smoke.run([sys.executable, "-c", program], tmp_path / "log", 3)
    left = subprocess.run(["pgrep", "-f", "# orphan-5c1[d]"], capture_output=True, text=True).stdout
    assert left == ""
