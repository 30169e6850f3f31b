"""Build (once) the virtual environment that one part's tests run in and print the path of its python.

Usage: python3 -m dev.venv trainer|serving|operator

The environment lives outside the repository, in a folder named after the hash of all that determines it, so that a changed
lock makes a new one and an unchanged lock costs nothing.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

from dev.cluster import environments, paths, rootfs
from dev.cluster.errors import ClusterError
from dev.cluster.tools import exclusive

# The locks' version. On a host that lacks it, the development cluster's base root filesystem lends its own.
PYTHON = "3.11"
# Goes into the environment's name: raise it when the way of building changes.
RECIPE = b"2"


def interpreter(uv: str) -> str:
    """Return a Python of the locks' version: the host's, else the one of the images' base root filesystem."""
    # uv would download one that it lacks, from a place that not every machine reaches.
    search = [uv, "python", "find", "--system", "--no-python-downloads", PYTHON]
    found = subprocess.run(search, capture_output=True, text=True)
    if found.returncode == 0:
        return found.stdout.strip()
    return str(rootfs.base_rootfs(lambda line: print(line, file=sys.stderr)) / "usr" / "bin" / "python3")


def ensure(name: str) -> Path:
    """Return the folder of the environment of a part with the tests' tools, built where it is missing."""
    lock, hook = environments.lock_and_hook(name)
    tests = paths.REPOSITORY / "tests" / "requirements.txt"
    determining = [path for path in (lock, hook, tests) if path.is_file()]
    digest = hashlib.sha256(b"\0".join([RECIPE, *(path.read_bytes() for path in determining)])).hexdigest()
    target = paths.venvs_root() / f"{name}-{digest[:12]}"
    # Two builds at once would write into one folder.
    with exclusive(paths.venvs_root() / f"{name}.lock"):
        if not target.is_dir():
            locks = [path for path in (lock, tests) if path.is_file()]
            environments.make(target, Path(interpreter(environments.find_uv())), locks, hook).rename(target)
    return target


def main() -> None:
    """Print the python of the environment named on the command line, building it first where it is missing."""
    if len(sys.argv) != 2 or sys.argv[1] not in environments.FOLDERS:
        raise SystemExit(f"usage: python3 -m dev.venv {'|'.join(environments.FOLDERS)}")
    try:
        print(ensure(sys.argv[1]) / "bin" / "python")
    except ClusterError as error:
        raise SystemExit(f"venv: {error}") from None


if __name__ == "__main__":
    main()
