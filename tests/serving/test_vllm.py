"""The real engine: a tiny Llama of random weights is served, answers and drains."""

import http.client
import json
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from dev.cluster.processes import wait_until
from tests.serving.conftest import Running, get, plain_stage, write_manifest
from tunesmith_serving.verify import path_of

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
# Half a minute on two idle cores; ten times that has been seen beside other work.
START_SECONDS = 600
PROMPT = "one two canary-prompt-8d30"
# What the model says, and its generation_config.json ends answers with, as that of a tuned chat model does whose tokenizer has another end.
WORD = 70

# In a process of its own: torch stays out of this one, and its warnings are not ours.
MAKE_MODEL = Path(__file__).with_name("tiny_llama.py")


@pytest.fixture
def tiny_llama(store):
    folder = path_of("pvc://models/tiny")
    folder.mkdir(parents=True)
    subprocess.run([sys.executable, str(MAKE_MODEL), str(folder), "0", str(WORD)], check=True, capture_output=True)
    return write_manifest(folder)


def chat(running, max_tokens, ignore_eos=True):
    """Status and content of a chat completion, of exactly `max_tokens` tokens where ends of answers are ignored."""
    body = {"model": "support-bot", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": max_tokens}
    data = json.dumps(body | {"ignore_eos": ignore_eos, "temperature": 0}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(running.engine_url("/v1/chat/completions"), data, headers)
    with urllib.request.urlopen(request, timeout=600) as response:
        return response.status, json.load(response)


def chat_until_told_to_leave(running, statuses):
    """Add the status of one short request after another on one connection to `statuses`, until the server says that it ends it."""
    body = json.dumps({"model": "support-bot", "prompt": "one", "max_tokens": 4})
    headers = {"Content-Type": "application/json"}
    client = http.client.HTTPConnection("127.0.0.1", running.engine_port, timeout=60)
    leaving = False
    while not leaving:
        client.request("POST", "/v1/completions", body, headers)
        answer = client.getresponse()
        answer.read()
        leaving = answer.headers["connection"] == "close"
        statuses.append(answer.status)


def requests_running(running):
    _, metrics = get(running.engine_url("/metrics"))
    return any(line.startswith("vllm:num_requests_running") and float(line.split()[-1]) > 0 for line in metrics.splitlines())


def test_vllm_serves_a_model_tells_nobody_what_is_said_and_finishes_its_requests_on_sigterm(tmp_path, tiny_llama):
    model = {"uri": "pvc://models/tiny", "digest": tiny_llama}
    stage = plain_stage(gracePeriodSeconds=600) | {
        "model": model,
        "engine": {"vllm": {"maxModelLen": 2048, "tensorParallelSize": 1, "overrides": {}}},
    }
    running = Running(tmp_path, stage, None, {"HOME": str(tmp_path)})
    try:
        running.wait_ready(START_SECONDS)
        assert chat(running, 8)[1]["usage"]["completion_tokens"] == 8
        # A tuned chat model stops: at a token that generation_config.json alone names.
        ended = chat(running, 8, ignore_eos=False)[1]
        assert (ended["choices"][0]["finish_reason"], ended["usage"]["completion_tokens"]) == ("stop", 1)
        _, metrics = get(running.engine_url("/metrics"))
        assert "vllm:request_success_total" in metrics

        answers, short = [], []
        request = threading.Thread(target=lambda: answers.append(chat(running, 1500)))
        others = threading.Thread(target=chat_until_told_to_leave, args=(running, short))
        request.start()
        wait_until(lambda: requests_running(running), "the request", 120)
        others.start()
        wait_until(lambda: len(short) > 1, "other answers", 120)
        running.stop()
        assert running.exit_code(timeout=600) == 0

        request.join()
        others.join()
        [(status, answer)] = answers
        assert (status, answer["usage"]["completion_tokens"]) == (200, 1500)
        assert set(short) == {200}
        log = running.log.read_text()
        assert "vLLM" in log
        # What clients say is theirs.
        assert "canary-prompt" not in log + metrics
    finally:
        running.close()


def test_a_setting_that_vllm_refuses_is_told_in_its_own_words(tmp_path, tiny_llama):
    engine = {"vllm": {"maxModelLen": 100_000, "tensorParallelSize": 1, "overrides": {}}}
    stage = plain_stage() | {"model": {"uri": "pvc://models/tiny"}, "engine": engine}

    running = Running(tmp_path, stage, None, {})
    try:
        assert running.exit_code(timeout=START_SECONDS) == 70
        assert "max_model_len (100000)" in running.result()["message"]
    finally:
        running.close()
