"""The engine arguments that a user may set, and how their values are checked.

An allow-list: vLLM has arguments that load code (`--middleware`, `--worker-cls`, `--load-format`), reach out
(`--download-dir`, `--otlp-traces-endpoint`), write requests to the log, or undo what the launcher owns (`--port`,
`--api-key`). What is listed here tunes speed, memory or the shape of answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from tunesmith_serving.errors import ServeError

Check = Callable[[Any], bool]
PARSER_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _is_parser(value: Any) -> bool:
    # Only names: a path would need --tool-parser-plugin, which is not on the list, and is refused all the same.
    return isinstance(value, str) and PARSER_NAME.fullmatch(value) is not None


INTEGER = ("a whole number", _is_integer)
NUMBER = ("a number", _is_number)
BOOLEAN = ("true or false", lambda value: isinstance(value, bool))
PARSER = ("the name of a parser that vLLM brings along", _is_parser)


def _one_of(*choices: str | int) -> tuple[str, Check]:
    # A plain `in` would take true for 1.
    return "one of " + ", ".join(map(str, choices)), lambda value: any(value == choice and type(value) is type(choice) for choice in choices)


ALLOWED: dict[str, tuple[str, Check]] = {
    "async_scheduling": BOOLEAN,
    "block_size": INTEGER,
    "cpu_offload_gb": NUMBER,
    "disable_cascade_attn": BOOLEAN,
    "disable_custom_all_reduce": BOOLEAN,
    "dtype": _one_of("auto", "bfloat16", "float16", "float32", "half", "float"),
    "enable_auto_tool_choice": BOOLEAN,
    "enable_chunked_prefill": BOOLEAN,
    "enable_expert_parallel": BOOLEAN,
    "enable_force_include_usage": BOOLEAN,
    "enable_prefix_caching": BOOLEAN,
    "enable_prompt_tokens_details": BOOLEAN,
    "enforce_eager": BOOLEAN,
    "generation_config": _one_of("auto", "vllm"),
    "gpu_memory_utilization": NUMBER,
    "kv_cache_dtype": _one_of("auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2"),
    "kv_cache_memory_bytes": INTEGER,
    "long_prefill_token_threshold": INTEGER,
    "max_cudagraph_capture_size": INTEGER,
    "max_logprobs": INTEGER,
    "max_num_batched_tokens": INTEGER,
    "max_num_queued_reqs": INTEGER,
    "max_num_queued_tokens": INTEGER,
    "max_num_seqs": INTEGER,
    "num_gpu_blocks_override": INTEGER,
    "optimization_level": _one_of(0, 1, 2, 3),
    "performance_mode": _one_of("balanced", "interactivity", "throughput"),
    "reasoning_parser": PARSER,
    "scheduling_policy": _one_of("fcfs", "priority"),
    "seed": INTEGER,
    "stream_interval": INTEGER,
    "tool_call_parser": PARSER,
}


def parse(overrides: Mapping[str, str]) -> dict[str, Any]:
    """Return the overrides with their values parsed as JSON; raises ServeError(InvalidOverrides)."""
    return {key: _parse_one(key, text) for key, text in overrides.items()}


def _parse_one(key: str, text: str) -> Any:
    if key not in ALLOWED:
        allowed = ", ".join(ALLOWED)
        raise ServeError("InvalidOverrides", f"engine.vllm.overrides: {key} may not be set; allowed are {allowed}")
    expected, is_valid = ALLOWED[key]
    try:
        value = json.loads(text)
    except ValueError:
        raise ServeError("InvalidOverrides", f'engine.vllm.overrides: {key}: {text!r} is not JSON (a text needs quotes: "\\"{text}\\"")') from None
    if not is_valid(value):
        raise ServeError("InvalidOverrides", f"engine.vllm.overrides: {key} must be {expected}, not {text!r}")
    return value


def to_flags(overrides: Mapping[str, Any]) -> list[str]:
    """Return parsed overrides as arguments of `vllm serve`, in the order of their names."""
    return [flag for key, value in sorted(overrides.items()) for flag in _to_flag(key, value)]


def _to_flag(key: str, value: Any) -> list[str]:
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]
