"""The files of a dataset and their lines: which are read, and plain words for those that cannot be.

Data are JSON Lines in UTF-8: one object a line. A folder is read file by file, and refused where it holds a file that looks
like data and is not read, or files of several splits: what is left out, or trained on by mistake, nobody would see.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith_trainer import store
from tunesmith_trainer.errors import RowError, key_name

SUFFIXES = (".jsonl", ".ndjson", ".jsonlines", ".json")
DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "croissant.json")
"""What the library datasets and hubs write beside data."""
DATA_SUFFIXES = frozenset(
    ".gz .bz2 .xz .zst .lz4 .zip .tar .tgz .7z .rar .parquet .arrow .feather .csv .tsv .txt .xls .xlsx .avro .orc .npy .npz .h5 .hdf5 .sqlite "
    ".xml .lance .tfrecord .mds .msgpack .pkl .pickle .pt .json5".split()
)
NOTES = re.compile(r"(license|licence|readme|notice|citation|changelog|requirements|copying|authors)\b.*", re.IGNORECASE)
KINDS = (
    (b"\x1f\x8b", "a gzip file: unpack it"),
    (b"BZh", "a bzip2 file: unpack it"),
    (b"\xfd7zXZ", "an xz file: unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd file: unpack it"),
    (b"PK\x03\x04", "a zip file: unpack it"),
    (b"PAR1", "a Parquet file: write it as JSON Lines"),
    (b"ARROW1", "an Arrow file: write it as JSON Lines"),
    (b"SQLite format 3", "a database: write it as JSON Lines"),
    (b"version https://git-lfs", "a pointer of Git LFS and not the data: get the file with `git lfs pull`"),
    (b"\xff\xfe\x00\x00", "in UTF-32: save it as UTF-8"),
    (b"\x00\x00\xfe\xff", "in UTF-32: save it as UTF-8"),
    (b"\xff\xfe", "in UTF-16: save it as UTF-8"),
    (b"\xfe\xff", "in UTF-16: save it as UTF-8"),
)
SPLITS = {
    "validation": ("validation", "validate", "valid", "development", "dev", "val"),
    "test": ("test", "tests", "testing", "eval", "evaluation", "heldout", "holdout"),
}
"""Held-out splits, and how files and folders name them (as the library datasets knows them, and a few more)."""


ONE_A_LINE = "one JSON object a line is expected"


class FilesError(ValueError):
    """What is wrong with the files of a dataset, for people."""


def of(source: Path) -> dict[str, Path]:
    """Return the data files of a source by their names in it: itself, or a folder's JSON Lines files in order.

    Raises FilesError for a folder without any, with data of other kinds, or with files of several splits.
    """
    if source.is_file():
        return {source.name: source}
    listed = {path.relative_to(source).as_posix(): path for path in store.listed_files(source)}
    found = {name: path for name, path in listed.items() if path.suffix.lower() in SUFFIXES and path.name.lower() not in DESCRIPTIONS}
    unread = [name for name, path in listed.items() if name not in found and looks_like_data(path)]
    if unread:
        raise FilesError(
            f"the folder holds files that look like data and are not read: {_some(unread)}. Data are JSON Lines ({', '.join(SUFFIXES)}): "
            "write them so, or take them out of the folder"
        )
    if not found:
        raise FilesError("the folder holds no .jsonl file")
    splits: dict[str, list[str]] = {}
    for name in found:
        splits.setdefault(split_of(name), []).append(name)
    if len(splits) > 1:
        told = "; ".join(f"{split}: {_some(names)}" for split, names in sorted(splits.items()))
        raise FilesError(f"the folder holds several splits, and only one is meant to be read ({told}). Name the file or the folder of that split")
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def split_of(name: str) -> str:
    """Return the split that a file's path in its dataset names: train where it names none that is held out."""
    # Also of `testSet`, `testA` and `held_out`, which are one word or two.
    words = re.sub(r"(held|hold)[-._ ]?(?=out)", r"\1", re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower())
    found = (split for split, known in SPLITS.items() if re.search(rf"(?<![a-z])(?:{'|'.join(known)})(?:set|data|split)?s?(?![a-z])", words))
    return next(found, "train")


def looks_like_data(path: Path) -> bool:
    """Return whether a file that is not read may hold rows: by its ending, or for an ending that says nothing by its first bytes."""
    if NOTES.fullmatch(path.name) or path.name.lower() in DESCRIPTIONS or path.suffix == ".ipynb":
        return False
    if any(suffix.lower() in DATA_SUFFIXES or suffix.lower() in SUFFIXES for suffix in path.suffixes):
        return True
    with path.open("rb") as file:
        head = file.read(64)
    return head.lstrip(b"\xef\xbb\xbf \r\n\t")[:1] in (b"{", b"[") or any(head.startswith(sign) for sign, _ in KINDS)


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield a file's lines that are not blank, by number, as the values that they hold, or the RowError of one that holds none."""
    with path.open("rb") as lines:
        head = lines.read(64)
        lines.seek(0)
        kind = next((words for sign, words in KINDS if head.startswith(sign)), None)
        for number, line in enumerate(lines, start=1):
            line = line.removeprefix(b"\xef\xbb\xbf")  # not only in the first one: files with a mark may have been joined
            if kind:
                yield number, RowError(f"the file is {kind}")
                return
            if line.strip():
                try:
                    value = parse(line)
                    yield number, RowError(f"{ONE_A_LINE}; this file is one array") if number == 1 and isinstance(value, list) else value
                except RowError as error:
                    yield number, error


def parse(line: bytes) -> Any:
    """Return the value of a line of JSON; raises RowError in plain words for what is none."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        utf16 = line.count(0) * 3 > len(line)
        encoding = "UTF-16" if utf16 else f"not in UTF-8 (byte {line[error.start]:#04x} at {error.start})"
        raise RowError(f"the file is {'in ' if utf16 else ''}{encoding}: save it as UTF-8") from None
    if "\0" in text:
        words = (
            "the file is in UTF-16: save it as UTF-8"
            if text.count("\0") * 3 > len(text) and text.strip("\0 \r\n\t")
            else "NUL bytes: the file is damaged"
        )
        raise RowError(words)
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise RowError("nested too deep") from None
    except json.JSONDecodeError as error:
        raise RowError(f"not JSON ({_why(text, error)})") from None
    except RowError:
        raise
    except ValueError:
        raise RowError("not JSON (a number has too many digits)") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RowError(f"an object has the key {key_name(twice)!r} twice: one of the two would be lost")
    return value


def _why(text: str, error: json.JSONDecodeError) -> str:
    start = text.strip()
    if error.msg == "Extra data" and text[error.pos :].strip() == ",":
        return f"{ONE_A_LINE}, without commas between them"
    if error.msg == "Extra data":
        return (
            "a single CR is no line break: save the file with LF"
            if "\r" in start
            else "more than one value on a line: each object needs a line of its own"
        )
    if error.msg.startswith("Unterminated string") or text[error.pos : error.pos + 1] in ("\r", "\n"):
        return "a text does not end on its line: write a line break in a text as \\n, or the line is cut off"
    if error.msg.startswith("Invalid control character"):
        return f"a text holds a control character, such as a tab, that has to be escaped, at column {error.colno}"
    if start[0] == "[":
        return f"{ONE_A_LINE}; this file is one array"
    if start[0] == "{" and error.pos >= len(text.rstrip()):
        return f"{ONE_A_LINE}; this object goes on in the next line, or is cut off"
    if start[0] not in "{[":
        return f"{ONE_A_LINE}; this line is something else"
    return error.msg + f" at column {error.colno}"
