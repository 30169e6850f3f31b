"""Whether this container's GPUs can be used as asked for: the facts, and what is wrong with them.

The trainer and the serving image each hold this file; a test compares the two. Run as a program it prints the facts as JSON: a CUDA
context holds memory on every GPU for as long as its process lives, and a broken device may crash the process that asks, or keep it
for ever. So it is asked in a child process, which may take `LOOK_SECONDS`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Contexts on eight GPUs take seconds, more where the driver has to wake them up.
LOOK_SECONDS = 180.0
# NVIDIA's least drivers for all versions of a major release of CUDA (its "minor version compatibility").
DRIVERS = {12: "525.60.13", 13: "580.65.06"}
BF16_CAPABILITY = (8, 0)
KERNEL_MODULE = Path("/proc/driver/nvidia/version")
# What a child process writes before its facts: libraries print to standard output.
MARK = "tunesmith-devices:"


@dataclass(frozen=True)
class Gpu:
    """One visible GPU; `wrong` says why it does not compute, and is empty where it does."""

    name: str
    capability: tuple[int, int]
    wrong: str = ""


@dataclass(frozen=True)
class Facts:
    """What this container has. `driver_cuda` is the newest CUDA that the driver knows, as 13000; 0 where it cannot be asked."""

    torch: str = ""
    cuda: str = ""
    """The version that torch was built for; empty: torch computes on CPUs alone."""
    driver: str = ""
    driver_cuda: int = 0
    error: str = ""
    """Why CUDA could not be initialised."""
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """What a stage asked for: GPUs of this pod (None: unknown, at least one), the processes that share them, its precision."""

    gpus: int | None
    processes: int = 1
    bf16: bool = False


def problem(facts: Facts, wanted: Wanted) -> str:
    """Return what is wrong with a container's GPUs, and what to do; empty where they can be used as asked for."""
    if facts.error or not facts.gpus:
        return _unusable(facts)
    names = ", ".join(f"{count} x {name}" for name, count in Counter(gpu.name for gpu in facts.gpus).items())
    seen = f"{len(facts.gpus)} can be used ({names})"
    if wanted.gpus is not None and len(facts.gpus) > wanted.gpus:
        return (
            f"{wanted.gpus} GPUs were asked for, {seen}: the container sees GPUs of other pods; look at the device plugin and NVIDIA_VISIBLE_DEVICES"
        )
    if len(facts.gpus) < max(wanted.gpus or 1, wanted.processes):
        return f"{max(wanted.gpus or 1, wanted.processes)} GPUs were asked for, {seen}: look for lost devices (nvidia-smi on the node)"
    for number, gpu in enumerate(facts.gpus):
        capability = ".".join(map(str, gpu.capability))
        if gpu.wrong:
            return f"GPU {number} ({gpu.name}, compute capability {capability}) does not compute: {gpu.wrong}"
        if wanted.bf16 and gpu.capability < BF16_CAPABILITY:
            return f"GPU {number} ({gpu.name}) has compute capability {capability}, and precision BF16 needs 8.0: use FP32, or other nodes"
    return ""


def _unusable(facts: Facts) -> str:
    if not facts.cuda and facts.torch:
        return f"this image's torch {facts.torch} has no CUDA and computes on CPUs alone: use an image for GPUs"
    why = facts.error or "no GPU is visible"
    if is_too_old(facts):
        return f"CUDA {facts.cuda} of this image needs driver {needed_driver(facts.cuda)} or newer: {why}"
    if facts.driver and not facts.driver_cuda:
        return (
            f"GPUs were asked for and the node's driver is not in this container: {why}; is nvidia its runtime class, or the node's default runtime?"
        )
    return f"GPUs were asked for and none can be used: {why}; look at the node's driver, device plugin and container runtime"


def needed_driver(cuda: str) -> str:
    """Return the least driver for torch's version of CUDA."""
    return DRIVERS.get(int(cuda.partition(".")[0] or 0), "of that release")


