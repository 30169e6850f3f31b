"""For all tests: one that fails and then hangs in its teardown is ended, too; JUnit files name the commit and have all durations beside them."""

from __future__ import annotations

import faulthandler
import os
from pathlib import Path

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key
from _pytest.junitxml import xml_key

TEARDOWN_SECONDS = 600.0
"""What is left of a test that has failed may take so long: less than the test itself, so that this comes before the limit of the whole part."""


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    """Watch the rest of a test that has failed: here pytest-timeout and pytest's faulthandler end their watch, for the sake of debuggers.

    (What failed the tests once: a timeout, and then a teardown that waited for ever.) That of faulthandler is ended with the test.
    """
    limit = min(TEARDOWN_SECONDS, float(node.config.getini("faulthandler_timeout") or 0))
    if isinstance(node, pytest.Item) and limit and not node.config.getoption("usepdb"):
        faulthandler.dump_traceback_later(limit, file=node.config.stash[fault_handler_stderr_fd_key], exit=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Give the JUnit file, where one is written, the commit that dev/checks.py says is tested.

    (The fixture `record_testsuite_property` does nothing in the workers of pytest-xdist.)
    """
    xml, commit = session.config.stash.get(xml_key, None), os.environ.get("TUNESMITH_TESTED_COMMIT")
    if xml and commit:
        xml.add_global_property("commit", commit)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write how long each test and its fixtures took beside the JUnit file, the longest first."""
    xml = terminalreporter.config.stash.get(xml_key, None)
    if xml:
        reports = [report for reports in terminalreporter.stats.values() for report in reports if isinstance(report, pytest.TestReport)]
        reports.sort(key=lambda report: report.duration, reverse=True)
        lines = [f"{report.duration:9.2f} s {report.when:8} {report.nodeid}\n" for report in reports]
        Path(xml.logfile).with_suffix(".durations").write_text("".join(lines))
