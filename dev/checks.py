"""Runs the parts of the test suite one after another and prints how long each took.

    python3 -m dev.checks [--go-on] lint types unit integration trainer serving e2e down

Each part is a few commands in the Python environment that the part needs (`dev.venv` builds it from its lock on first use).
One heavy part at a time: the parts never overlap. A part that fails does not stop the next ones, but the exit code tells; where
`machine` or `build` fails, this machine lacks what the others need, and nothing more is started.

Each part leaves a JUnit file with the tested commit, `build/tests/<part>.xml`, and all durations, `build/tests/<part>.durations`.
With `--go-on`, a part whose JUnit file says that it passed at the present commit, in a tree without changes, is not run again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dev import junit

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "build" / "tests"
PYTEST = ["-m", "pytest", "-q", "--durations=5"]
# Whole files, in the order in which they are collected: each folder's conftest.py has the longest first.
TWO_WORKERS = ["--numprocesses=2", "--dist=loadfile", "--no-loadscope-reorder"]
# Workers whose matrix products each take both cores keep one another waiting: they take twice the CPU time.
TRAINER = {"PYTHONPATH": "trainer-image:contract", "OMP_NUM_THREADS": "1"}
E2E = ["-m", "pytest", "-v", "--durations=10"]
# pyproject.toml leaves tests out that are marked so: they run in `make test-all` alone.
LONG = ["-m", "long"]
# Without what an earlier version has left in the development cluster; a cluster that KUBECONFIG names is the user's own.
DOWN = ["-m", "dev.cluster", "down", "--purge"]
FRESH = [] if os.environ.get("KUBECONFIG") else [DOWN]
ROLLOUTS = "tests/e2e/test_serving.py"

# part -> (environment, environment variables, [arguments to that environment's python])
# The environment HOST is the python that runs this.
HOST = "host"
NEEDED = ("machine", "build")
CLUSTER = frozenset(("e2e", "rollouts", "drills", "e2e-images"))
"""Parts that start the development cluster where it does not run, and leave it running."""
WRITERS = frozenset(("fmt", "generate"))
"""Parts that change files instead of testing them."""
PARTS: dict[str, tuple[str, dict[str, str], list[list[str]]]] = {
    # What the parts with a cluster need: not asked of a machine that runs the others alone.
    "machine": (HOST, {}, [["-m", "dev.demo", "--check"]]),
    # First and on its own: what a test would otherwise build for minutes within its time limit and with its output captured.
    "build": (HOST, {}, [["-m", "dev.cluster", "build"], ["-m", "dev.cluster", "tool", "helm"]]),
    "lint": (
        "operator",
        {"PYTHONPATH": "operator:contract"},
        [
            ["-m", "ruff", "check", "."],
            ["-m", "ruff", "format", "--check", "."],
            ["-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        ],
    ),
    "types": ("operator", {}, [["-m", "mypy"]]),
    "unit": ("operator", {}, [[*PYTEST, "--numprocesses=2", "tests/unit"]]),
    # Each worker has a control plane of its own: more than half of the time such tests wait.
    "integration": ("operator", {}, [[*PYTEST, *TWO_WORKERS, "tests/integration"]]),
    "trainer": ("trainer", TRAINER, [[*PYTEST, *TWO_WORKERS, "tests/trainer"]]),
    "serving": ("serving", {"PYTHONPATH": "serving-image:contract"}, [[*PYTEST, *TWO_WORKERS, "tests/serving"]]),
    # The chain is one long step of the first test that needs it.
    "e2e": (
        "operator",
        {},
        [*FRESH, [*E2E, "--timeout=1800", "tests/e2e"]],
    ),
    "rollouts": ("operator", {}, [[*E2E, "--timeout=2700", *LONG, ROLLOUTS]]),
    "drills": ("operator", {}, [[*E2E, "--timeout=2700", *LONG, f"--ignore={ROLLOUTS}", "tests/e2e"]]),
    "images": (HOST, {}, [["-m", "dev.images"]]),
    "e2e-images": (
        "operator",
        {"TUNESMITH_REAL_IMAGES": "1"},
        [*FRESH, [*E2E, "--timeout=2700", "tests/e2e/test_chain.py"]],
    ),
    # One row more of a table each, or the same for longer.
    "integration-long": ("operator", {}, [[*PYTEST, *LONG, "tests/integration"]]),
    "trainer-long": ("trainer", TRAINER, [[*PYTEST, *LONG, "tests/trainer"]]),
    "crash": ("operator", {"PYTHONPATH": "operator:contract"}, [["-m", "dev.bench.crash"]]),
    "down": ("operator", {}, [["-m", "pytest", "-v", "tests/e2e_down"]]),
    "fmt": ("operator", {}, [["-m", "ruff", "format", "."], ["-m", "ruff", "check", "--fix", "."]]),
    "generate": (
        "operator",
        {"PYTHONPATH": "operator:contract"},
        [["-m", "tunesmith.crd", "crds"], ["-m", "tunesmith.crd", "helm/tunesmith/files/crds"], ["-m", "dev.api_reference", "docs/api.md"]],
    ),
}


LIMITS: dict[str, float] = {
    **{"build": 2700, "unit": 900, "integration": 2400, "trainer": 2400, "serving": 900, "e2e": 3600, "down": 600},
    **{"integration-long": 2400, "trainer-long": 2400, "rollouts": 5400, "drills": 10800, "images": 5400, "e2e-images": 5400, "crash": 5400},
}
"""Seconds that a part's commands may take, with nothing cached: what hangs must not keep the others, and the table, from being seen."""


