"""Which pod of an attempt knows why it failed, and that it is the first to say so: real launchers and torchruns on two nodes."""

import json
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from dev.cluster.ports import free_port
from tests.trainer import bench
from tunesmith_trainer import runner, train
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.training.tail import Tail
from tunesmith_trainer.training.watchdog import outcome_path

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def broken(tmp_path):
    """Make a python whose tunesmith_trainer has a module that cannot be imported; returns what makes torchrun start it."""

    def make(module):
        package = shutil.copytree(bench.ROOT / "trainer-image" / "tunesmith_trainer", tmp_path / "broken" / "tunesmith_trainer")
        (package / module).write_text("import no_such_package\n")
        script = tmp_path / "python"
        script.write_text(f'#!/bin/sh\nPYTHONPATH={package.parent} exec {sys.executable} "$@"\n')
        script.chmod(0o755)
        return {"PYTHON_EXEC": str(script)}

    return make


# A process of the first tells nothing at all; one of the second has its handlers and its vitals when it fails.
@pytest.mark.parametrize("module", ["training/watchdog.py", "training/loop.py"])
def test_processes_that_cannot_be_imported_are_a_bug_on_every_node_and_the_same_one_each_time(store, broken, zygote, module):
    prepared = store.run(bench.prepare_input())[1]
    python = zygote | broken(module)
    seen = []
    for attempt in (1, 2):
        value = bench.train_input(prepared, free_port(), nodes=2, attempt=attempt)
        ends = [pod.wait() for pod in [store.start(value, index, **python) for index in (0, 1)]]
        bugs = [result for code, result in ends if (code, result["reason"]) == (70, "InternalError")]
        assert bugs, ends
        # The meeting place may go before the second pod has met anybody.
        assert all(result in bugs or result["reason"] == "PeerUnavailable" for _, result in ends), ends
        seen.append({result["fingerprint"] for result in bugs})
    assert seen[0] & seen[1]


def test_a_node_whose_processes_die_at_once_is_the_one_with_the_bug(store, broken, zygote):
    prepared = store.run(bench.prepare_input())[1]
    value = bench.train_input(prepared, free_port(), nodes=2)
    pods = [store.start(value, 0, **zygote | broken("training/watchdog.py")), store.start(value, 1, **zygote)]
    (code, bug), (other, echo) = [pod.wait() for pod in pods]
    assert (code, bug["reason"], other, echo["reason"]) == (70, "InternalError", 69, "PeerUnavailable")
    assert "exit code 1 before it told anything" in bug["message"]


def test_a_pod_that_only_lost_its_peer_lets_that_one_speak_first(store, zygote):
    prepared = store.run(bench.prepare_input())[1]
    value = bench.train_input(prepared, free_port(), nodes=2)
    fault = {"FAULT": json.dumps({"do": "kill", "rank": 1, "step": 2}), "TUNESMITH_ECHO_SECONDS": "600"}
    echo, knowing = [store.start(value, index, **zygote, **fault) for index in (0, 1)]
    code, result = knowing.wait()
    assert (code, result["reason"]) == (70, "ProcessLost"), result
    time.sleep(3)
    assert echo.process.poll() is None
    # So does the Job's controller end what is left.
    echo.process.send_signal(signal.SIGTERM)
    code, result = echo.wait(seconds=30)
    assert (code, result["reason"]) in [(69, "PeerUnavailable"), (75, "Interrupted")], result


def test_a_node_ends_soon_after_one_of_its_processes_failed_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "FAILED_SECONDS", 1)
    for name, ends in (("InternalError", True), ("PeerUnavailable", False)):
        failure = {"failure": {"reason": name, "message": name, "details": {}}}
        outcome_path(tmp_path, 0).write_text(json.dumps(failure))
        launcher = train.Launcher(SimpleNamespace(rendezvous=SimpleNamespace(processes_per_node=2)), tmp_path, tmp_path, None)
        with subprocess.Popen(["sleep", "600" if ends else "3"]) as launcher.agent:
            launcher._wait()
            assert launcher.agent.returncode == (-signal.SIGKILL if ends else 0)


def test_a_stage_whose_module_cannot_be_imported_says_so(store, monkeypatch):
    value = bench.prepare_input()
    prepared = store.run(value)[1]

    def fail(name):
        raise ImportError(name)

    monkeypatch.setattr(runner.importlib, "import_module", fail)
    code, result = store.run(bench.train_input(prepared, free_port()))
    assert (code, result["reason"], len(result["fingerprint"])) == (70, "InternalError", 12)


