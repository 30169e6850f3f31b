"""Start background processes, remember them in files, and end them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from .errors import ClusterError

T = TypeVar("T")


def stat_fields(pid: int) -> tuple[str, int, str] | None:
    """State letter, parent and start time of a process, or None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name is in parentheses and may itself hold spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[1]), fields[19]


def is_running(pid: int, start_time: str | None = None) -> bool:
    """Whether the process is alive; a zombie is gone, and so is a reused process id."""
    fields = stat_fields(pid)
    if fields is None or fields[0] in "ZX":
        return False
    return start_time is None or fields[2] == start_time


def child_of(pid: int) -> int | None:
    """The first living child of a process (kernels may lack /proc/…/children)."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = stat_fields(int(entry.name))
            if fields and fields[1] == pid and fields[0] not in "ZX":
                return int(entry.name)
    return None


def wait_until(condition: Callable[[], T], what: str, timeout: float, interval: float = 0.05) -> T:
    """Poll until the condition holds (is true), and return what it gave; after the timeout say what was being waited for."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise ClusterError(f"gave up after {timeout:.0f} s waiting for {what}")
        time.sleep(interval)
    return found


class ProcessTable:
    """Background processes of one state folder: `pids/NAME` and `logs/NAME.log`.

    A second Python process with the same folder sees and ends the same processes.
    """

    def __init__(self, state: Path) -> None:
        self.pids = state / "pids"
        self.logs = state / "logs"

    def log(self, name: str) -> Path:
        """The file that holds a process's output."""
        return self.logs / f"{name}.log"

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        die_with_parent: bool = False,
    ) -> int:
        """Start a process in a session of its own and remember it; returns its id.

        `die_with_parent` has the kernel kill it when the starting thread ends, so that a
        test run that is killed leaves nothing behind.
        """
        self.pids.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        argv = [str(part) for part in command]
        if die_with_parent:
            argv = ["setpriv", "--pdeathsig", "KILL", *argv]
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=None if env is None else dict(env),
            )
        fields = stat_fields(process.pid)
        (self.pids / name).write_text(f"{process.pid} {fields[2] if fields else 0}\n")
        # The pid file is the record; without this Popen's finaliser would warn about a child.
        process.returncode = 0
        return process.pid

    def names(self) -> list[str]:
        """Names of the processes on record, running or not."""
        return sorted(path.name for path in self.pids.iterdir()) if self.pids.is_dir() else []

    def pid(self, name: str) -> int | None:
        """The process's id while it runs, else None."""
        try:
            pid, start_time = (self.pids / name).read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return int(pid) if is_running(int(pid), start_time) else None

    def stop(self, name: str, *, grace: float = 0.0, timeout: float = 20.0) -> None:
        """End a process: SIGTERM and a grace period if one is given, then SIGKILL."""
        pid = self.pid(name)
        if pid is not None:
            if grace:
                _signal(pid, signal.SIGTERM)
                deadline = time.monotonic() + grace
                while is_running(pid) and time.monotonic() < deadline:
                    time.sleep(0.02)
            _signal(pid, signal.SIGKILL)
            wait_until(lambda: not is_running(pid), f"{name} (process {pid}) to end", timeout)
        self._reap(name)
        (self.pids / name).unlink(missing_ok=True)

    def _reap(self, name: str) -> None:
        """Collect the exit status if the process was our own child; else init does it."""
        try:
            os.waitpid(int((self.pids / name).read_text().split()[0]), os.WNOHANG)
        except (FileNotFoundError, ChildProcessError, ValueError, IndexError):
            pass

    def tail(self, name: str, lines: int = 15) -> str:
        """The end of a process's log, for an error message."""
        try:
            text = self.log(name).read_text(errors="replace")
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:])


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
