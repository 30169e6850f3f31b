"""Paths of the binaries the cluster needs, built from pinned Go modules when they are missing."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import packages, paths
from .errors import ClusterError

Report = Callable[[str], None]


@dataclass(frozen=True)
class GoBinary:
    """A command to build from one of the modules under `modules/`."""

    name: str
    module: str
    package: str
    pin: str = ""
    """The module path whose pinned version is stamped into the binary."""
    stamps: tuple[str, ...] = ()
    """Linker variables; `{version}`, `{major}` and `{minor}` come from the pin."""
    cgo: bool = False
    tags: str = ""


KUBERNETES_STAMPS = (
    "k8s.io/component-base/version.gitVersion={version}",
    "k8s.io/component-base/version.gitMajor={major}",
    "k8s.io/component-base/version.gitMinor={minor}",
    "k8s.io/component-base/version.gitTreeState=clean",
)
CONTAINERD = "github.com/containerd/containerd/v2"


def _kubernetes(name: str) -> GoBinary:
    package = f"k8s.io/kubernetes/cmd/{name}"
    return GoBinary(name, "kubernetes", package, "k8s.io/kubernetes", KUBERNETES_STAMPS, cgo=True)


def _containerd(name: str) -> GoBinary:
    stamp = (f"{CONTAINERD}/version.Version={{version}}",)
    # These snapshotters need C libraries or kernel modules and are not used.
    tags = "no_btrfs,no_aufs,no_devmapper,no_zfs"
    return GoBinary(name, "containerd", f"{CONTAINERD}/cmd/{name}", CONTAINERD, stamp, tags=tags)


GO_BINARIES = {
    binary.name: binary
    for binary in (
        GoBinary("etcd", "etcd", "go.etcd.io/etcd/server/v3", cgo=True),
        _kubernetes("kube-apiserver"),
        _kubernetes("kube-controller-manager"),
        _kubernetes("kube-scheduler"),
        _kubernetes("kubectl"),
        _kubernetes("kubelet"),
        _kubernetes("kube-proxy"),
        GoBinary("fakegpu", "kubernetes", "./fakegpu", cgo=True),
        _containerd("containerd"),
        _containerd("containerd-shim-runc-v2"),
        _containerd("ctr"),
        GoBinary("coredns", "coredns", "./server"),
        GoBinary(
            "local-path-provisioner",
            "local-path-provisioner",
            "github.com/rancher/local-path-provisioner",
        ),
        GoBinary(
            "helm",
            "helm",
            "helm.sh/helm/v4/cmd/helm",
            "helm.sh/helm/v4",
            ("helm.sh/helm/v4/internal/version.version={version}",),
        ),
    )
}
CLUSTER = (*(name for name in GO_BINARIES if name != "helm"), "pause")
PAUSE_SOURCE = "build/pause/linux/pause.c"


def pinned_version(go_mod: str, module: str) -> str:
    """The version that a go.mod requires of a module."""
    match = re.search(rf"^(?:require)?\s*{re.escape(module)} (v\S+)", go_mod, re.MULTILINE)
    if match is None:
        raise ClusterError(f"go.mod does not require {module}")
    return match[1]


def linker_flags(binary: GoBinary, go_mod: str) -> str:
    """The -ldflags of a binary: no debug information, and its version stamped in."""
    flags = ["-s", "-w"]
    if binary.stamps:
        version = pinned_version(go_mod, binary.pin)
        major, minor = version.lstrip("v").split(".")[:2]
        for stamp in binary.stamps:
            flags += ["-X", stamp.format(version=version, major=major, minor=minor)]
    return " ".join(flags)


def build_command(binary: GoBinary, go_mod: str, target: Path) -> list[str]:
    """The `go build` call for a binary."""
    command = ["go", "build", "-v", "-buildvcs=false", "-ldflags", linker_flags(binary, go_mod)]
    if binary.tags:
        command += ["-tags", binary.tags]
    return [*command, "-o", str(target), binary.package]


def module_key(sources: Mapping[str, bytes], flags: Sequence[str], go_version: str) -> str:
    """A short hash over a module's pins and sources, its build flags and the Go version."""
    digest = hashlib.sha256(go_version.encode())
    for flag in flags:
        digest.update(b"\0flag\0" + flag.encode())
    for name in sorted(sources):
        digest.update(b"\0file\0" + name.encode() + b"\0" + sources[name])
    return digest.hexdigest()[:16]


