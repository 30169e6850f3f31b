"""Verification: a model folder is served only when every file in it is the one that its digest stands for.

The digest is that of the folder's manifest: canonical JSON over path, sha256 and size of each loadable file. A folder
without a manifest (a user's base model) gets the digest its manifest would have. The rules of what is listed are those
of the trainer image, which writes artefacts (docs/contract.md); a test compares the two.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tunesmith_contract.stages import UnpinnedModel
from tunesmith_serving.errors import ServeError

SCHEME = "pvc://"
MANIFEST = "manifest.json"
# Cards and reports may be rewritten without making a model another one.
UNLISTED_NAMES = {MANIFEST, "README.md"}
UNLISTED_SUFFIXES = {".html"}
HASHING_THREADS = min(8, os.cpu_count() or 1)


class Entry(NamedTuple):
    """A file as the manifest has it."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Verified:
    """A folder whose files were all read and found right."""

    folder: Path
    digest: str
    size_bytes: int
    seconds: float

    def __str__(self) -> str:
        speed = self.size_bytes / 1e6 / max(self.seconds, 1e-9)
        return f"{self.digest}, {self.size_bytes / 1e6:.1f} MB hashed in {self.seconds:.2f} s ({speed:.0f} MB/s)"


def store_root() -> Path:
    """Return the folder under which every claim is mounted."""
    return Path(os.environ.get("TUNESMITH_PVC_ROOT", "/mnt/pvc"))


def path_of(uri: str) -> Path:
    """Return the path of a `pvc://<claim>/<path>` URI; raises ServeError(InvalidSettings) for anything else."""
    parts = uri.removeprefix(SCHEME).strip("/").split("/")
    if not uri.startswith(SCHEME) or any(part in ("", ".", "..") for part in parts):
        raise ServeError("InvalidSettings", f"{uri!r} is not pvc://<claim>/<path> without empty, '.' or '..' parts")
    return store_root().joinpath(*parts)


def listed_files(folder: Path) -> list[str]:
    """Return the names of the files that a manifest of `folder` lists, sorted.

    Hidden files, cards and reports are left out. Raises ServeError(UnsafeWeights) for a link out of the store.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    listed = [name for name in names if _is_listed(PurePosixPath(name))]
    root = store_root().resolve()
    for name in listed:
        if not (folder / name).resolve().is_relative_to(root):
            raise ServeError("UnsafeWeights", f"{name} is a link that leads out of the store; copy the file instead")
    return listed


def _is_listed(name: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") for part in name.parts)
    return not hidden and name.name not in UNLISTED_NAMES and name.suffix not in UNLISTED_SUFFIXES


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, Entry]:
    """Hash the named files, several at a time: hashlib lets go of the interpreter's lock."""
    ordered = list(names)
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        entries = pool.map(lambda name: _hash_file(folder / name), ordered)
        return dict(zip(ordered, entries, strict=True))


def _hash_file(path: Path) -> Entry:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return Entry(sha256, file.tell())


def manifest_content(entries: dict[str, Entry]) -> bytes:
    """Return the bytes of the `manifest.json` that lists `entries`."""
    rows = [{"path": name, "sha256": entry.sha256, "size": entry.size} for name, entry in sorted(entries.items())]
    return json.dumps({"files": rows}, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def parse_manifest(content: bytes) -> dict[str, Entry]:
    """Return the entries of a manifest; raises ServeError(DigestMismatch) where it is not one."""
    try:
        rows = json.loads(content)["files"]
        return {row["path"]: Entry(row["sha256"], row["size"]) for row in rows}
    except (ValueError, TypeError, KeyError) as error:
        raise ServeError("DigestMismatch", f"{MANIFEST} is damaged ({error!r}); write the model again") from error


def differences(folder: Path, manifest: dict[str, Entry]) -> Iterator[str]:
    """Yield a line for each file that differs from the manifest, the cheap comparisons first.

    A file that the manifest does not list counts too: a chat template laid beside the model would change its answers
    while the digest stays the same.
    """
    present = listed_files(folder)
    yield from (f"{name} is missing" for name in sorted(manifest.keys() - set(present)))
    yield from (f"{name} is not in {MANIFEST}" for name in sorted(set(present) - manifest.keys()))
    for name in present:
        size = (folder / name).stat().st_size
        if size != manifest[name].size:
            yield f"{name} has {size} bytes instead of {manifest[name].size}"
    found = hash_files(folder, present)
    yield from (f"{name} has another content" for name in present if found[name] != manifest[name])


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _read_digest(folder: Path, uri: str) -> tuple[str, int]:
    """Read every file of a folder and return its digest and size in bytes."""
    if not (folder / MANIFEST).is_file():
        entries = hash_files(folder, listed_files(folder))
        content = manifest_content(entries)
    else:
        content = (folder / MANIFEST).read_bytes()
        entries = parse_manifest(content)
        wrong = next(differences(folder, entries), None)
        if wrong:
            raise ServeError("DigestMismatch", f"{uri} is not what its manifest says: {wrong}; write the model again")
    return _digest(content), sum(entry.size for entry in entries.values())


def verify(model: UnpinnedModel) -> Verified:
    """Read every file of the model and return its folder and digest.

    Raises ServeError: SourceNotFound; DigestMismatch when a file or the whole differs from what was asked for;
    StoreUnavailable when a file cannot be read.
    """
    folder = path_of(model.uri)
    if not folder.is_dir():
        raise ServeError("SourceNotFound", f"no folder at {model.uri}; check the claim's name and the path inside it")
    start = time.monotonic()
    try:
        digest, size = _read_digest(folder, model.uri)
    except PermissionError as error:
        # safetensors writes its files for their owner alone (mode 0600), so this is what a copied model meets first.
        message = f"{model.uri} has a file that user {os.getuid()} may not read; run chmod -R a+rX on it: {error}"
        raise ServeError("StoreUnavailable", message) from error
    except OSError as error:
        raise ServeError("StoreUnavailable", f"cannot read {model.uri}: {error}") from error
    if model.digest not in (None, digest):
        message = f"{model.uri} has the digest {digest} instead of {model.digest}: it was changed since it was pinned"
        raise ServeError("DigestMismatch", message)
    return Verified(folder, digest, size, time.monotonic() - start)


def refuse_unsafe_weights(folder: Path) -> None:
    """Raise ServeError(UnsafeWeights) for a model without safetensors: the engine must never unpickle weights."""
    if not any(folder.glob("*.safetensors")):
        message = "there is no *.safetensors file in the model's folder; convert the weights to safetensors"
        raise ServeError("UnsafeWeights", message)
