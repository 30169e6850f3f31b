"""What only a GPU can show, in at most eight minutes on one of them.

    python3 -m dev.gpu.smoke                          on a machine with one NVIDIA GPU and a torch of its own
    python3 -m dev.gpu.smoke --device cpu --tiny      proves the script itself, on CPUs

It uses the libraries that are there, and names each whose version differs from the trainer image's lock and each step that it left out.
Each step (steps.py) is a process with a time limit of its own; one that fails stops only those that need what it makes. Raw results and a
table go to --out, to $OUT, or to `docs/results/<device>`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dev.gpu.material import SIZES
from dev.gpu.steps import STEPS, Step

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "trainer-image/requirements.txt"
MINUTES = 8.0
KEPT_LINES = 60
Json = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How a step came out: passed, failed or skipped, and why."""

    name: str
    outcome: str
    seconds: float = 0.0
    why: str = ""
    figures: Json = field(default_factory=dict)
    log: tuple[str, ...] = ()


def locked(lock: str) -> dict[str, str]:
    """The versions that a lock's text names."""
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", lock, re.MULTILINE))


def differences(lock: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Packages whose version differs from the lock (as `2.11.0 (lock: 2.13.0)`), and those of the lock that are not installed."""
    found, missing = {}, []
    for name, wanted in lock.items():
        try:
            here = version(name)
        except PackageNotFoundError:
            missing.append(name)
            continue
        if here.partition("+")[0] != wanted.partition("+")[0]:
            found[name] = f"{here} (lock: {wanted})"
    return found, missing


def obstacle(step: Step, outcomes: Sequence[Outcome], left: float) -> str:
    """Why a step cannot be run; empty where it can."""
    if lacking := [name for name in step.modules if importlib.util.find_spec(name) is None]:
        return f"not installed: {', '.join(lacking)}"
    passed = {outcome.name for outcome in outcomes if outcome.outcome == "passed"}
    if needed := [name for name in step.after if name not in passed]:
        return f"needs {', '.join(needed)}, which did not pass"
    return "" if left > 0 else "no time is left"


def run(command: Sequence[str], log: Path, seconds: float) -> str:
    """Run a command for at most so long, with its output in `log`; returns why it failed, empty where it did not."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            end(process.pid)
            process.wait()
            return f"it did not end within {seconds:.0f} s"
        except BaseException:
            end(process.pid)
            raise
    return f"exit code {code}" if code else ""


def end(pid: int) -> None:
    """Kill a process and all below it: torchrun's are in sessions of their own, and would hold the GPU."""
    pids = [pid]
    with suppress(ImportError):
        import psutil

        with suppress(psutil.NoSuchProcess):
            pids += [child.pid for child in psutil.Process(pid).children(recursive=True)]
    for each in pids:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def attempt(step: Step, folder: Path, chosen: argparse.Namespace, left: float) -> Outcome:
    """Run a step and return how it came out."""
    log, began = folder / f"{step.name}.log", time.monotonic()
    command = [sys.executable, "-m", "dev.gpu.steps", step.name, str(folder), chosen.device, chosen.size]
    why = run(command, log, min(step.seconds * chosen.slower, left))
    seconds = round(time.monotonic() - began, 1)
    lines = log.read_text(errors="replace").splitlines()
    if why:
        told = next((line for line in reversed(lines) if re.match(r"[\w.]+(Failed|Error|Exception)\b", line)), "")
        return Outcome(step.name, "failed", seconds, f"{why}{': ' if told else ''}{told}"[:500], log=tuple(lines[-KEPT_LINES:]))
    return Outcome(step.name, "passed", seconds, figures=json.loads((folder / f"{step.name}.figures").read_text()))


def table(report: Json) -> str:
    """A report as Markdown."""
    lines = [
        f"# {report['device']}",
        "",
        f"`python3 -m dev.gpu.smoke` on {report['date']}, {report['seconds']:.0f} s; model: {report['size']}, random weights.",
        "",
    ]
    lines += ["| step | outcome | seconds | figures, or why not |", "|---|---|---|---|"]
    for step in report["steps"]:
        told = step["why"] or ", ".join(f"{name} {json.dumps(value)}" for name, value in step["figures"].items() if value is not None)
        lines.append(f"| {step['name']} | {step['outcome']} | {step['seconds']} | {told.replace('|', '/')} |")
    differs = [f"- {name} {text}" for name, text in report["differs"].items()]
    lines += ["", "Versions that differ from the trainer image's lock:", "", *(differs or ["- none"])]
    lines += ["", "Packages of the lock that were not installed: " + (", ".join(report["missing"]) or "none") + "."]
    return "\n".join(lines) + "\n"


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="python3 -m dev.gpu.smoke", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of 0.2 M parameters and few steps")
    parser.add_argument("--size", choices=list(SIZES), default="300M", help="the model's parameters (default 300M)")
    parser.add_argument("--only", default=",".join(STEPS), help="steps, by commas")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="all steps together (default 8)")
    parser.add_argument("--slower", type=float, default=1.0, help="a factor on the steps' own limits")
    parser.add_argument("--out", type=Path, help="the folder for results")
    chosen = parser.parse_args(arguments)
    chosen.size = "tiny" if chosen.tiny else chosen.size
    return chosen


def device_name(outcomes: Sequence[Outcome], device: str) -> str:
    """The GPU's name, or CPU."""
    gpus = next((outcome.figures.get("gpus") for outcome in outcomes if outcome.name == "devices"), None)
    return str(gpus[0]["name"]) if gpus else f"no GPU seen ({device})"


def write(report: Json, out: Path | None) -> Path:
    """Write the report to its folder and return that."""
    own = os.environ.get("OUT")
    folder = out or (Path(own) if own else ROOT / "docs/results" / re.sub(r"[^A-Za-z0-9.-]+", "-", report["device"]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "smoke.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "smoke.md").write_text(table(report))
    return folder


def main(arguments: Sequence[str]) -> int:
    """Run the steps and write what came out; 0 where none failed."""
    chosen = options(arguments)
    began, outcomes = time.monotonic(), list[Outcome]()
    differs, missing = differences(locked(LOCK.read_text()))
    with tempfile.TemporaryDirectory(prefix="smoke-") as folder:
        for name in (name for name in STEPS if name in chosen.only.split(",")):
            left = 60 * chosen.minutes - (time.monotonic() - began)
            why = obstacle(STEPS[name], outcomes, left)
            outcomes.append(Outcome(name, "skipped", why=why) if why else attempt(STEPS[name], Path(folder), chosen, left))
            print(
                f"{outcomes[-1].outcome:8} {name:10} {outcomes[-1].seconds:6.1f} s  {outcomes[-1].why or json.dumps(outcomes[-1].figures)}",
                flush=True,
            )
    outcomes += [Outcome(name, "skipped", why="not asked for (--only)") for name in STEPS if name not in chosen.only.split(",")]
    device = device_name(outcomes, chosen.device)
    date, seconds = time.strftime("%Y-%m-%d", time.gmtime()), time.monotonic() - began
    report = {"device": device, "date": date, "seconds": round(seconds, 1), "size": chosen.size, "differs": differs, "missing": missing}
    where = write(report | {"steps": [asdict(outcome) for outcome in outcomes]}, chosen.out)
    print(f"{where}/smoke.md; {len(differs)} versions differ from the lock, {len(missing)} of its packages are not installed", flush=True)
    return 1 if any(outcome.outcome == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
