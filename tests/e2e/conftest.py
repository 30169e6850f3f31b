"""One cluster and one chain for all end-to-end tests: what `make demo` does, by the same code."""

from __future__ import annotations

from typing import Any

import pytest

from dev.demo import chain as demo_chain
from dev.demo import stack as demo_stack
from dev.demo.kube import Kube, Object

Objects = dict[tuple[str, str], Object]


_capturing: Any = None


def pytest_configure(config: pytest.Config) -> None:
    """Remember what captures the output: it has the descriptors too, so that writing past `sys.stderr` is not enough."""
    global _capturing
    _capturing = config.pluginmanager.getplugin("capturemanager")


def say(line: str) -> None:
    """Show what goes on during the long steps, past pytest's capture."""
    with _capturing.global_and_fixture_disabled():
        print(line, flush=True)


@pytest.fixture(scope="session")
def stack() -> demo_stack.Stack:
    """The development cluster with the operator on it and the demo's model and data on its volume; `make down` or the down tests end it."""
    cluster = demo_stack.bring_up(say)
    demo_chain.seed_all(cluster, say)
    return cluster


@pytest.fixture(scope="session")
def kube(stack: demo_stack.Stack) -> Kube:
    """kubectl in the demo's namespace."""
    return stack.kube


@pytest.fixture(scope="session")
def chain(stack: demo_stack.Stack) -> Objects:
    """The three objects of examples/support-bot, applied and followed until all are Ready."""
    demo_chain.apply(stack, say)
    return demo_chain.follow_to_the_end(stack, say, 2400)
