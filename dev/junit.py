"""JUnit files of the parts of the test suite: what was run, at which commit, and what came of it.

pytest writes one for each part that it runs; the commit is a property of each test suite (conftest.py). Here the part's commands are
added as a test suite of their own, last, so that a file without it belongs to a run that did not end.
"""

from __future__ import annotations

import os
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

COMMIT = "TUNESMITH_TESTED_COMMIT"
"""The environment variable that says to pytest which commit is tested."""
UNKNOWN = "unknown"
DIRTY = "-dirty"
COMMANDS = "commands"
"""Name of the suite of a part's commands."""


@dataclass(frozen=True)
class Command:
    """A command of a part: its arguments, how long it took (seconds), its exit status."""

    name: str
    seconds: float
    status: int


@dataclass(frozen=True)
class Record:
    """What a file says of its part."""

    commit: str
    """Of all its test suites; "" where they differ or one has none."""
    good: bool
    """Whether the part ended and nothing failed."""
    tests: int
    skipped: int
    seconds: float
    """Of all its commands."""

    def is_green_at(self, commit: str) -> bool:
        """Whether the part passed at exactly that commit; never for a tree that differs from its commit."""
        return self.good and self.commit == commit and is_clean(commit)


def is_clean(commit: str) -> bool:
    """Whether it names a tree that can be had again."""
    return commit != UNKNOWN and not commit.endswith(DIRTY)


def commit_of(repository: Path) -> str:
    """The commit that is checked out; with `-dirty` where the tree differs from it, files that git does not know included."""
    # With git's own variables (as in a hook) it would look elsewhere.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # A folder above may be a repository of something else.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != repository.resolve():
            return UNKNOWN
        return git("rev-parse", "HEAD") + (DIRTY if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN


def write(path: Path, part: str, commit: str, commands: Sequence[Command]) -> None:
    """Add the suite of the part's commands to what pytest has left in `path`, or write a file that holds it alone."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        # There is none, or pytest was ended while it wrote.
        root = ElementTree.Element("testsuites")
    failed = sum(command.status != 0 for command in commands)
    counts = {"tests": len(commands), "failures": failed, "errors": 0, "skipped": 0}
    seconds = sum(command.seconds for command in commands)
    suite = ElementTree.SubElement(root, "testsuite", {"name": COMMANDS, "time": f"{seconds:.3f}"} | {name: str(n) for name, n in counts.items()})
    ElementTree.SubElement(ElementTree.SubElement(suite, "properties"), "property", {"name": "commit", "value": commit})
    for command in commands:
        case = ElementTree.SubElement(suite, "testcase", {"classname": part, "name": command.name, "time": f"{command.seconds:.3f}"})
        if command.status:
            ElementTree.SubElement(case, "failure", {"message": f"exit status {command.status}"})
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def read(path: Path) -> Record | None:
    """What the file says; None if there is none that can be read."""
    try:
        suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return None
    commits = {next((each.get("value", "") for each in suite.iter("property") if each.get("name") == "commit"), "") for suite in suites}
    own = [suite for suite in suites if suite.get("name") == COMMANDS]
    wrong = sum(int(suite.get(name, "0")) for suite in suites for name in ("failures", "errors"))
    tests = [suite for suite in suites if suite not in own] or own
    return Record(
        commit=commits.pop() if len(commits) == 1 else "",
        good=bool(own) and not wrong,
        tests=sum(int(suite.get("tests", "0")) for suite in tests),
        skipped=sum(int(suite.get("skipped", "0")) for suite in tests),
        seconds=sum(float(suite.get("time", "0")) for suite in own),
    )