@functools.cache
def go_version() -> str:
    """The Go toolchain's version, such as go1.26.8."""
    if shutil.which("go") is None:
        raise ClusterError("Go is not installed: dev/cluster builds Kubernetes with Go 1.26 or newer")
    command = ["go", "env", "GOVERSION"]
    version = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if is_too_old(version):
        raise ClusterError(f"{version} is too old: dev/cluster builds Kubernetes with Go 1.26 or newer")
    return version


def is_too_old(version: str) -> bool:
    """Whether a Go can neither build the modules nor, from 1.21 on, fetch the Go that can."""
    match = re.match(r"go(\d+)\.(\d+)", version)
    return match is not None and (int(match[1]), int(match[2])) < (1, 21)


@functools.cache
def module_folder(module: str) -> Path:
    """The cache folder for a module's binaries; another pin or flag gives another folder."""
    root = paths.MODULES / module
    files = sorted([*root.glob("go.*"), *root.rglob("*.go")])
    sources = {str(path.relative_to(root)): path.read_bytes() for path in files}
    go_mod = sources["go.mod"].decode()
    flags = [
        " ".join([str(binary.cgo), *build_command(binary, go_mod, Path(binary.name))]) for binary in GO_BINARIES.values() if binary.module == module
    ]
    return paths.binaries_root() / f"{module}-{module_key(sources, flags, go_version())}"


def cached(name: str) -> Path:
    """Where the cache holds a binary, whether or not it is built."""
    module = "kubernetes" if name == "pause" else GO_BINARIES[name].module
    return module_folder(module) / name


def binary(name: str, report: Report = print) -> Path:
    """The path of a binary: from KUBEBUILDER_ASSETS, from PATH, else our build (made on demand)."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and os.access(Path(assets) / name, os.X_OK):
        return Path(assets) / name
    found = shutil.which(name)
    return Path(found) if found else built(name, report)


def built(name: str, report: Report = print) -> Path:
    """The path of our own pinned build of a binary, made when the cache lacks it."""
    target = cached(name)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(target.parent / ".lock"):
        if not target.exists():  # another process may have built it while we waited
            partial = target.with_name(f".{name}.partial")
            _build(name, partial, report)
            partial.rename(target)
    return target


def missing(names: Sequence[str]) -> list[str]:
    """The binaries among those that the cache lacks."""
    return [name for name in names if not cached(name).exists()]


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold a lock file, so that two processes do not build the same thing."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(name: str, target: Path, report: Report) -> None:
    started = time.monotonic()
    packages.ensure(report, ["gcc", "libc6-dev"])
    if name == "pause":
        _build_pause(target)
    else:
        spec = GO_BINARIES[name]
        root = paths.MODULES / spec.module
        command = build_command(spec, (root / "go.mod").read_text(), target)
        env = {**os.environ, "CGO_ENABLED": "1" if spec.cgo else "0"}
        _run_with_progress(name, command, root, env, report)
    report(f"built {name} in {time.monotonic() - started:.0f} s")


def _build_pause(target: Path) -> None:
    """The sandbox's process: a C file in the Kubernetes module."""
    root = paths.MODULES / "kubernetes"
    listing = ["go", "mod", "download", "-json", "k8s.io/kubernetes"]
    output = subprocess.run(listing, cwd=root, capture_output=True, text=True, check=True).stdout
    folder = re.search(r'"Dir": "([^"]+)"', output)
    if folder is None:
        raise ClusterError("the Kubernetes module could not be downloaded")
    command = ["gcc", "-Os", "-static", "-DVERSION=3.10-tunesmith", "-o", str(target)]
    subprocess.run([*command, str(Path(folder[1]) / PAUSE_SOURCE)], check=True)


def _run_with_progress(name: str, command: list[str], cwd: Path, env: Mapping[str, str], report: Report) -> None:
    """Run `go build -v` and say every 15 s how many packages are compiled."""
    process = subprocess.Popen(command, cwd=cwd, env=dict(env), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines: list[str] = []

    def collect() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())

    reader = threading.Thread(target=collect, daemon=True)
    reader.start()
    started = time.monotonic()
    while True:
        try:
            process.wait(timeout=15)
            break
        except subprocess.TimeoutExpired:
            seconds = time.monotonic() - started
            report(f"building {name}: {seconds:.0f} s, {len(lines)} packages compiled so far")
    reader.join()
    if process.returncode:
        raise ClusterError(f"building {name} failed:\n" + "\n".join(lines[-20:]))