@dataclass(frozen=True)
class Row:
    """A row of the table at the end."""

    part: str
    good: bool
    seconds: float
    record: junit.Record | None
    earlier: bool = False

    def __str__(self) -> str:
        verdict = "ok (earlier)" if self.earlier else "ok" if self.good else "FAIL"
        counted = f"{self.record.tests:5} tests" if self.record and self.record.tests else ""
        skipped = f", {self.record.skipped} skipped" if self.record and self.record.skipped else ""
        return f"{verdict:12} {self.part:12} {self.seconds:7.0f} s {counted}{skipped}".rstrip()


def python(environment: str) -> str:
    """Path of the environment's interpreter; builds the environment if it is not there."""
    if environment == HOST:
        return sys.executable
    out = subprocess.run([sys.executable, "-m", "dev.venv", environment], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return out.stdout.strip()


def record_of(part: str) -> Path:
    """The part's JUnit file."""
    return RECORDS / f"{part}.xml"


def run(part: str) -> bool:
    """Run all commands of a part and write down what came of them; True if every one exited 0."""
    environment, variables, commands = PARTS[part]
    path, commit, done = record_of(part), junit.commit_of(ROOT), []
    # What an earlier run has left must not be taken for this one's.
    path.unlink(missing_ok=True)
    path.with_suffix(".durations").unlink(missing_ok=True)
    begun = time.monotonic()
    try:
        interpreter = python(environment)
    except subprocess.CalledProcessError as error:
        _write_down(part, commit, [junit.Command(f"python -m dev.venv {environment}", time.monotonic() - begun, error.returncode)])
        raise
    if environment != HOST:
        done.append(junit.Command(f"python -m dev.venv {environment}", time.monotonic() - begun, 0))
    limit = LIMITS.get(part)
    deadline = time.monotonic() + limit if limit else None
    for arguments in commands:
        print(f"\n== {part}: python {' '.join(arguments)}", flush=True)
        start = time.monotonic()
        left = deadline - start if deadline else None
        command = [interpreter, *arguments, *(_for_pytest(path, limit) if "pytest" in arguments else ())]
        # The same modules are imported by hundreds of processes: each would compile them.
        given = os.environ | variables | {junit.COMMIT: commit, "PYTHONDONTWRITEBYTECODE": ""}
        status = run_within(left, command, given)
        done.append(junit.Command(f"python {' '.join(arguments)}", time.monotonic() - start, status))
    if part not in WRITERS:
        _write_down(part, commit, done)
    return all(command.status == 0 for command in done)


def _write_down(part: str, commit: str, done: Sequence[junit.Command]) -> None:
    """Write the part's JUnit file and its durations, beside what pytest wrote of each test."""
    if junit.commit_of(ROOT) != commit:
        print(f"{part}: the tree was changed while this ran", file=sys.stderr, flush=True)
        commit = commit.removesuffix(junit.DIRTY) + junit.DIRTY
    path = record_of(part)
    junit.write(path, part, commit, done)
    with path.with_suffix(".durations").open("a") as listing:
        listing.writelines(f"{command.seconds:9.2f} s command  {command.name}\n" for command in done)


def _for_pytest(path: Path, limit: float | None) -> list[str]:
    """More arguments: where its JUnit file goes, and after how long a test ends the process, with all stacks."""
    # For one test: less than for all, since what it ends it names.
    ending = [f"-ofaulthandler_timeout={0.8 * limit:.0f}"] if limit else []
    return [f"--junitxml={path}", *ending]


def run_within(limit: float | None, command: Sequence[str], environment: Mapping[str, str], grace: float = 60) -> int:
    """Run a command for at most so many seconds and return its exit status: then it is interrupted, and killed with all it started."""
    # In a group of its own, so that what hangs below it goes with it.
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        print(f"this has run for {limit:.0f} s and is ended now", file=sys.stderr, flush=True)
        return _interrupt(process, grace)
    except BaseException:
        _interrupt(process, grace)
        raise


def _interrupt(process: subprocess.Popen[bytes], grace: float) -> int:
    """Let it tell what it knows, which pytest does; then end it."""
    try:
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.wait() or 1


def main(arguments: Sequence[str]) -> int:
    """Run the named parts in order; 0 if all passed."""
    going_on = "--go-on" in arguments
    parts = [argument for argument in arguments if argument != "--go-on"]
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        print(f"usage: python3 -m dev.checks [--go-on] PART…; parts: {', '.join(PARTS)}", file=sys.stderr)
        return 64
    # A process group of each part's own does not hear of what is sent to this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    rows: list[Row] = []
    for part in parts:
        ran = [row.part for row in rows if not row.earlier]
        if going_on and (record := _earlier(part, ran)):
            rows.append(Row(part, True, record.seconds, record, earlier=True))
            continue
        rows.append(_row(part, fresh=going_on and part in CLUSTER and not CLUSTER.intersection(ran)))
        if part in NEEDED and not rows[-1].good:
            print(f"{part} failed (see above): nothing more is started", file=sys.stderr)
            break
    print()
    print(*rows, sep="\n")
    failed = sum(not row.good for row in rows)
    print(f"parts: {len(rows) - failed} passed, {failed} failed; {junit.commit_of(ROOT)}; JUnit files and durations: {RECORDS.relative_to(ROOT)}/")
    return 1 if failed else 0


def _earlier(part: str, ran: Sequence[str]) -> junit.Record | None:
    """The record of a part that need not be run again, after those that `ran`."""
    # What the machine has does not hang on the commit; and a cluster that was started since has to go.
    if part in NEEDED or (part == "down" and CLUSTER.intersection(ran)):
        return None
    record = junit.read(record_of(part))
    return record if record and record.is_green_at(junit.commit_of(ROOT)) else None


def _row(part: str, fresh: bool) -> Row:
    """Run a part. `fresh`: without what another commit may have left in the development cluster."""
    start = time.monotonic()
    try:
        if fresh and FRESH:
            subprocess.run([sys.executable, *DOWN], cwd=ROOT, check=True)
        good = run(part)
    except subprocess.CalledProcessError as error:
        print(f"{part}: its environment could not be built, or the cluster not be taken down: {error}", file=sys.stderr)
        good = False
    return Row(part, good, time.monotonic() - start, junit.read(record_of(part)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