@pytest.mark.parametrize(("deed", "name", "known"), [("crash", "SIGSEGV", True), ("kill", "SIGKILL", False)])
def test_a_crash_is_known_when_it_comes_again_and_a_kill_from_outside_is_not(store, zygote, deed, name, known):
    prepared = store.run(bench.prepare_input())[1]
    fault = {"FAULT": json.dumps({"do": deed, "step": 2})}
    seen = []
    for attempt in (1, 2):
        code, result = store.start(bench.train_input(prepared, free_port(), attempt=attempt), 0, **zygote, **fault).wait()
        assert (code, result["reason"], name in result["message"]) == (70, "ProcessLost", True), result
        seen.append((result["step"], result.get("fingerprint")))
    # The fault strikes at the end of the second step, before that is told.
    assert len(set(seen)) == 1, seen
    assert (seen[0][0], bool(seen[0][1])) == (1, known)


def test_a_process_that_is_aborted_is_judged_by_what_it_wrote_last(store, zygote):
    prepared = store.run(bench.prepare_input())[1]
    fault = {"FAULT": json.dumps({"do": "abort", "step": 2, "text": "terminated with exception: CUDA error: uncorrectable ECC error encountered"})}
    pod = store.start(bench.train_input(prepared, free_port()), 0, **zygote, **fault, TUNESMITH_NODE="gpu-7")
    code, result = pod.wait()
    assert (code, result["reason"], result["step"]) == (69, "DeviceFailed", 1), result
    assert result["message"].startswith("a GPU of node gpu-7 failed: CUDA error: uncorrectable ECC error encountered;")
    assert len(result["fingerprint"]) == 12
    # What is kept is passed on too.
    assert "terminated with exception: CUDA error" in pod.log.read_text()


WATCHDOG = "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)"


@pytest.mark.parametrize(
    ("device", "name", "line", "reason", "known"),
    [
        ("GPU", "SIGABRT", WATCHDOG, "CommunicationFailed", False),
        ("GPU", "SIGABRT", "", "CommunicationFailed", False),
        ("CPU", "SIGABRT", "", None, False),
        ("GPU", "SIGABRT", "free(): invalid pointer", None, False),
        ("GPU", "SIGABRT", "terminate called: CUDA error: an illegal memory access was encountered", "DeviceFailed", True),
        ("GPU", "SIGABRT", "terminate called: CUDA error: device-side assert triggered", "InternalError", True),
        ("CPU", "SIGABRT", "terminate called after throwing an instance of 'std::bad_alloc'", "OutOfMemory", True),
        # bitsandbytes ends its process by exit(1).
        ("GPU", "", "Error out of memory at line 90 in file /src/csrc/ops.cu", "OutOfMemory", True),
        ("GPU", "SIGKILL", "CUDA error: unknown error", None, False),
        ("GPU", "SIGSEGV", WATCHDOG, None, False),
    ],
)
def test_the_end_of_a_process_means_what_it_wrote(device, name, line, reason, known):
    found = train.last_words(device, name, ["a step", line])
    assert (found and found.reason) == reason
    assert bool(found and "fingerprint" in found.details) == known


def test_of_a_nodes_processes_the_one_that_knows_the_cause_counts(tmp_path):
    launcher = train.Launcher(SimpleNamespace(rendezvous=SimpleNamespace(processes_per_node=3)), tmp_path, tmp_path, None)
    for rank, name in enumerate(("PeerUnavailable", "CommunicationFailed", "DeviceFailed")):
        failure = {"failure": {"reason": name, "message": name, "details": {}}}
        outcome_path(tmp_path, rank).write_text(json.dumps(failure))
        assert train.is_cause(failure) == (name == "DeviceFailed")
    for name in ("DeviceFailed", "CommunicationFailed"):
        with pytest.raises(StageError) as caught:
            launcher.answer()
        assert caught.value.reason == name
        outcome_path(tmp_path, 2).write_text(outcome_path(tmp_path, 0).read_text())


def test_the_last_lines_of_a_stream_are_kept_and_all_of_it_is_passed_on(capfd):
    follow = Tail()
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; [sys.stderr.write(f'{n}\\n') for n in range(1000)]; sys.stderr.write('end')"], stderr=subprocess.PIPE
    ) as process:
        follow.follow(process.stderr)
    follow.finish()
    assert follow.lines[-2:] == ["999", "end"]
    assert len(follow.lines) == 400
    assert capfd.readouterr().err.splitlines() == [*map(str, range(1000)), "end"]