def is_too_old(facts: Facts) -> bool:
    """Return whether the driver knows no CUDA of torch's major version; False where that cannot be told."""
    major = int(facts.cuda.partition(".")[0] or 0)
    if facts.driver_cuda:
        return facts.driver_cuda // 1000 < major
    least = DRIVERS.get(major)
    return bool(facts.driver and least) and _numbers(facts.driver) < _numbers(str(least))


def describe(facts: Facts) -> str:
    """Return the driver in words."""
    return f"driver {facts.driver}" if facts.driver else "no NVIDIA driver"


def node(variables: dict[str, str] | os._Environ[str] = os.environ) -> str:
    """Return the node's name for messages; the operator gives it to the pod."""
    name = variables.get("TUNESMITH_NODE")
    return f"node {name}" if name else "this node"


def hide(variables: dict[str, str] | os._Environ[str]) -> None:
    """Keep a process whose environment this is, and its children, from seeing a GPU: it was not asked for."""
    variables["CUDA_VISIBLE_DEVICES"] = ""


def look(seconds: float = LOOK_SECONDS, command: Sequence[str] = ()) -> Facts:
    """Return the facts, which a child process finds out; one that crashes or does not come back is a fact too."""
    # -P: modules beside this file must not be taken for libraries of the same name.
    child = [*(command or (sys.executable, "-P", __file__))]
    try:
        done = subprocess.run(child, capture_output=True, text=True, errors="replace", timeout=seconds)
    except subprocess.TimeoutExpired:
        return _unknown(f"the check of the devices did not end within {seconds:.0f} s")
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        print(done.stderr, file=sys.stderr, flush=True)
        how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
        return _unknown(f"the check of the devices ended by {how}, see the pod's log")
    told: dict[str, Any] = json.loads(lines[-1].removeprefix(MARK))
    gpus = tuple(Gpu(gpu["name"], (gpu["capability"][0], gpu["capability"][1]), gpu["wrong"]) for gpu in told.pop("gpus"))
    return Facts(**told, gpus=gpus)


def _unknown(error: str) -> Facts:
    version, newest = driver()
    return Facts(driver=version, driver_cuda=newest, error=error)


def gather() -> Facts:
    """Return the facts as this process sees them: it takes a CUDA context on every GPU."""
    import torch

    version, newest = driver()
    built = str(torch.version.cuda or "")
    try:
        torch.cuda.init()
        gpus = tuple(_examine(number) for number in range(torch.cuda.device_count()))
    except (RuntimeError, AssertionError) as error:
        return Facts(torch.__version__, built, version, newest, error=first_line(error))
    return Facts(torch.__version__, built, version, newest, gpus=gpus)


def _examine(number: int) -> Gpu:
    import torch

    name, capability = torch.cuda.get_device_name(number), torch.cuda.get_device_capability(number)
    try:
        wrong = product(torch.device("cuda", number), bf16=capability >= BF16_CAPABILITY)
    except RuntimeError as error:
        wrong = first_line(error)
    return Gpu(name, capability, wrong)


def product(device: Any, bf16: bool) -> str:
    """Return what is wrong with products of small whole numbers on a device, which every precision holds exactly; empty: nothing."""
    import torch

    random = torch.Generator().manual_seed(7)
    left, right = (torch.randint(-1, 2, (256, 256), generator=random) for _ in range(2))
    for precision in (torch.float32, *([torch.bfloat16] if bf16 else [])):
        found = left.to(device, precision) @ right.to(device, precision)
        if not torch.equal(found.cpu().long(), left @ right):
            return f"a product in {str(precision).removeprefix('torch.')} is wrong"
    return ""


def driver() -> tuple[str, int]:
    """Return the driver's version and the newest CUDA it knows: from the driver itself, or the version alone from the node's kernel."""
    with suppress(Exception):  # neither the module nor its library need be here
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion()), int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
    with suppress(OSError):
        if found := re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", KERNEL_MODULE.read_text()):
            return found[0], 0
    return "", 0


def first_line(error: BaseException) -> str:
    """Return an error's first line, which in CUDA's errors says it all."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


if __name__ == "__main__":
    print(MARK + json.dumps(asdict(gather())), flush=True)
