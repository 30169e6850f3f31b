"""Which Python an environment is made with."""

from pathlib import Path

import pytest

from dev import venv
from dev.cluster import rootfs


def uv_that(body: str, folder: Path) -> str:
    script = folder / "uv"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return str(script)


def test_the_hosts_python_of_the_locks_version_is_used_where_there_is_one(tmp_path: Path) -> None:
    assert venv.interpreter(uv_that("echo /usr/bin/python3.11", tmp_path)) == "/usr/bin/python3.11"


def test_a_host_with_another_python_borrows_the_images_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootfs, "base_rootfs", lambda report: tmp_path / "rootfs")

    assert venv.interpreter(uv_that("exit 2", tmp_path)) == str(tmp_path / "rootfs/usr/bin/python3")
