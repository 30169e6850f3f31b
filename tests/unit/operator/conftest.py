"""The operator's coroutines run on the loop that they run on in a cluster (tunesmith/__main__.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import uvloop


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What pytest-asyncio makes loops by."""
    return {"uvloop": uvloop.new_event_loop}
