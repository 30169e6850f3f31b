"""The image archives of the cluster: its own, and thin ones that hold only our code."""

from __future__ import annotations

import compileall
import hashlib
import py_compile
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import paths
from .oci import ImageConfig, Layer, read_layer, write_archive, write_layer
from .rootfs import base_folder, base_rootfs
from .tools import Report, built, exclusive

BASE_IMAGE = "localhost/tunesmith-base:dev"
PAUSE_IMAGE = "localhost/tunesmith-pause:dev"
COREDNS_IMAGE = "localhost/tunesmith-coredns:dev"
PROVISIONER_IMAGE = "localhost/tunesmith-local-path-provisioner:dev"
USER = "65532:65532"


@dataclass(frozen=True)
class NamedArchive:
    """An image's full name and the OCI archive that holds it."""

    name: str
    archive: Path


@dataclass(frozen=True)
class ThinImage:
    """One of our images: where its code lies and which environment it runs with."""

    name: str
    packages: Sequence[str]
    """Folders in the repository; each lies in /app of the image."""
    entrypoint: Sequence[str]

    def layer(self, repository: Path) -> dict[str, Path]:
        """What lies where in the image."""
        return {f"app/{Path(package).name}": repository / package for package in self.packages}


CONTRACT = "contract/tunesmith_contract"
THIN_IMAGES = (
    ThinImage("operator", ("operator/tunesmith", CONTRACT), ("python", "-m", "tunesmith")),
    ThinImage("trainer", ("trainer-image/tunesmith_trainer", CONTRACT), ("python", "-m", "tunesmith_trainer")),
    ThinImage("serving", ("serving-image/tunesmith_serving", CONTRACT), ("python", "-m", "tunesmith_serving")),
)


def thin_config(image: ThinImage) -> ImageConfig:
    """Our code at /app, run by the environment that the cluster binds at /opt/NAME."""
    return ImageConfig(
        entrypoint=image.entrypoint,
        env={
            "PATH": f"/opt/{image.name}/bin:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": "/app",
            "PYTHONUNBUFFERED": "1",
            # The root file system is read-only: compiled files could not be written anyway.
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        user=USER,
        labels={"org.opencontainers.image.title": f"tunesmith-{image.name}"},
    )


def base_layer(report: Report = print) -> Layer:
    """The base root filesystem as a layer, which all our images begin with."""
    target = base_folder() / "layer.tar"
    rootfs = base_rootfs(report)
    if not target.exists():
        with exclusive(paths.images_root() / ".base.lock"):
            if not target.exists():
                partial = target.with_name("layer.partial")
                write_layer({"/": rootfs}, partial, stable=False)
                partial.rename(target)
    return read_layer(target)


def base_image(report: Report = print) -> NamedArchive:
    """The base as an image of its own, for the provisioner's helper and for tests."""
    target = base_folder() / "image.tar"
    if not target.exists():
        layer = base_layer(report)
        write_archive(target, BASE_IMAGE, [layer], ImageConfig(command=("/bin/bash",)))
    return NamedArchive(BASE_IMAGE, target)


def binary_image(name: str, image: str, report: Report = print) -> NamedArchive:
    """An image that holds one static binary and nothing else."""
    binary = built(name, report)
    # The binary's folder is named by its key, so another build makes another archive.
    folder = paths.images_root() / f"{name}-{binary.parent.name.rpartition('-')[2]}"
    target = folder / "image.tar"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        layer = write_layer({name: binary}, folder / "layer.tar")
        write_archive(target, image, [layer], ImageConfig(entrypoint=(f"/{name}",)))
        layer.path.unlink()
    return NamedArchive(image, target)


def cluster_images(report: Report = print) -> list[NamedArchive]:
    """What every node imports when it starts, the ones needed first at the front."""
    return [
        binary_image("pause", PAUSE_IMAGE, report),
        binary_image("coredns", COREDNS_IMAGE, report),
        binary_image("local-path-provisioner", PROVISIONER_IMAGE, report),
        base_image(report),
    ]


def build_thin_images(repository: Path = paths.REPOSITORY, report: Report = print) -> list[NamedArchive]:
    """Archives of our images whose code is in the repository, tagged by the code's hash.

    They leave out the base layer, which every node of a running cluster has; a change of the
    code thus loads in a moment.
    """
    base = base_layer(report)
    return [_thin_image(image, image.layer(repository), base) for image in THIN_IMAGES if (repository / image.packages[0]).is_dir()]


def _thin_image(image: ThinImage, code: Mapping[str, Path], base: Layer) -> NamedArchive:
    folder = paths.images_root() / f"thin-{image.name}"
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / ".lock"), tempfile.TemporaryDirectory(dir=folder) as scratch:
        layer = write_layer(code, Path(scratch) / "code.tar")
        # The archive lacks the base, so it goes with that one alone.
        tag = hashlib.sha256(f"{base.digest} {layer.digest}".encode()).hexdigest()[:12]
        name = f"localhost/tunesmith-{image.name}:{tag}"
        target = folder / f"{tag}.tar"
        if not target.exists():
            _remove_older(folder, keep=8)
            places = {target: _compiled(source, Path(scratch) / "compiled" / target) for target, source in code.items()}
            compiled = write_layer(places, Path(scratch) / "compiled.tar", stable=False)
            write_archive(target, name, [base, layer, compiled], thin_config(image), omit={base.digest})
    return NamedArchive(name, target)


def _compiled(code: Path, target: Path) -> Path:
    """The compiled files of that code and nothing else: with a read-only root, each start would compile it again."""
    shutil.copytree(code, target, ignore=shutil.ignore_patterns("__pycache__"))
    # The layer with the sources has no times to compare with.
    compileall.compile_dir(target, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    for source in [path for path in target.rglob("*") if path.is_file() and path.suffix != ".pyc"]:
        source.unlink()
    return target


def _remove_older(folder: Path, keep: int) -> None:
    archives = sorted(folder.glob("*.tar"), key=lambda path: path.stat().st_mtime)
    for path in archives[:-keep]:
        path.unlink()
