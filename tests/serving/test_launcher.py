import json
import os
import signal
import socket
import subprocess
import threading
import time

import pytest

from dev.cluster.processes import wait_until
from tests.serving.conftest import get, golden_stage, plain_stage
from tunesmith_contract.stages import ServeInput
from tunesmith_serving import device, drain, launcher, machine
from tunesmith_serving.errors import ServeError
from tunesmith_serving.launcher import TEARDOWN_SECONDS
from tunesmith_serving.process import cause, describe_exit

CANARY = "canary-2f0e"


def told(running, words):
    """Status and message of the readiness probe, once it is answered with these words."""
    return wait_until(lambda: (answer := running.probe("/ready"))[0] and words in answer[1] and answer, words, 60)


def test_a_pod_is_ready_once_the_engine_lists_the_served_model(launch):
    running = launch()

    running.wait_ready()

    assert running.probe("/ready") == (200, "support-bot is served\n")
    assert running.probe("/live") == (200, "alive\n")
    assert running.probe("/metrics")[0] == 404


def test_the_engines_first_request_is_the_launchers_and_long_enough_for_every_kernel(launch):
    running = launch()
    running.wait_ready()
    for _ in range(3):
        running.probe("/ready")
        time.sleep(0.6)

    (first,) = json.loads(get(running.engine_url("/posted"))[1])

    assert (first["model"], first["max_tokens"]) == ("support-bot", 1)
    assert len(first["prompt"]) > 4


def test_a_pod_whose_engine_fails_its_first_request_is_not_ready(launch):
    running = launch("fail")

    status, message = told(running, "first request")

    assert (status, message) == (503, "the engine answers 500 to its first request\n")


def test_a_pod_whose_engine_does_not_answer_is_live_and_not_ready(launch):
    running = launch("hang")

    status, message = told(running, "does not list")

    assert (status, running.probe("/live")[0]) == (503, 200)
    assert "does not list its models yet" in message


def test_the_engine_gets_the_models_folder_and_an_offline_environment(launch, model):
    running = launch()
    running.wait_ready()

    started = json.loads(get(running.engine_url("/environment"))[1])

    assert started["argv"][2] == str(model)
    assert started["env"]["HF_HUB_OFFLINE"] == "1"


def test_on_sigterm_a_request_in_flight_is_finished_and_the_exit_code_is_0(launch):
    running = launch()
    running.wait_ready()
    answers = []
    request = threading.Thread(target=lambda: answers.append(get(running.engine_url("/slow"))))
    request.start()
    wait_until(lambda: drain.connections(running.engine_port), "the request", 60)

    running.stop()

    assert running.exit_code() == 0
    request.join()
    assert answers == [(200, '{"finished": true}')]
    assert not running.termination.exists()


def test_after_sigterm_new_requests_are_answered_until_proxies_know(launch):
    running = launch(stage=plain_stage(pauseSeconds=8))
    running.wait_ready()

    running.stop()
    with pytest.raises(subprocess.TimeoutExpired):
        running.exit_code(timeout=1.5)

    assert running.probe("/ready")[0] == 200
    assert get(running.engine_url("/v1/models"))[0] == 200
    assert running.exit_code() == 0


def test_after_sigterm_the_engine_is_not_stopped_while_a_client_is_connected(launch):
    running = launch()
    running.wait_ready()
    with socket.create_connection(("127.0.0.1", running.engine_port)) as client:
        running.stop()
        with pytest.raises(subprocess.TimeoutExpired):
            running.exit_code(timeout=4)
        assert get(running.engine_url("/v1/models"))[0] == 200
        client.sendall(b"GET /v1/models HTTP/1.0\r\n\r\n")
        assert b"200" in client.recv(64)

    assert running.exit_code() == 0


def test_a_client_that_never_leaves_does_not_outlast_the_grace_period(launch):
    grace = TEARDOWN_SECONDS + 2
    running = launch(stage=plain_stage(gracePeriodSeconds=grace))
    running.wait_ready()
    with socket.create_connection(("127.0.0.1", running.engine_port)):
        running.stop()
        wait_until(lambda: "1 connections are open" in running.log.read_text(), "the connection to be told", TEARDOWN_SECONDS - 5)
        # Told a moment before it is so.
        wait_until(lambda: running.probe("/ready") == (503, "the engine is being stopped\n"), "the pod to be unready", 10)

    assert running.exit_code() == 0


def test_an_engine_that_still_loads_is_stopped_at_once(launch):
    running = launch("load", stage=plain_stage(pauseSeconds=300, gracePeriodSeconds=600))
    wait_until(running.engine_pids, "the engine", 60)

    running.stop()

    assert running.exit_code() == 0


def test_an_engine_that_cannot_start_is_told_by_its_own_exception(launch):
    running = launch("die")

    assert running.exit_code() == 70
    answer = running.result()
    assert (answer["outcome"], answer["reason"], answer["exitCode"]) == ("Failed", "EngineFailed", 70)
    assert answer["message"] == "vLLM ended with exit code 1: ValueError: The model's sequence length is too short"


