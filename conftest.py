"""For all tests: one that fails and then hangs in its teardown is ended, too."""

from __future__ import annotations

import faulthandler

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key

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
