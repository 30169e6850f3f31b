import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from dev.cluster.ports import free_port
from dev.cluster.processes import wait_until
from tests.trainer import bench
from tests.trainer import zygote as zygote_module
from tests.trainer.models import base_store, in_zoo, zoo  # noqa: F401  fixtures of the evaluation stages

FIRST = ("test_faults", "test_strategies", "test_finalize")
"""The longest files: with one of them last, the other worker would wait."""
TOGETHER = {
    **dict.fromkeys(("test_finalize", "test_restore", "test_train", "test_privacy"), "story"),
    **dict.fromkeys(("test_evaluate", "test_figures_by_hand", "test_quantize", "test_merge"), "zoo"),
}
"""Files that share a fixture which takes long: one worker runs them, so that it is made once."""


class ByFixture(LoadScopeScheduling):
    """Hands out whole files, or several that are TOGETHER."""

    def _split_scope(self, nodeid):
        path = nodeid.split("::")[0]
        return TOGETHER.get(Path(path).stem, path)


def pytest_xdist_make_scheduler(config, log):
    return ByFixture(config, log)


def pytest_collection_modifyitems(items):
    # The project turns warnings into errors; torch, transformers and trl warn a great deal, and not about us.
    here = [item for item in items if "/tests/trainer/" in str(item.path)]
    for item in here:
        item.add_marker(pytest.mark.filterwarnings("default"))
    if len(here) == len(items):
        ranks = {name: rank for rank, name in enumerate(FIRST)}
        items.sort(key=lambda item: ranks.get(item.path.stem, len(FIRST)))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    return bench.make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def store(tmp_path, tiny_model):
    return bench.Bench(tmp_path, tiny_model)


class Story:
    """One run told once for all tests: prepared; trained on two nodes until one is drained; trained on to the end.

    Its first attempt is started as a pod is, with nothing imported before.
    """

    def __init__(self, folder, tiny_model, zygote):
        self.store = bench.Bench(folder, tiny_model)
        (self.store.root / "models/base/generation_config.json").write_text(bench.VICUNA)
        blocks = {"training": bench.training(maxSteps=300)}
        self.prepared = self.store.run(bench.prepare_input(**blocks))[1]
        self.folder = self.store.path(self.prepared["runURI"])
        self.train = [bench.train_input(self.prepared, free_port(), nodes=2, attempt=number, **blocks) for number in (1, 2)]
        pods = [self.store.start(self.train[0], index) for index in (0, 1)]
        metrics = self.folder / "metrics.jsonl"
        wait_until(lambda: metrics.exists() or any(pod.process.poll() is not None for pod in pods), "the first step", bench.PATIENCE)
        pods[1].process.send_signal(signal.SIGTERM)
        self.drained = [pod.wait() for pod in pods]
        self.saved_steps = sorted(path.parent.name for path in self.folder.glob("checkpoints/attempt-1/*/manifest.json"))
        pods = [self.store.start(self.train[1], index, **zygote) for index in (0, 1)]
        self.ended = [pod.wait() for pod in pods]
        self.metrics = [json.loads(line) for line in metrics.read_text().splitlines()]
        self.finalize = bench.finalize_input(self.train[1], self.ended[0][1]) if self.ended[0][0] == 0 else None


@pytest.fixture(scope="session")
def story(tmp_path_factory, tiny_model, zygote):
    return Story(tmp_path_factory.mktemp("story"), tiny_model, zygote)


@pytest.fixture(scope="session")
def zygote(tmp_path_factory):
    """The environment variables by which a pod gets all its processes from a zygote (zygote.py)."""
    folder = tmp_path_factory.mktemp("zygote")
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {zygote_module.__file__} "$@"\n')
    script.chmod(0o755)
    environment = os.environ | bench.LAUNCH | {"PYTHONPATH": f"{bench.ROOT}/trainer-image:{bench.ROOT}/contract:{bench.ROOT}"}
    command = [sys.executable, zygote_module.__file__, "serve", str(folder / "socket")]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        # Leaving closes its standard input, which ends it.
        yield {"ZYGOTE_PYTHON": str(script), "ZYGOTE": str(folder / "socket")}


@pytest.fixture(scope="session")
def finalized(story):
    assert story.finalize, story.ended
    return story.store.run(story.finalize)