def test_an_engine_that_is_killed_while_serving_is_a_failure(launch):
    running = launch()
    running.wait_ready()
    [engine] = running.engine_pids()
    os.kill(engine, signal.SIGKILL)

    assert running.exit_code() == 70
    assert "SIGKILL (out of memory?)" in running.result()["message"]


@pytest.mark.parametrize("end", ["kill", "crash"])
def test_what_clients_asked_for_is_not_told_when_the_engine_ends(launch, end):
    running = launch()
    running.wait_ready()
    # As vLLM does with a chat template that refuses a request, to its log.
    get(running.engine_url(f"/log/jinja2.exceptions.TemplateError: {CANARY}".replace(" ", "%20")))
    wait_until(lambda: CANARY in running.log.read_text(), "the engine to log it", 60)
    [engine] = running.engine_pids()
    if end == "kill":
        os.kill(engine, signal.SIGKILL)
    else:
        get(running.engine_url("/crash"))

    assert running.exit_code() == 70
    assert running.result()["reason"] == "EngineFailed"
    assert CANARY not in running.termination.read_text()


def test_a_changed_model_is_never_given_to_the_engine(launch, model):
    (model / "config.json").write_text("[]")

    running = launch()

    assert running.exit_code() == 65
    assert running.result()["reason"] == "DigestMismatch"
    assert "starting" not in running.log.read_text()


def test_a_pod_that_asked_for_gpus_and_has_none_never_starts_an_engine(launch):
    running = launch(stage=plain_stage(device="GPU", gpus=1), env={"TUNESMITH_NODE": "gpu-7"})

    assert running.exit_code() == 69
    result = running.result()
    assert (result["reason"], result["exitCode"]) == ("DeviceUnavailable", 69)
    # This environment's vLLM would serve on the CPU, and say nothing of it.
    assert result["message"].startswith("node gpu-7 (no NVIDIA driver): this serving image holds vLLM for CPUs")
    assert "starting" not in running.log.read_text()


def test_an_image_for_gpus_says_what_is_wrong_with_the_devices(monkeypatch):
    stage = ServeInput.model_validate(golden_stage(device="GPU", gpus=2, engine={"vllm": {"tensorParallelSize": 2, "overrides": {}}}))
    monkeypatch.setattr(machine, "vllm_is_for_cpus", lambda: False)
    with pytest.raises(ServeError, match="none can be used: Found no NVIDIA driver") as caught:
        launcher.require_devices(stage)
    assert caught.value.reason == "DeviceUnavailable"
    gpu = device.Gpu("NVIDIA L4", (8, 9))
    monkeypatch.setattr(device, "look", lambda: device.Facts("2.13.0", "13.0", "580.65.06", 13000, gpus=(gpu,)))
    with pytest.raises(ServeError, match=r"\(driver 580.65.06\): 2 GPUs were asked for, 1 can be used \(1 x NVIDIA L4\)"):
        launcher.require_devices(stage)
    monkeypatch.setattr(device, "look", lambda: device.Facts("2.13.0", "13.0", "580.65.06", 13000, gpus=(gpu, gpu)))
    launcher.require_devices(stage)


def test_overrides_are_refused_before_the_model_is_read(launch, model):
    (model / "config.json").unlink()
    stage = plain_stage(engine={"vllm": {"tensorParallelSize": 1, "overrides": {"middleware": "x.y"}}})

    running = launch(stage=stage)

    assert running.exit_code() == 64
    assert running.result()["reason"] == "InvalidOverrides"


def test_a_stage_file_with_an_unknown_field_is_refused(launch):
    running = launch(stage=plain_stage(prot=1))

    assert running.exit_code() == 64
    assert running.result()["reason"] == "InvalidSettings"
    assert "prot: Extra inputs are not permitted" in running.result()["message"]


def test_the_cause_is_the_last_exception_that_does_not_point_elsewhere():
    lines = [
        "(Worker pid=3) ERROR 11-22 16:31:47 [multiproc_executor.py:9] torch.OutOfMemoryError: CUDA out of memory.\n",
        "(EngineCore pid=2) ERROR 11-22 16:31:48 [core.py:1] RuntimeError: Worker failed, See root cause above\n",
        "(APIServer pid=1) INFO 11-22 16:31:48 [core.py:1] bye\n",
        "\n",
    ]

    assert cause(lines, served=False) == "torch.OutOfMemoryError: CUDA out of memory."
    assert cause(lines[2:], served=False) == "bye"
    assert cause(["vllm serve: error: argument --dtype: invalid choice\n"], served=False) == "vllm serve: error: argument --dtype: invalid choice"
    assert cause([], served=False) == "it wrote nothing"
    assert cause(lines, served=True) == "torch.OutOfMemoryError; its log has the rest"
    assert cause(lines[2:], served=True) == "see its log"


def test_a_cause_of_several_lines_is_told_as_one():
    lines = ["pydantic_core.ValidationError: 1 error for ModelConfig\n", "  max_model_len is too long\n", "bye\n"]

    assert cause(lines, served=False) == "pydantic_core.ValidationError: 1 error for ModelConfig max_model_len is too long"


def test_an_end_is_described_in_words():
    assert [describe_exit(code) for code in (1, -9, -15)] == ["exit code 1", "SIGKILL (out of memory?)", "SIGTERM"]
