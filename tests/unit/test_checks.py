"""The parts of the test suite run one after another."""

from __future__ import annotations

import pytest

from dev import checks
from dev.cluster import preflight
from dev.cluster.errors import ClusterError
from dev.demo import stack


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts that ran; all of them fail."""
    parts: list[str] = []
    monkeypatch.setattr(checks, "run", lambda part: parts.append(part) is not None)
    return parts


@pytest.mark.parametrize("needed", ["machine", "build"])
def test_where_the_machine_lacks_something_nothing_else_is_started(ran: list[str], capsys: pytest.CaptureFixture[str], needed: str) -> None:
    assert checks.main([needed, "lint", "unit"]) == 1
    assert ran == [needed]
    assert "parts: 0 passed, 1 failed" in capsys.readouterr().out


def test_another_part_that_fails_does_not_stop_the_next(ran: list[str]) -> None:
    assert checks.main(["lint", "unit"]) == 1
    assert ran == ["lint", "unit"]


@pytest.mark.parametrize("missing", ["root", "Go", "memory", "disk"])
def test_what_the_demo_needs_is_asked_for_before_anything_is_started(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    def lacks(*_: object) -> None:
        raise ClusterError(f"no {missing}")

    checked = {
        "root": (preflight, "check_root"),
        "Go": (stack.tools, "go_version"),
        "memory": (preflight, "require_memory"),
        "disk": (preflight, "require_space"),
    }
    for module, name in checked.values():
        monkeypatch.setattr(module, name, lambda *_: "")
    monkeypatch.setattr(stack.environments, "place", lambda name: stack.paths.cache_root() / "not-there" / name)
    stack.check_machine()
    module, name = checked[missing]
    monkeypatch.setattr(module, name, lacks)
    with pytest.raises(ClusterError, match=missing):
        stack.start_cluster(print)
