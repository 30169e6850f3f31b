import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.conftest import golden_stage
from tunesmith_contract.stages import ServeInput
from tunesmith_serving import engine, overrides
from tunesmith_serving.errors import ServeError
from tunesmith_serving.machine import available_cpus

FOLDER = Path("/mnt/pvc/models/merged")


def stage(device="CPU", max_model_len=512, tensor_parallel_size=1, **chosen):
    vllm = {"maxModelLen": max_model_len, "tensorParallelSize": tensor_parallel_size, "overrides": chosen}
    return ServeInput.model_validate(golden_stage(device=device, engine={"vllm": vllm}))


def environment(stage, base=None, cpus=4):
    return engine.environment(stage, base or {}, Path("/home/tunesmith"), cpus)


def test_the_command_line_of_a_cpu_pod_is_this_one():
    assert " ".join(engine.command(stage(max_num_seqs="8"), FOLDER, ["vllm", "serve"])) == (
        "vllm serve /mnt/pvc/models/merged --served-model-name support-bot --port 8000 --max-model-len 512"
        " --tensor-parallel-size 1 --load-format safetensors --shutdown-timeout 15 --middleware tunesmith_serving.drain.CloseConnections"
        " --disable-access-log-for-endpoints /health,/metrics,/ping,/v1/models --enforce-eager --max-num-seqs 8"
    )


def test_a_gpu_pod_compiles_and_shares_the_model():
    arguments = engine.arguments(stage("GPU", tensor_parallel_size=2), FOLDER)

    assert "--enforce-eager" not in arguments
    assert arguments[arguments.index("--tensor-parallel-size") + 1] == "2"


def test_without_a_length_the_model_has_its_own():
    assert "--max-model-len" not in engine.arguments(stage(max_model_len=None), FOLDER)


def test_a_cpu_pod_may_be_told_to_compile():
    arguments = engine.arguments(stage(enforce_eager="false"), FOLDER)

    assert "--no-enforce-eager" in arguments and "--enforce-eager" not in arguments


@pytest.mark.parametrize(
    ("key", "value", "flags"),
    [
        ("max_num_seqs", "16", ["--max-num-seqs", "16"]),
        ("gpu_memory_utilization", "0.85", ["--gpu-memory-utilization", "0.85"]),
        ("enable_prefix_caching", "false", ["--no-enable-prefix-caching"]),
        ("dtype", '"bfloat16"', ["--dtype", "bfloat16"]),
        ("generation_config", '"vllm"', ["--generation-config", "vllm"]),
        ("optimization_level", "1", ["--optimization-level", "1"]),
        ("tool_call_parser", '"hermes"', ["--tool-call-parser", "hermes"]),
    ],
)
def test_an_override_becomes_an_argument(key, value, flags):
    assert overrides.to_flags(overrides.parse({key: value})) == flags


@pytest.mark.parametrize("key", ["middleware", "worker_cls", "load_format", "trust_remote_code", "port", "api_key", "max-num-seqs"])
def test_a_key_that_is_not_allowed_is_refused_by_name_with_those_that_are(key):
    with pytest.raises(ServeError) as refused:
        overrides.parse({key: "1"})

    assert refused.value.reason == "InvalidOverrides"
    assert f" {key} may not be set" in refused.value.message and "max_num_seqs" in refused.value.message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_num_seqs", '"many"'),
        ("max_num_seqs", "-1"),
        ("max_num_seqs", "true"),
        ("max_num_seqs", "1.5"),
        ("gpu_memory_utilization", "[1]"),
        ("enforce_eager", '"yes"'),
        ("generation_config", '"/mnt/pvc/other"'),
        ("dtype", '"int8"'),
        ("optimization_level", "true"),
        ("tool_call_parser", '"/tmp/plugin.py"'),
        ("tool_call_parser", '"--port"'),
        ("reasoning_parser", "null"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(key, value):
    with pytest.raises(ServeError, match=f"{key} must be"):
        overrides.parse({key: value})


def test_a_bare_word_is_refused_as_a_training_setting_is_and_told_how_to_quote_it():
    with pytest.raises(ServeError, match=r"dtype: 'bfloat16' is not JSON \(a text needs quotes") as refused:
        overrides.parse({"dtype": "bfloat16"})

    assert refused.value.reason == "InvalidOverrides"


def test_the_engine_stays_offline_and_knows_a_user_without_a_passwd_entry():
    env = environment(stage(), {"PATH": "/opt/serving/bin", "HF_HUB_OFFLINE": "0"})

    assert env["PATH"] == "/opt/serving/bin"
    assert env["HF_HUB_OFFLINE"] == env["VLLM_NO_USAGE_STATS"] == env["VLLM_DO_NOT_TRACK"] == "1"
    assert (env["HOME"], env["USER"], env["LOGNAME"]) == ("/home/tunesmith", "tunesmith", "tunesmith")


@pytest.mark.parametrize(("cpus", "size", "threads"), [(1, 1, "1"), (2, 1, "1"), (8, 1, "7"), (9, 2, "4")])
def test_a_cpu_pod_leaves_one_processor_to_the_api_server(cpus, size, threads):
    env = environment(stage(tensor_parallel_size=size), cpus=cpus)

    assert (env["OMP_NUM_THREADS"], env["VLLM_CPU_OMP_THREADS_BIND"], env["VLLM_CPU_KVCACHE_SPACE"]) == (threads, "nobind", "1")


def test_the_processors_that_the_pod_asked_for_are_shared_among_the_ranks():
    assert environment(stage(tensor_parallel_size=2), {"OMP_NUM_THREADS": "8"}, cpus=64)["OMP_NUM_THREADS"] == "4"


def test_a_users_environment_wins_over_the_defaults_for_cpus():
    env = environment(stage(), {"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_CPU_OMP_THREADS_BIND": "0-3"})

    assert (env["VLLM_CPU_KVCACHE_SPACE"], env["VLLM_CPU_OMP_THREADS_BIND"]) == ("4", "0-3")


def test_a_cache_size_in_the_overrides_is_not_undone_by_the_default():
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment(stage(kv_cache_memory_bytes="2147483648"))


def test_a_gpu_pod_gets_nothing_that_is_meant_for_cpus():
    assert not {"VLLM_CPU_KVCACHE_SPACE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"} & environment(stage("GPU")).keys()


def test_an_engine_on_cpus_sees_no_gpu():
    assert environment(stage("CPU"))["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(("content", "expected"), [("150000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("", None)])
def test_processors_are_counted_by_the_pods_limit(tmp_path, content, expected):
    (tmp_path / "cpu.max").write_text(content)

    unlimited = available_cpus(tmp_path / "missing")
    assert available_cpus(tmp_path / "cpu.max") == (expected or unlimited)


@pytest.mark.engine
def test_every_allowed_override_is_an_argument_of_the_locked_vllm():
    answer = subprocess.run([*engine.VLLM, "--help=all"], capture_output=True, text=True, check=True, timeout=120)
    flags = {"--" + key.replace("_", "-") for key in overrides.ALLOWED}
    ours = {flag for flag in engine.arguments(stage(), FOLDER) if flag.startswith("--")}

    assert sys.executable == engine.VLLM[0]
    assert {flag for flag in flags | ours if f"{flag} " not in answer.stdout and f"{flag}," not in answer.stdout} == set()
