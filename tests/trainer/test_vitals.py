"""Which process is taken for hung, and which is not: real processes, a limit of three seconds instead of forty."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.trainer.bench import ROOT
from tunesmith_trainer.training import watchdog
from tunesmith_trainer.training.watchdog import Ward

PROGRAM = """
import sys, time
from pathlib import Path
from tunesmith_trainer.training.watchdog import Vitals
own = Vitals()
own.start(Path(sys.argv[1]))
own.begin(7)
def compute():
    while True:
        pass
def wait_for_others():
    place = {"sleep": time.sleep}
    exec(compile("sleep(600)", "/lib/torch/distributed/distributed_c10d.py", "exec"), place)
def go_on():
    while True:
        time.sleep(0.2)
        own.step += 1
def load():
    own.phase = "starting"
    time.sleep(600)
{"compute": compute, "wait": wait_for_others, "deadlock": lambda: time.sleep(600), "go_on": go_on, "load": load}[sys.argv[2]]()
"""


@pytest.fixture
def ward(tmp_path, monkeypatch, request):
    monkeypatch.setenv("TUNESMITH_HUNG_SECONDS", "3")
    monkeypatch.setattr(watchdog, "BEAT_SECONDS", 0.2)
    return Ward(tmp_path, first_rank=2, processes=getattr(request, "param", 1))


@pytest.fixture
def start(ward, tmp_path):
    processes = []

    def begin(what):
        command = [sys.executable, "-c", PROGRAM, str(watchdog.path_for(tmp_path, len(processes))), what]
        processes.append(subprocess.Popen(command, env=os.environ | {"PYTHONPATH": f"{ROOT}/trainer-image:{ROOT}/contract"}))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def watch(ward, seconds):
    """Look for so long; returns the first diagnosis."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := ward.look():
            return found
        time.sleep(0.1)
    return None


def await_beat(ward):
    while not all(patient.told for patient in ward.patients):
        ward.look()
        time.sleep(0.05)


def test_a_stopped_process_is_found_and_can_be_killed(ward, start):
    process = start("go_on")
    await_beat(ward)
    assert watch(ward, 1) is None
    os.kill(process.pid, signal.SIGSTOP)
    found = watch(ward, 60)
    assert (found.reason, found.exit_code) == ("Hung", 69)
    assert "rank 2 in pod" in found.message
    assert "is stopped" in found.message
    assert found.details["step"] >= found.details["resumedFromStep"] == 7
    # Somebody stopped it: that says nothing of the program.
    assert "fingerprint" not in found.details
    ward.kill()
    assert process.wait(timeout=10) == -signal.SIGKILL


def test_a_deadlocked_process_is_found_and_its_place_is_told(ward, start, capsys):
    start("deadlock")
    await_beat(ward)
    found = watch(ward, 60)
    assert found.reason == "Hung"
    assert "stands still at <string>:" in found.message
    assert "<lambda>" in capsys.readouterr().out


@pytest.mark.parametrize("ward", [2], indirect=True)
def test_a_process_that_hangs_at_the_same_line_as_another_is_known(ward, start):
    processes, found = [start("deadlock") for _ in range(2)], []
    await_beat(ward)
    for _ in processes:
        found.append(watch(ward, 60))
        process = processes[0 if "rank 2" in found[-1].message else 1]
        process.kill()
        process.wait()
    assert found[0].message[:6] != found[1].message[:6]
    assert found[0].details == found[1].details
    assert len(found[0].details["fingerprint"]) == 12


@pytest.mark.parametrize("ward", [4], indirect=True)
def test_a_long_step_a_wait_for_others_and_a_slow_start_are_no_hang(ward, start):
    for what in ("compute", "wait", "go_on", "load"):
        start(what)
    await_beat(ward)
    assert watch(ward, 6) is None
    while not all(patient.told["beat"] >= 4 for patient in ward.patients):
        assert watch(ward, 0.5) is None


def test_a_process_that_is_gone_without_an_outcome_is_the_one_that_was_lost(ward, start):
    process = start("go_on")
    await_beat(ward)
    assert ward.first_lost() is None
    process.kill()
    process.wait()
    ward.examine()
    local_rank, step = ward.first_lost()
    assert (local_rank, ward.name(local_rank).split(" in pod ")[0]) == (0, "rank 2")
    assert step >= 7


def test_time_in_which_the_launcher_itself_stood_still_does_not_count(ward, start, monkeypatch):
    start("wait")
    await_beat(ward)
    ward._polled -= 3600
    ward.examine()
    assert ward.patients[0].idle_seconds <= 3
