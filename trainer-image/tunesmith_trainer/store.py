"""The store: volumes under one root, named by `pvc://` URIs, and folders that a manifest makes complete."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from tunesmith_trainer.errors import STORE_ERRNOS, StageError
from tunesmith_trainer.failure import store_failure

SCHEME = "pvc://"
MANIFEST = "manifest.json"
# Cards and reports may be rewritten without making a model another one.
UNLISTED_NAMES = {MANIFEST, "README.md"}
UNLISTED_SUFFIXES = {".html"}
PATIENCE_SECONDS = 300
# Beside a store's own errors: of a volume that was unmounted the folders are gone.
PASSING_ERRNOS = STORE_ERRNOS | {errno.ENOENT, errno.ENOTDIR}

T = TypeVar("T")


@dataclass(frozen=True)
class Manifest:
    """The files of a complete folder, as `{path: (sha256, size)}`, and the digest that names them all."""

    files: dict[str, tuple[str, int]]

    @property
    def content(self) -> bytes:
        """The bytes of `manifest.json`."""
        rows = [{"path": path, "sha256": sha, "size": size} for path, (sha, size) in sorted(self.files.items())]
        return canonical_json({"files": rows})

    @property
    def digest(self) -> str:
        """The folder's digest: `sha256:` and the hash of the manifest's bytes."""
        return "sha256:" + hashlib.sha256(self.content).hexdigest()

    @property
    def size_bytes(self) -> int:
        """The size of all files together."""
        return sum(size for _, size in self.files.values())


def root() -> Path:
    """Return the folder under which every claim is mounted."""
    return Path(os.environ.get("TUNESMITH_PVC_ROOT", "/mnt/pvc"))


def path_of(uri: str) -> Path:
    """Return the path of a `pvc://<claim>/<path>` URI.

    Raises StageError(InvalidSettings) for another scheme, a missing claim, or a path that climbs out by `..`.
    """
    if not uri.startswith(SCHEME):
        raise StageError("InvalidSettings", f"{uri!r} is not a {SCHEME}<claim>/<path> URI")
    parts = uri.removeprefix(SCHEME).strip("/").split("/")
    if not parts[0] or any(part in ("", ".", "..") for part in parts):
        raise StageError("InvalidSettings", f"{uri!r} must name a claim and a path without empty, '.' or '..' parts")
    return root().joinpath(*parts)


def uri_of(path: Path) -> str:
    """Return the `pvc://` URI of a path under the root; raises ValueError for any other path."""
    return SCHEME + path.relative_to(root()).as_posix()


def join(uri: str, *parts: str) -> str:
    """Return `uri` extended by `parts`."""
    return "/".join([uri.rstrip("/"), *parts])


def existing(uri: str) -> Path:
    """Return the path of a URI that must be there; raises StageError(SourceNotFound) naming the URI."""
    path = path_of(uri)
    if not path.exists():
        raise StageError("SourceNotFound", f"nothing exists at {uri}; check the claim's name and the path inside it")
    return path


def canonical_json(value: Any) -> bytes:
    """Return `value` as JSON with sorted keys and no spaces, the form that digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_of(value: Any) -> str:
    """Return the digest of a value's canonical JSON."""
    return "sha256:" + hashlib.sha256(canonical_json(value)).hexdigest()


def short(digest: str) -> str:
    """Return the first 12 hexadecimal digits of a digest, used as a folder's name."""
    return digest.removeprefix("sha256:")[:12]


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small file so that a reader sees the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two pods may write the same file at once, such as a figure in the evaluation cache, and both are process 1.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Return the value in a JSON file, or None where the file is missing or not whole JSON."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def persevere(act: Callable[[], T], what: str) -> T:
    """Return act()'s value; errors of a store that is full or away are tried again for some minutes.

    Such errors often pass: a volume is enlarged, a server comes back, a mount recovers. Raises StageError (StorageFull,
    StoreUnavailable) for one that does not.
    """
    deadline = time.monotonic() + patience()
    for pause in itertools.chain((1.0, 2.0, 5.0, 10.0), itertools.repeat(30.0)):
        try:
            return act()
        except OSError as error:
            if error.errno not in PASSING_ERRNOS:
                raise
            if time.monotonic() + pause > deadline:
                raise store_failure(error) from error
            print(f"{what}: {error}; trying again in {pause:.0f} s", flush=True)
        time.sleep(pause)
    raise AssertionError("the pauses never end")


