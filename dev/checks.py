"""Runs the parts of the test suite one after another and prints how long each took.

    python3 -m dev.checks lint types unit integration trainer serving e2e down

Each part is a few commands in the Python environment that the part needs (`dev.venv` builds it from its lock on first use).
One heavy part at a time: the parts never overlap. A part that fails does not stop the next ones, but the exit code tells; where
`machine` or `build` fails, this machine lacks what the others need, and nothing more is started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTEST = ["-m", "pytest", "-q", "--durations=5"]
# Not among `make test`'s parts: with nothing cached, these have little room left for the 20 minutes that it takes.
ROLLOUTS = "tests/e2e/test_serving.py"
DRILLS = ("tests/e2e/test_long_drills.py", "tests/e2e/test_long_examples.py")

# part -> (environment, environment variables, [arguments to that environment's python])
# The environment HOST is the python that runs this.
HOST = "host"
NEEDED = ("machine", "build")
PARTS: dict[str, tuple[str, dict[str, str], list[list[str]]]] = {
    # What the parts with a cluster need: not asked of a machine that runs the others alone.
    "machine": (HOST, {}, [["-m", "dev.demo", "--check"]]),
    # First and on its own: what a test would otherwise build for minutes within its time limit and with its output captured.
    "build": (HOST, {}, [["-m", "dev.cluster", "build"], ["-m", "dev.cluster", "tool", "helm"]]),
    "lint": (
        "operator",
        {"PYTHONPATH": "operator"},
        [
            ["-m", "ruff", "check", "."],
            ["-m", "ruff", "format", "--check", "."],
            ["-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        ],
    ),
    "types": ("operator", {}, [["-m", "mypy"]]),
    "unit": ("operator", {}, [[*PYTEST, "tests/unit"]]),
    # Two at a time, each with a control plane of its own: more than half of the time such tests wait.
    "integration": ("operator", {}, [[*PYTEST, "--numprocesses=2", "--dist=loadfile", "tests/integration"]]),
    "trainer": ("trainer", {"PYTHONPATH": "trainer-image"}, [[*PYTEST, "tests/trainer"]]),
    "serving": ("serving", {"PYTHONPATH": "serving-image"}, [[*PYTEST, "tests/serving"]]),
    # The chain is one long step of the first test that needs it.
    "e2e": (
        "operator",
        {},
        [["-m", "pytest", "-v", "--durations=10", "--timeout=1800", "tests/e2e", *map("--ignore={}".format, (ROLLOUTS, *DRILLS))]],
    ),
    "rollouts": ("operator", {}, [["-m", "pytest", "-v", "--durations=10", "--timeout=2700", ROLLOUTS]]),
    "drills": ("operator", {}, [["-m", "pytest", "-v", "--durations=10", "--timeout=2700", *DRILLS]]),
    "images": (HOST, {}, [["-m", "dev.images"]]),
    "e2e-images": (
        "operator",
        {"TUNESMITH_REAL_IMAGES": "1"},
        [["-m", "pytest", "-v", "--durations=10", "--timeout=2700", "tests/e2e/test_chain.py"]],
    ),
    "down": ("operator", {}, [["-m", "pytest", "-v", "tests/e2e_down"]]),
    "fmt": ("operator", {}, [["-m", "ruff", "format", "."], ["-m", "ruff", "check", "--fix", "."]]),
    "generate": (
        "operator",
        {"PYTHONPATH": "operator"},
        [["-m", "tunesmith.crd", "crds"], ["-m", "tunesmith.crd", "helm/tunesmith/files/crds"], ["-m", "dev.api_reference", "docs/api.md"]],
    ),
}


LIMITS: dict[str, float] = {"build": 2700, "unit": 900, "integration": 2400, "trainer": 2400, "serving": 900, "e2e": 3600, "down": 600}
"""Seconds that a part's commands may take, with nothing cached: what hangs must not keep the others, and the table, from being seen."""


def python(environment: str) -> str:
    """Path of the environment's interpreter; builds the environment if it is not there."""
    if environment == HOST:
        return sys.executable
    out = subprocess.run([sys.executable, "-m", "dev.venv", environment], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return out.stdout.strip()


def run(part: str) -> bool:
    """Run all commands of a part; True if every one exited 0."""
    environment, variables, commands = PARTS[part]
    interpreter = python(environment)
    good, limit = True, LIMITS.get(part)
    deadline = time.monotonic() + limit if limit else None
    for arguments in commands:
        print(f"\n== {part}: python {' '.join(arguments)}", flush=True)
        # For one test: less than for all, since what it ends it names, with all stacks.
        ending = [f"-ofaulthandler_timeout={0.8 * limit:.0f}"] if limit and "pytest" in arguments else []
        left = deadline - time.monotonic() if deadline else None
        good &= run_within(left, [interpreter, *arguments, *ending], os.environ | variables) == 0
    return good


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


def main(parts: list[str]) -> int:
    """Run the named parts in order; 0 if all passed."""
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        print(f"usage: python3 -m dev.checks PART…; parts: {', '.join(PARTS)}", file=sys.stderr)
        return 64
    # A process group of each part's own does not hear of what is sent to this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    took: list[tuple[str, bool, float]] = []
    for part in parts:
        start = time.monotonic()
        try:
            good = run(part)
        except subprocess.CalledProcessError as error:
            print(f"{part}: its environment could not be built: {error}", file=sys.stderr)
            good = False
        took.append((part, good, time.monotonic() - start))
        if part in NEEDED and not good:
            print(f"{part} failed (see above): nothing more is started", file=sys.stderr)
            break
    print()
    for part, good, seconds in took:
        print(f"{'ok  ' if good else 'FAIL'} {part:12} {seconds:7.0f} s")
    failed = sum(not good for _, good, _ in took)
    print(f"parts: {len(took) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
