"""A chat completion through the served endpoint, with nothing but the standard library."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request

from .kube import DemoError, Kube

QUESTION = "What are you?"


def request(model: str, question: str) -> bytes:
    """Body of POST /v1/chat/completions."""
    messages = [{"role": "user", "content": question}]
    return json.dumps({"model": model, "messages": messages, "max_tokens": 32, "temperature": 0}).encode()


def ask(url: str, model: str, question: str) -> str:
    """The model's answer; raises urllib.error.URLError when the endpoint does not answer."""
    call = urllib.request.Request(f"{url}/v1/chat/completions", request(model, question), {"Content-Type": "application/json"})
    with urllib.request.urlopen(call, timeout=60) as response:
        answer: str = json.load(response)["choices"][0]["message"]["content"]
    return answer


def ask_service(kube: Kube, service: str, question: str = QUESTION, tries: int = 5) -> str:
    """The answer of the model `service` through its Service; the model's name is the Service's."""
    for left in range(tries, 0, -1):
        try:
            with kube.port_forward(f"svc/{service}", 80) as url:
                return ask(url, service, question)
        except (urllib.error.URLError, ConnectionError) as error:
            if left == 1:
                raise DemoError(f"the endpoint of {service} does not answer: {error}") from error
            time.sleep(2)
    raise AssertionError("unreachable")


def curl(base: str, model: str) -> str:
    """The line that a person pastes to talk to the model."""
    return f"curl {base}/v1/chat/completions -H 'Content-Type: application/json' -d '{request(model, QUESTION).decode()}'"
