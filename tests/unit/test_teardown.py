"""What pytest does with a test that fails and then does not end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).resolve().parents[2] / "conftest.py"
TESTS = """
import time
import pytest

@pytest.fixture
def never_ends():
    yield
    time.sleep(600)

def test_fails(never_ends):
    assert False
"""


def test_a_test_that_hangs_after_it_has_failed_ends_its_process_and_tells_where(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "--timeout=20", "-ofaulthandler_timeout=5", "-ofaulthandler_exit_on_timeout=true"]
    ended = subprocess.run(command, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "never_ends" in ended.stderr
