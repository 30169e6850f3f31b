"""OCI image archives written by hand: a few layers, a configuration, no registry and no daemon."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True)
class Layer:
    """An uncompressed layer; its digest is therefore also its diff id."""

    path: Path
    digest: str
    size: int


@dataclass(frozen=True)
class ImageConfig:
    """What a container of the image runs by default."""

    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    workdir: str = "/"
    labels: Mapping[str, str] = field(default_factory=dict)


def write_layer(sources: Mapping[str, Path], target: Path, *, stable: bool = True) -> Layer:
    """Write a layer that holds each source (a file or folder) at its path in the image.

    A stable layer depends on names, modes and contents only: owners, times and compiled Python are left out,
    so that equal code gives an equal digest. Others are as their sources are.
    """

    def normalise(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if stable and os.path.basename(info.name) == "__pycache__":
            return None
        if stable:
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            info.mtime = 0
            # The owner's umask must not reach the image: files are readable, folders enterable.
            info.mode |= 0o555 if info.isdir() or info.mode & 0o100 else 0o444
            info.mode &= ~0o022
        return info

    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for destination in sorted(sources):
            # tarfile lists folders in sorted order.
            name = destination.strip("/") or "."
            tar.add(sources[destination], name, filter=normalise)
    return read_layer(target)


def read_layer(path: Path) -> Layer:
    """The layer in a file written earlier."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Layer(path, f"sha256:{digest}", path.stat().st_size)


def config_document(config: ImageConfig, layers: Sequence[Layer]) -> dict[str, object]:
    """The OCI image configuration."""
    env = {"PATH": DEFAULT_PATH, **config.env}
    runtime: dict[str, object] = {
        "Env": [f"{key}={value}" for key, value in env.items()],
        "WorkingDir": config.workdir,
    }
    if config.entrypoint:
        runtime["Entrypoint"] = list(config.entrypoint)
    if config.command:
        runtime["Cmd"] = list(config.command)
    if config.user:
        runtime["User"] = config.user
    if config.labels:
        runtime["Labels"] = dict(config.labels)
    return {
        "architecture": "amd64",
        "os": "linux",
        "config": runtime,
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
    }


def manifest_document(config: bytes, layers: Sequence[Layer]) -> dict[str, object]:
    """The OCI manifest of one image."""
    described = [{"mediaType": LAYER, "digest": layer.digest, "size": layer.size} for layer in layers]
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _descriptor(CONFIG, config),
        "layers": described,
    }


def index_document(name: str, manifest: bytes) -> dict[str, object]:
    """The archive's index, which names the image the way containerd reads it."""
    descriptor = {
        **_descriptor(MANIFEST, manifest),
        "platform": {"architecture": "amd64", "os": "linux"},
        "annotations": {
            "io.containerd.image.name": name,
            "org.opencontainers.image.ref.name": name.rpartition(":")[2],
        },
    }
    return {"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]}


def write_archive(
    target: Path,
    name: str,
    layers: Sequence[Layer],
    config: ImageConfig,
    *,
    omit: Collection[str] = (),
) -> Path:
    """Write an OCI archive; layers whose digest is in `omit` are named but not included.

    A node that has unpacked an omitted layer for another image imports the archive all the same,
    which keeps an image of our code at a few kilobytes.
    """
    config_bytes = json.dumps(config_document(config, layers)).encode()
    manifest = json.dumps(manifest_document(config_bytes, layers)).encode()
    partial = target.with_name(target.name + ".partial")
    with tarfile.open(partial, "w") as tar:
        _add(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(tar, "index.json", json.dumps(index_document(name, manifest)).encode())
        for blob in (config_bytes, manifest):
            _add(tar, _blob_path(_digest(blob)), blob)
        for layer in layers:
            if layer.digest not in omit:
                tar.add(layer.path, _blob_path(layer.digest))
    partial.rename(target)
    return target


def _descriptor(media_type: str, blob: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _blob_path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
