"""Locked environments: keys, commands, and the interpreter they end up with."""

import os
from pathlib import Path

import pytest

from dev.cluster import environments
from dev.cluster.errors import ClusterError


def test_the_key_follows_the_lock_and_the_base():
    keys = {
        environments.environment_key([b"a==1"], "base-1"),
        environments.environment_key([b"a==2"], "base-1"),
        environments.environment_key([b"a==1"], "base-2"),
        environments.environment_key([b"a==1", b"hook"], "base-1"),
    }
    assert len(keys) == 4


def test_only_what_the_lock_names_is_installed():
    command = environments.install_command("uv", Path("/e/bin/python"), Path("r.txt"))
    assert "--require-hashes" in command
    assert "--no-deps" in command


def test_an_environment_uses_the_images_python(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to("/cache/rootfs/usr/bin/python3")
    (tmp_path / "pyvenv.cfg").write_text("home = /cache/rootfs/usr/bin\nrelocatable = true\n")
    environments.point_at_image_python(tmp_path)
    assert os.readlink(tmp_path / "bin" / "python") == "/usr/bin/python3"
    assert (tmp_path / "pyvenv.cfg").read_text() == "home = /usr/bin\nrelocatable = true\n"


def test_a_missing_lock_is_one_sentence(tmp_path):
    with pytest.raises(ClusterError, match=r"no lock file trainer-image/requirements\.txt"):
        environments.environment("trainer", repository=tmp_path)
