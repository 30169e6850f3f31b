"""What a life waits for between two of its steps."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dev.bench.life import Life
from dev.bench.view import MERGE, View
from dev.cluster.controlplane import ControlPlane

Object = dict[str, Any]


def pod(version: int, phase: str) -> Object:
    return {"kind": "Pod", "metadata": {"namespace": "lane", "name": "serve-0", "resourceVersion": str(version)}, "status": {"phase": phase}}


class SlowView(View):
    """A view whose writes are answered at once, and whose watch tells of them when the test says so."""

    def __init__(self) -> None:
        super().__init__(cast(ControlPlane, SimpleNamespace(server="", pki=SimpleNamespace(context=lambda name: None))))
        self.answers = {"Running": pod(2, "Running")}

    async def send(self, method: str, path: str, body: Object | None = None, content_type: str = MERGE) -> tuple[int, Object]:
        assert body
        return 200, self.answers[body["status"]["phase"]]

    def tell(self, event: str, obj: Object) -> None:
        self._take("Pod", event, obj)


@pytest.mark.parametrize("news", [("MODIFIED", pod(2, "Running")), ("MODIFIED", pod(3, "Running")), ("DELETED", pod(3, "Running"))])
async def test_a_life_goes_on_once_its_view_has_what_it_told(news: tuple[str, Object]) -> None:
    view = SlowView()
    view.tell("ADDED", pod(1, "Pending"))
    telling = asyncio.create_task(Life(view, "lane").tell(pod(1, "Pending"), {"phase": "Running"}))
    await asyncio.sleep(0)
    view.tell("MODIFIED", pod(1, "Pending"))
    done, _ = await asyncio.wait((telling,), timeout=0.05)
    assert not done
    view.tell(*news)
    await telling
