"""The parts of the test suite run one after another."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from dev import checks
from dev.cluster import preflight
from dev.cluster.errors import ClusterError
from dev.cluster.processes import is_running, wait_until
from dev.demo import stack


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts that ran; all of them fail."""
    parts: list[str] = []
    monkeypatch.setattr(checks, "run", lambda part: parts.append(part) is not None)
    return parts


@pytest.mark.parametrize("needed", ["machine", "build"])
def test_where_the_machine_lacks_something_nothing_else_is_started(ran: list[str], capsys: pytest.CaptureFixture[str], needed: str) -> None:
    assert checks.main([needed, "lint", "unit"]) == 1
    assert ran == [needed]
    assert "parts: 0 passed, 1 failed" in capsys.readouterr().out


def test_another_part_that_fails_does_not_stop_the_next(ran: list[str]) -> None:
    assert checks.main(["lint", "unit"]) == 1
    assert ran == ["lint", "unit"]


HANGS = """
import pathlib, signal, subprocess, sys, time
mark = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGINT, lambda *_: mark.with_name("interrupted").touch())
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"])
mark.write_text(str(child.pid))
while True:
    time.sleep(600)
"""


def test_a_part_that_hangs_is_interrupted_and_then_killed_with_all_it_started(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "child"
    assert checks.run_within(8, [sys.executable, "-c", HANGS, str(mark)], os.environ, grace=4) != 0
    assert (tmp_path / "interrupted").exists()
    wait_until(lambda: not is_running(int(mark.read_text())), "its child to be gone", 10)
    assert "has run for 8 s and is ended" in capfd.readouterr().err


def test_a_part_that_ends_in_its_time_tells_its_own_status() -> None:
    assert checks.run_within(60, [sys.executable, "-c", "raise SystemExit(3)"], os.environ) == 3


@pytest.mark.parametrize("missing", ["root", "Go", "memory", "disk"])
def test_what_the_demo_needs_is_asked_for_before_anything_is_started(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    def lacks(*_: object) -> None:
        raise ClusterError(f"no {missing}")

    checked = {
        "root": (preflight, "check_root"),
        "Go": (stack.tools, "go_version"),
        "memory": (preflight, "require_memory"),
        "disk": (preflight, "require_space"),
    }
    for module, name in checked.values():
        monkeypatch.setattr(module, name, lambda *_: "")
    monkeypatch.setattr(stack.environments, "place", lambda name: stack.paths.cache_root() / "not-there" / name)
    stack.check_machine()
    module, name = checked[missing]
    monkeypatch.setattr(module, name, lacks)
    with pytest.raises(ClusterError, match=missing):
        stack.start_cluster(print)
