"""The real images, built from the Containerfiles by buildah: no Docker, no registry, no daemon.

    python3 -m dev.images [operator|trainer|serving]…

The base is the development cluster's (debootstrap). What the host needs to reach its package mirrors and indexes is mounted while
the build runs and is in no image. Each image is looked at, then kept as an OCI archive in the cache, named after all that determines
it; buildah's own storage is removed, for it takes twice an image's size.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev.cluster import environments, packages, paths, preflight, rootfs, tools
from dev.cluster.errors import ClusterError
from dev.cluster.images import BASE_IMAGE, CONTRACT, NamedArchive, base_image
from dev.cluster.tools import Report

USER = "65532:65532"
IGNORED = ".dockerignore"
"""What is no part of the images' build context, the repository."""
SPACE = 15 << 30
"""Bytes that the largest image takes while it is built: the environment, and again as its layer; less after that, for the archive."""
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
BUILD_TOOLS = ("usr/bin/make", "usr/bin/pip3", "opt/uv")
COMPILERS = ("usr/bin/gcc", "usr/bin/g++")
# What a pod's container has beside its image's own variables (operator/tunesmith/workload/podspec.py).
POD_VARIABLES = {"HOME": "/home/tunesmith", "TMPDIR": "/tmp", "TRITON_CACHE_DIR": "/tmp/triton", "TORCH_EXTENSIONS_DIR": "/tmp/torch_extensions"}
COMPILES = paths.REPOSITORY / "dev/gpu/compiles.py"
# $1 is the image's root, $2 the folder to show it at; the rest is the program and its arguments.
READ_ONLY_ROOT = """
root=$2
mount --bind "$1" "$root"; mount -o remount,bind,ro "$root"; shift 2
for place in tmp home/tunesmith; do mount -t tmpfs -o mode=1777 tmpfs "$root/$place"; done
mount -t proc proc "$root/proc"; mount --rbind /dev "$root/dev"
exec chroot --userspec=65532:65532 "$root" "$@"
"""
BUILD_VARIABLES = frozenset(("SSL_CERT_FILE", "PIP_CERT", "PIP_CONFIG_FILE", "UV_CACHE_DIR", "DEBIAN_FRONTEND"))
LABELS = ("title", "description", "licenses", "version")


@dataclass(frozen=True)
class Part:
    """One image, modules that must be importable by its user, and whether it compiles (Triton on GPUs)."""

    name: str
    modules: tuple[str, ...]
    compiles: bool = False

    @property
    def folder(self) -> str:
        """The folder that it is built in."""
        return environments.FOLDERS[self.name]


CONTRACTED = ("tunesmith_contract.stages", "tunesmith_contract.results")
PARTS = {
    part.name: part
    for part in (
        Part("operator", ("kopf", "kubernetes.aio", "pydantic", "prometheus_client", "tunesmith", *CONTRACTED)),
        Part("trainer", ("torch", "transformers", "trl", "peft", "llmcompressor", "lm_eval", "tunesmith_trainer", *CONTRACTED), compiles=True),
        # For CPUs, where vLLM compiles nothing. The lock for GPUs brings the compiler with it (Containerfile).
        Part("serving", ("torch", "vllm", "tunesmith_serving", *CONTRACTED)),
    )
}


def root() -> Path:
    """The folder of all built images."""
    return paths.cache_root() / "images-built"


