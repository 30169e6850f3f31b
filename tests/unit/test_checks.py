"""The parts of the test suite run one after another."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dev import checks, junit
from dev.cluster import preflight
from dev.cluster.errors import ClusterError
from dev.cluster.processes import is_running, wait_until
from dev.demo import stack

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def records(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder for JUnit files that is not the one of the run that this test is part of."""
    monkeypatch.setattr(checks, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    return tmp_path / "records"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts that ran; all of them fail."""
    parts: list[str] = []
    monkeypatch.setattr(checks, "run", lambda part: parts.append(part) is not None)
    return parts


PROGRAM = """
import pytest

@pytest.fixture(scope="module")
def slow():
    yield

def test_passes(slow):
    pass

def test_is_left_out():
    pytest.skip("not here")
"""


@pytest.fixture
def repository(records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a part `tests` of two tests, one of them skipped, and a part `lint`; nothing in it is uncommitted."""
    (tmp_path / "conftest.py").write_text((REPOSITORY / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(PROGRAM)
    (tmp_path / ".gitignore").write_text("records\n__pycache__\n.pytest_cache\n")
    pytest_command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    parts = {name: (checks.HOST, {}, [["-c", "pass"], ["-c", "pass"]]) for name in ("lint", "machine", "down", "e2e")}
    monkeypatch.setattr(checks, "PARTS", parts | {"tests": (checks.HOST, {}, [pytest_command])})
    monkeypatch.setattr(checks, "FRESH", [])
    git(tmp_path, "init", "--quiet")
    commit(tmp_path, "first")
    return tmp_path


def git(repository: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.com", *arguments]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout.strip()


def commit(repository: Path, message: str) -> str:
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--allow-empty", f"--message={message}")
    return git(repository, "rev-parse", "HEAD")


def test_each_part_leaves_a_junit_file_with_the_commit_and_all_durations(repository: Path, records: Path) -> None:
    # By workers, as in the part `integration`.
    checks.PARTS["tests"][2][0].append("--numprocesses=1")
    assert checks.main(["lint", "tests"]) == 0
    head = git(repository, "rev-parse", "HEAD")
    for part, tests, skipped in (("lint", 2, 0), ("tests", 2, 1)):
        record = junit.read(records / f"{part}.xml")
        assert record and (record.commit, record.good, record.tests, record.skipped) == (head, True, tests, skipped)
        assert record.seconds > 0
    durations = (records / "tests.durations").read_text()
    for phase in ("setup", "call", "teardown"):
        assert f" s {phase}" in durations
    assert "test_it.py::test_passes" in durations and " s command  python -m pytest" in durations
    assert (records / "lint.durations").read_text().count(" s command ") == 2


def test_a_tree_that_differs_from_its_commit_is_named_so_and_passes_for_no_commit(repository: Path, records: Path) -> None:
    (repository / "new.py").write_text("")
    assert checks.main(["tests"]) == 0
    record = junit.read(records / "tests.xml")
    assert record and record.commit == git(repository, "rev-parse", "HEAD") + "-dirty"
    assert record.good and not record.is_green_at(record.commit)


def test_a_tree_that_changes_while_a_part_runs_has_passed_for_no_commit(repository: Path, records: Path) -> None:
    (repository / "test_it.py").write_text("def test_writes():\n    open('new', 'w').close()\n")
    head = commit(repository, "second")
    assert checks.main(["tests"]) == 0
    record = junit.read(records / "tests.xml")
    assert record and record.good and not record.is_green_at(head)


def test_going_on_runs_no_part_again_that_passed_at_this_commit(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checks.main(["lint", "tests"]) == 0
    assert checks.main(["--go-on", "lint", "tests"]) == 0
    *_, lint, tests, last = capsys.readouterr().out.splitlines()
    assert lint.startswith("ok (earlier) lint") and tests.startswith("ok (earlier) tests")
    assert tests.endswith(" s     2 tests, 1 skipped")
    assert last.startswith(f"parts: 2 passed, 0 failed; {git(repository, 'rev-parse', 'HEAD')}")
    assert checks.main(["lint"]) == 0
    assert capsys.readouterr().out.splitlines()[-2].startswith("ok           lint")


@pytest.mark.parametrize(
    "program",
    ["def test_fails():\n    assert False\n", "import os\ndef test_is_killed():\n    os.kill(os.getpid(), 9)\n", ""],
    ids=["fails", "killed", "none"],
)
def test_a_part_whose_tests_fail_are_killed_or_are_not_there_has_not_passed(repository: Path, records: Path, program: str) -> None:
    (repository / "test_it.py").write_text(program)
    head = commit(repository, "second")
    assert checks.main(["tests"]) == 1
    record = junit.read(records / "tests.xml")
    assert record and record.commit == head and not record.is_green_at(head)


def test_going_on_runs_a_part_again_at_another_commit_and_in_a_changed_tree(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def earlier() -> bool:
        assert checks.main(["--go-on", "lint"]) == 0
        return "earlier" in capsys.readouterr().out

    assert [earlier(), earlier()] == [False, True]
    (repository / "new.py").write_text("")
    assert [earlier(), earlier()] == [False, False]
    commit(repository, "second")
    assert [earlier(), earlier()] == [False, True]


def test_going_on_asks_the_machine_again_and_takes_the_cluster_down_that_a_part_has_started(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checks.main(["machine", "e2e", "down"]) == 0

    def earlier() -> list[str]:
        assert checks.main(["--go-on", "machine", "e2e", "down"]) == 0
        return [line.split()[2] for line in capsys.readouterr().out.splitlines() if line.startswith("ok (earlier)")]

    assert earlier() == ["e2e", "down"]
    checks.record_of("e2e").unlink()
    assert earlier() == []


def test_a_part_with_tests_is_one_run_of_pytest_so_that_none_writes_over_anothers_file() -> None:
    for name, (_, _, commands) in checks.PARTS.items():
        assert sum("pytest" in command for command in commands) <= 1, name


def test_each_part_of_the_makefile_has_a_limit_or_no_tests_in_it() -> None:
    for name, (_, _, commands) in checks.PARTS.items():
        assert name in checks.LIMITS or not any("pytest" in command for command in commands), name


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


def test_make_test_all_runs_every_part_that_tests_something() -> None:
    (line,) = re.findall(r"^test-all:.*\n\t(.+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert set(line.split()[4:]) == checks.PARTS.keys() - checks.WRITERS


def test_what_is_left_out_of_make_test_is_run_by_a_part_of_test_all() -> None:
    # So that this file is not found: its own mark is another one.
    marked = [path.relative_to(REPOSITORY) for path in REPOSITORY.glob("tests/**/*.py") if "pytest.mark." + "long" in path.read_text()]
    assert len(marked) > 5
    commands = [command for _, _, commands in checks.PARTS.values() for command in commands if command[-1].startswith("tests/") and "long" in command]
    ignored = {argument.removeprefix("--ignore=") for command in commands for argument in command if argument.startswith("--ignore=")}
    for path in marked:
        assert any(path.is_relative_to(command[-1]) for command in commands), path
    assert ignored <= {command[-1] for command in commands}
