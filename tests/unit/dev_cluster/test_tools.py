"""Build keys, flags and the search for binaries."""

from pathlib import Path

import pytest

from dev.cluster import tools
from dev.cluster.errors import ClusterError

SOURCES = {"go.mod": b"module x\n", "go.sum": b"sum\n"}


def test_the_key_changes_with_pins_flags_and_toolchain():
    keys = {
        tools.module_key(SOURCES, ["-s"], "go1.26.8"),
        tools.module_key({**SOURCES, "go.mod": b"module y\n"}, ["-s"], "go1.26.8"),
        tools.module_key(SOURCES, ["-w"], "go1.26.8"),
        tools.module_key(SOURCES, ["-s"], "go1.26.9"),
    }
    assert len(keys) == 4


def test_the_key_does_not_depend_on_the_order_of_files():
    reverse = dict(reversed(SOURCES.items()))
    assert tools.module_key(SOURCES, [], "go1") == tools.module_key(reverse, [], "go1")


@pytest.mark.parametrize("line", ["require a.b/c v1.2.3", "\ta.b/c v1.2.3 // indirect"])
def test_pinned_version(line):
    assert tools.pinned_version(f"module x\n\n{line}\n", "a.b/c") == "v1.2.3"


def test_a_module_that_is_not_pinned_is_an_error():
    with pytest.raises(ClusterError, match="does not require"):
        tools.pinned_version("module x\n", "a.b/c")


def test_kubernetes_binaries_carry_their_version():
    flags = tools.linker_flags(tools.GO_BINARIES["kubelet"], "require k8s.io/kubernetes v1.37.2\n")
    assert "gitVersion=v1.37.2" in flags
    assert "gitMinor=37" in flags


@pytest.mark.parametrize("spec", tools.GO_BINARIES.values(), ids=lambda spec: spec.name)
def test_every_binary_has_a_module_with_pins(spec):
    folder = tools.paths.MODULES / spec.module
    assert (folder / "go.sum").exists()
    assert tools.build_command(spec, (folder / "go.mod").read_text(), Path("out"))


def test_binaries_in_kubebuilder_assets_come_first(tmp_path, monkeypatch):
    kubectl = tmp_path / "kubectl"
    kubectl.write_text("#!/bin/sh\n")
    kubectl.chmod(0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    assert tools.binary("kubectl") == kubectl


def test_a_cached_build_is_used_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tools, "module_folder", lambda module: tmp_path / module)
    (tmp_path / "etcd").mkdir()
    (tmp_path / "etcd" / "etcd").write_text("")
    assert tools.built("etcd") == tmp_path / "etcd" / "etcd"
    assert tools.missing(["etcd", "kubectl"]) == ["kubectl"]


@pytest.mark.parametrize(("version", "old"), [("go1.19.8", True), ("go1.21.0", False), ("go1.26.8", False), ("devel +abc", False)])
def test_a_go_that_cannot_fetch_a_newer_one_is_refused(version, old):
    assert tools.is_too_old(version) is old