def image_key(part: Part, repository: Path = paths.REPOSITORY) -> str:
    """A short hash over the base, the version that it is labelled with, and every file of the part's folder and the contract's that git
    knows or would know."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", part.folder, CONTRACT, IGNORED]
    names = subprocess.run(listing, cwd=repository, capture_output=True, text=True, check=True).stdout.split("\0")
    digest = hashlib.sha256(f"{rootfs.base_key()} {chart_version(repository)}".encode())
    for name in sorted(name for name in names if name and (repository / name).is_file()):
        digest.update(b"\0" + name.encode() + b"\0" + (repository / name).read_bytes())
    return digest.hexdigest()[:12]


def faults(config: Mapping[str, Any], files: Path, version: str, compiles: bool = False) -> list[str]:
    """What is wrong with an image of that version, given its OCI configuration and its unpacked root.

    One that compiles needs a compiler and Python's headers; in any other a compiler is a fault.
    """
    found = [] if config.get("User") == USER else [f"its user is {config.get('User')!r}, not {USER}"]
    labels = config.get("Labels") or {}
    found += [f"it has no label {label}" for label in LABELS if not labels.get(f"org.opencontainers.image.{label}")]
    told = labels.get("org.opencontainers.image.version")
    found += [f"it is labelled as version {told}, not {version}"] if told and told != version else []
    found += [f"the build tool /{tool} is in it" for tool in BUILD_TOOLS if os.path.lexists(files / tool)]
    if compiles:
        found += [f"it compiles and has no /{tool}" for tool in COMPILERS if not os.path.lexists(files / tool)]
        found += [] if any(files.glob("usr/include/python3.*/Python.h")) else ["it compiles and has no Python.h"]
    else:
        found += [f"the build tool /{tool} is in it" for tool in (*COMPILERS, "usr/bin/cc") if os.path.lexists(files / tool)]
    # Its root is read-only.
    sources = [path for pattern in ("usr/lib/python3.*/asyncio", "app/tunesmith*") for path in files.glob(pattern)]
    found += [f"/{path.relative_to(files)} is compiled by each process that starts" for path in sources if not (path / "__pycache__").is_dir()]
    found += [f"{path.relative_to(files)} installs packages" for path in files.glob("opt/*/bin/*") if path.name in ("pip", "uv")]
    names = {entry.partition("=")[0] for entry in config.get("Env") or ()}
    found += [f"the variable {name} of the build is in it" for name in sorted(names & BUILD_VARIABLES)]
    lists = files / "var/lib/apt/lists"
    found += ["apt's package lists are in it"] if lists.is_dir() and any(lists.iterdir()) else []
    # It would tell about the machine that the image was built on.
    left = [path for folder in ("etc/apt/sources.list.d", "mnt", "media", "srv") for path in (files / folder).glob("*")]
    return found + [f"/{path.relative_to(files)} was left by the build" for path in left]


class Buildah:
    """buildah with a storage of its own, so that it never meets the images of a person who uses it too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # chroot: needs neither a cgroup of its own nor a network to be made.
        self.isolation = ["--isolation=chroot"]

    def run(self, *arguments: str) -> str:
        """One buildah command's output; an error holds its last lines."""
        storage = [f"--root={self.folder / 'storage'}", f"--runroot={self.folder / 'run'}", "--storage-driver=overlay"]
        done = subprocess.run(["buildah", *storage, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            tail = "\n".join(done.stdout.strip().splitlines()[-25:])
            raise ClusterError(f"`buildah {' '.join(arguments[:2])} …` failed:\n{tail}")
        return done.stdout.strip()

    def close(self) -> None:
        """Give the storage back: overlay mounts first, then the files."""
        if not self.folder.exists():
            return
        self.run("rm", "--all")
        self.run("rmi", "--all", "--force")
        # The storage holds a bind mount of itself.
        for mount in (self.folder / "storage/overlay", self.folder / "storage/overlay-containers"):
            if os.path.ismount(mount):
                subprocess.run(["umount", str(mount)], check=True)
        shutil.rmtree(self.folder)


def host_arguments(folder: Path, uv_cache: str) -> list[str]:
    """What the build's containers see of this machine's mirrors, indexes and certificates; `folder` takes copies of its settings.

    Only folders that the base has are mounted over: buildah leaves an empty file or folder where it had to make one.
    """
    (folder / "apt").mkdir(parents=True)
    (folder / "pip").mkdir()
    for pattern, target in (
        ("apt/sources.list", "apt"),
        ("apt/sources.list.d/*.list", "apt"),
        ("apt/sources.list.d/*.sources", "apt"),
        ("pip.conf", "pip"),
    ):
        for path in Path("/etc").glob(pattern):
            shutil.copy(path, folder / target)
    shutil.copy(CERTIFICATES, folder / "pip")
    certificates = f"/mnt/{CERTIFICATES.name}"
    # What the tests' environments have downloaded is not downloaded again.
    variables = {"SSL_CERT_FILE": certificates, "PIP_CERT": certificates, "PIP_CONFIG_FILE": "/mnt/pip.conf", "UV_CACHE_DIR": "/media"}
    mounts = [f"{folder / 'apt'}:/etc/apt/sources.list.d:ro", f"{folder / 'pip'}:/mnt:ro", f"{uv_cache}:/media:rw"]
    return [*(f"--volume={mount}" for mount in mounts), *(f"--build-arg={name}={value}" for name, value in variables.items())]


def build(name: str, report: Report = print) -> NamedArchive:
    """The archive of a part's image, built when the cache lacks it."""
    part = PARTS[name]
    key = image_key(part)
    image = f"localhost/tunesmith-{name}:{key}"
    target = root() / f"{name}-{key}.tar"
    with tools.exclusive(root() / ".lock"):
        if not target.exists():
            for older in root().glob(f"{name}-*.tar"):
                older.unlink()
            preflight.require_space(SPACE)
            _build(part, image, target, report)
    return NamedArchive(image, target)


def _build(part: Part, image: str, target: Path, report: Report) -> None:
    base = base_image(report)
    buildah = Buildah(root() / "work")
    buildah.close()
    try:
        buildah.run("pull", f"oci-archive:{base.archive}")
        started = time.monotonic()
        report(f"building the {part.name} image")
        uv = environments.find_uv()
        cache = subprocess.run([uv, "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()
        arguments = [f"--build-arg=BASE_IMAGE={BASE_IMAGE}", f"--build-arg=VERSION={chart_version()}", "--pull-never", "--no-cache"]
        buildah.run(
            "build",
            *buildah.isolation,
            *arguments,
            *host_arguments(buildah.folder / "settings", cache),
            f"--tag={image}",
            f"--file={part.folder}/Containerfile",
            str(paths.REPOSITORY),
        )
        size = check(part, image, buildah)
        write_archive(image, target, buildah)
        mebibytes = target.stat().st_size >> 20
        report(f"built {image} in {time.monotonic() - started:.0f} s: {size >> 20} MiB unpacked, {mebibytes} MiB as an archive")
    finally:
        buildah.close()


def chart_version(repository: Path = paths.REPOSITORY) -> str:
    """The version that the images are labelled with."""
    lines = (repository / "helm/tunesmith/Chart.yaml").read_text().splitlines()
    return next(line.removeprefix("version:").strip() for line in lines if line.startswith("version:"))


def check(part: Part, image: str, buildah: Buildah) -> int:
    """Look at a built image and import its modules as its user; returns its unpacked size in bytes."""
    config = json.loads(buildah.run("inspect", "--type=image", image))["OCIv1"]["config"]
    container = buildah.run("from", "--pull-never", image).splitlines()[-1]
    files = Path(buildah.run("mount", container).splitlines()[-1])
    found = faults(config, files, chart_version(), part.compiles)
    if found:
        raise ClusterError(f"{image}: " + "; ".join(found))
    buildah.run("run", *buildah.isolation, container, "--", "python", "-c", "import " + ", ".join(part.modules))
    if part.compiles:
        compile_as_a_pod(files, config, buildah.folder / "pod")
    usage = subprocess.run(["du", "--summarize", "--bytes", str(files)], capture_output=True, text=True, check=True)
    buildah.run("rm", container)
    return int(usage.stdout.split()[0])


def compile_as_a_pod(files: Path, config: Mapping[str, Any], root: Path) -> None:
    """Take Triton's and torch.compile's build steps in an image's root as in a pod: as its user, with a read-only root file system."""
    root.mkdir()
    variables = dict(entry.split("=", 1) for entry in config["Env"]) | POD_VARIABLES
    given = [f"{name}={value}" for name, value in variables.items()]
    program = ["/usr/bin/env", "-i", *given, "python", "-c", COMPILES.read_text(), "--torch", "--read-only"]
    # In a mount namespace of its own: what is mounted is gone with the process.
    command = ["unshare", "--mount", "sh", "-euc", READ_ONLY_ROOT, "sh", str(files), str(root), *program]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise ClusterError("the image cannot compile:\n" + "\n".join(done.stdout.strip().splitlines()[-15:]))


def write_archive(image: str, target: Path, buildah: Buildah) -> None:
    """The image as an OCI archive that containerd imports under the image's own name."""
    layout = buildah.folder / "layout"
    buildah.run("push", "--quiet", "--compression-format=zstd", "--compression-level=1", image, f"oci:{layout}:{image}")
    index = json.loads((layout / "index.json").read_text())
    index["manifests"][0]["annotations"]["io.containerd.image.name"] = image
    (layout / "index.json").write_text(json.dumps(index))
    partial = target.with_suffix(".partial")
    with tarfile.open(partial, "w") as tar:
        for path in sorted(layout.iterdir()):
            tar.add(path, path.name)
    shutil.rmtree(layout)
    partial.rename(target)


def main(names: Sequence[str]) -> int:
    """Build the named images, or all; 0 when every one is there."""
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        print(f"usage: python3 -m dev.images [{'|'.join(PARTS)}]…", file=sys.stderr)
        return 64
    try:
        preflight.check_root()
        packages.ensure(print, ["buildah"])
        for name in names or PARTS:
            archive = build(name)
            print(f"{archive.name}  {archive.archive.stat().st_size >> 20} MiB  {archive.archive}", flush=True)
    except ClusterError as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