def patience() -> float:
    """Return for how many seconds a store that is full or away is tried."""
    return float(os.environ.get("TUNESMITH_STORE_PATIENCE_SECONDS", PATIENCE_SECONDS))


def hash_file(path: Path) -> str:
    """Return the sha256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digest(path: Path) -> str:
    """Return a file's digest: `sha256:` and the hash of its bytes."""
    return "sha256:" + hash_file(path)


def listed_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder that its manifest lists, in the manifest's order.

    Hidden files and folders (a hub client's cache, an unfinished write) are left out, as are cards and reports.
    Raises StageError(UnsafeWeights) for a link that leads out of the store.
    """
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    for name, path in sorted(names.items()):
        relative = PurePosixPath(name)
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or relative.name in UNLISTED_NAMES or relative.suffix in UNLISTED_SUFFIXES:
            continue
        if not path.resolve().is_relative_to(root().resolve()):
            raise StageError("UnsafeWeights", f"{name} in {folder.name} is a link that leads out of the store")
        yield path


def scan(folder: Path) -> Manifest:
    """Hash a folder's files and return the manifest it has or would have."""
    files = {}
    for path in listed_files(folder):
        files[path.relative_to(folder).as_posix()] = (hash_file(path), path.stat().st_size)
    return Manifest(files)


def write_manifest(folder: Path) -> Manifest:
    """Make a folder complete: hash its files and write the manifest last. Returns the manifest."""
    manifest = scan(folder)
    write_bytes(folder / MANIFEST, manifest.content)
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """Return a folder's manifest, or None where the folder is not complete."""
    value = read_json(folder / MANIFEST)
    try:
        return Manifest({row["path"]: (row["sha256"], row["size"]) for row in value["files"]})
    except (TypeError, KeyError):
        return None


def is_intact(folder: Path) -> bool:
    """Return whether a folder is complete and holds the files that its manifest lists, and no others."""
    manifest = read_manifest(folder)
    return manifest is not None and not any(unlisted(folder, manifest)) and not any(differences(folder, manifest))


def unlisted(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Yield a line for each loadable file that the manifest does not list.

    A chat template laid beside a model would change its answers, and every figure of it, while the digest stays the same.
    """
    for path in listed_files(folder):
        name = path.relative_to(folder).as_posix()
        if name not in manifest.files:
            yield f"{name} is not in {MANIFEST}"


def differences(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Yield a line for each file of the manifest that is missing or is another one."""
    for name, (sha, size) in manifest.files.items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != size:
            yield f"{name} has {path.stat().st_size} bytes instead of {size}"
        elif hash_file(path) != sha:
            yield f"{name} has another content"


def open_artifact(uri: str, digest: str | None) -> Path:
    """Return an artefact's folder after a look at its manifest and its files' names and sizes alone, which costs no reading.

    Raises StageError: SourceNotFound, or DigestMismatch when it is not complete or not the one the digest names.
    """
    folder = existing(uri)
    manifest = read_manifest(folder)
    if manifest is None:
        raise StageError("DigestMismatch", f"{uri} is not complete: it has no {MANIFEST}")
    if digest is not None and digest != manifest.digest:
        raise StageError("DigestMismatch", f"{uri} has the digest {manifest.digest} instead of {digest}: it was changed")
    for name, (_, size) in manifest.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise StageError("DigestMismatch", f"{name} in {uri} is missing or has another size than its manifest says")
    if stray := next(unlisted(folder, manifest), None):
        raise StageError("DigestMismatch", f"{uri} is not what its manifest says: {stray}")
    return folder


def verify(uri: str, digest: str | None) -> tuple[Path, str]:
    """Return a model folder's path and digest after checking every file of it.

    A folder with a manifest is checked against it, by the rule of the serving image; one without gets the digest its manifest
    would have. Raises StageError: SourceNotFound, or DigestMismatch when a file or the digest asked for differs.
    """
    folder = existing(uri)
    manifest = read_manifest(folder)
    if manifest is None:
        found = scan(folder).digest
    else:
        wrong = next(itertools.chain(unlisted(folder, manifest), differences(folder, manifest)), None)
        if wrong:
            raise StageError("DigestMismatch", f"{uri} is not what its manifest says: {wrong}")
        found = manifest.digest
    if digest is not None and digest != found:
        raise StageError("DigestMismatch", f"{uri} has the digest {found} instead of {digest}: it was changed")
    return folder, found
