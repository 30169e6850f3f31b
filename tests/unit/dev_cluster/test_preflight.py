"""Every problem before the start is one sentence."""

import os
import socket

import pytest

from dev.cluster import packages, preflight, tools
from dev.cluster.errors import ClusterError


def test_missing_packages_are_named_with_the_line_to_type(monkeypatch):
    monkeypatch.setattr(packages, "is_present", lambda evidence: evidence != "runc")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match=r"apt-get install --no-install-recommends runc$"):
        packages.ensure(print)


def test_nothing_is_installed_when_nothing_is_missing(monkeypatch):
    monkeypatch.setattr(packages, "is_present", lambda evidence: True)
    packages.ensure(pytest.fail)


def test_root_on_debian_gets_only_what_is_missing(monkeypatch):
    calls = []
    monkeypatch.setattr(packages, "is_present", lambda evidence: evidence != "runc")
    monkeypatch.setattr(packages.shutil, "which", lambda name: "/usr/bin/apt-get")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(packages, "_apt_get", lambda *arguments: calls.append(arguments))
    said = []
    packages.ensure(said.append)
    assert [call[0] for call in calls] == ["update", "install"]
    assert calls[1][-1] == "runc"
    assert said == ["installing missing Debian packages: runc"]


def test_an_ordinary_user_is_told_that_root_is_needed(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match="needs root"):
        preflight.check_root()


def test_too_little_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(preflight, "SPACE_TO_BUILD", 1 << 60)
    with pytest.raises(ClusterError, match="too little disk"):
        preflight.check_space(building=True)


def test_too_little_memory():
    preflight.require_memory(1 << 20)
    with pytest.raises(ClusterError, match=r"too little memory: .* GiB, 1024 needed"):
        preflight.require_memory(1 << 40)


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


def test_a_missing_go_is_told_before_anything_is_built(monkeypatch):
    monkeypatch.setenv("PATH", "")
    tools.go_version.cache_clear()
    with pytest.raises(ClusterError, match=r"^Go is not installed"):
        preflight.check_build(pytest.fail)
    tools.go_version.cache_clear()
