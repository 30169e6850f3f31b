"""Every problem before the start is one sentence."""

import os
import socket

import pytest

from dev.cluster import preflight
from dev.cluster.errors import ClusterError


def test_missing_packages_are_named_with_the_line_to_type(monkeypatch):
    monkeypatch.setattr(preflight, "is_present", lambda evidence: evidence != "runc")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match=r"apt-get install --no-install-recommends runc$"):
        preflight.ensure_packages(print)


def test_nothing_is_installed_when_nothing_is_missing(monkeypatch):
    monkeypatch.setattr(preflight, "missing_packages", list)
    preflight.ensure_packages(lambda message: pytest.fail(message))


def test_an_ordinary_user_is_told_that_root_is_needed(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match="needs root"):
        preflight.check_root()


def test_too_little_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(preflight, "SPACE_TO_BUILD", 1 << 60)
    with pytest.raises(ClusterError, match="too little disk"):
        preflight.check_space(building=True)


def test_a_taken_port(monkeypatch):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        monkeypatch.setattr(preflight, "API_PORT", other.getsockname()[1])
        monkeypatch.setattr(preflight, "BRIDGE", "no-such-bridge")
        with pytest.raises(ClusterError, match="is taken"):
            preflight.check_network()


def test_an_interface_of_the_same_name(monkeypatch):
    monkeypatch.setattr(preflight, "BRIDGE", "lo")
    with pytest.raises(ClusterError, match="lo exists already"):
        preflight.check_network()
