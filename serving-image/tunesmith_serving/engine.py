"""How a stage file becomes vLLM's command line and environment. Pure: nothing here reads the machine."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tunesmith_contract.stages import ServeInput
from tunesmith_serving import device, overrides

# `vllm serve`, without relying on PATH. The older module vllm.entrypoints.openai.api_server is deprecated.
VLLM = (sys.executable, "-m", "vllm.entrypoints.cli.main", "serve")
# How long vLLM itself lets requests go on after its SIGTERM, which the launcher sends when none is left, or no time.
SHUTDOWN_SECONDS = 15
MIDDLEWARE = "tunesmith_serving.drain.CloseConnections"
# Asked every second or so by the kubelet, a scraper, and our own readiness check.
UNLOGGED_ENDPOINTS = "/health,/metrics,/ping,/v1/models"
DEFAULT_CPU_KV_CACHE_GIB = "1"


def arguments(stage: ServeInput, folder: Path) -> list[str]:
    """Return the arguments of `vllm serve`; raises ServeError(InvalidOverrides)."""
    vllm = stage.engine.vllm
    chosen = overrides.parse(vllm.overrides)
    if stage.device == "CPU":
        # Compiling takes a minute and a C++ compiler at every start, and CPU clusters are for trying things out.
        chosen.setdefault("enforce_eager", True)
    length = [] if vllm.max_model_len is None else ["--max-model-len", str(vllm.max_model_len)]
    return [
        str(folder),
        *("--served-model-name", stage.served_model_name),
        *("--port", str(stage.port)),
        *length,
        *("--tensor-parallel-size", str(vllm.tensor_parallel_size)),
        # Without this, "auto" falls back to unpickling *.bin files.
        *("--load-format", "safetensors"),
        *("--shutdown-timeout", str(SHUTDOWN_SECONDS)),
        *("--middleware", MIDDLEWARE),
        *("--disable-access-log-for-endpoints", UNLOGGED_ENDPOINTS),
        *overrides.to_flags(chosen),
    ]


def command(stage: ServeInput, folder: Path, engine: Sequence[str] = VLLM) -> list[str]:
    """Return the whole command line; `engine` is what starts the engine."""
    return [*engine, *arguments(stage, folder)]


def environment(stage: ServeInput, base: Mapping[str, str], home: Path, cpus: int) -> dict[str, str]:
    """Return the engine's environment: `base` with what it lacks for an offline start by a user without a name.

    `home` is a writable folder; `cpus` is how many processors the pod may use.
    """
    fixed = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        # Caches that default to $HOME (vLLM, flashinfer, triton, Hugging Face) follow it.
        "HOME": str(home),
        # User 65532 is in no passwd file, where getpass.getuser() (torch.compile's cache) would look without these.
        "USER": "tunesmith",
        "LOGNAME": "tunesmith",
        "PYTHONUNBUFFERED": "1",
    }
    if stage.device != "CPU":
        return {**base, **fixed}
    # A node's GPUs are for those that asked for them.
    device.hide(fixed)
    # The operator tells the processors asked for; a pod started by hand leaves one to the API server and the scheduler.
    told = int(base.get("OMP_NUM_THREADS", cpus - 1))
    threads = {"OMP_NUM_THREADS": str(max(1, told // stage.engine.vllm.tensor_parallel_size))}
    return {**_cpu_defaults(stage), **base, **threads, **fixed}


def _cpu_defaults(stage: ServeInput) -> dict[str, str]:
    """Return what the pod's own environment may still change on a CPU.

    vLLM binds its threads to the node's first processors: two pods on a node would share them. So the kernel places them.
    """
    placement = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    if "kv_cache_memory_bytes" in stage.engine.vllm.overrides:
        # The variable would win over the argument.
        return placement
    return placement | {"VLLM_CPU_KVCACHE_SPACE": DEFAULT_CPU_KV_CACHE_GIB}
