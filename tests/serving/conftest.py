"""A store of its own for each test, a model folder in it, and a launcher in a process of its own."""

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from dev.cluster.ports import free_ports
from dev.cluster.processes import wait_until
from tunesmith_serving import verify

ROOT = Path(__file__).resolve().parent.parent.parent
GOLDEN = ROOT / "tests" / "contract"
FAKE_ENGINE = str(Path(__file__).with_name("fake_engine.py"))
FIRST = "test_vllm"
"""The longest file: with it last, the other worker would wait."""
# A whole file of safetensors, of 7000 bytes: its header's length, its header, and a tensor.
HEADER = json.dumps({"weight": {"dtype": "U8", "shape": [6900], "data_offsets": [0, 6900]}}).ljust(92).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + b"weights" * 985 + b"works"
MODEL_URI = "pvc://models/team-a/default/support-bot/0123456789ab/merged"


def pytest_configure(config):
    config.addinivalue_line("markers", "engine: starts the real vLLM (half a minute and more)")


def pytest_collection_modifyitems(items):
    here = [item for item in items if item.path.parent == Path(__file__).parent]
    if len(here) == len(items):
        items.sort(key=lambda item: item.path.stem != FIRST)


def get(url, timeout=5, headers=None):
    """Status and body of a GET; status 0 where nothing answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=timeout) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The folder under which claims are mounted."""
    root = tmp_path / "pvc"
    root.mkdir()
    monkeypatch.setenv("TUNESMITH_PVC_ROOT", str(root))
    return root


def write_manifest(folder):
    """Make `folder` a complete artefact and return its digest, as the trainer image does."""
    content = verify.manifest_content(verify.hash_files(folder, verify.listed_files(folder)))
    (folder / verify.MANIFEST).write_bytes(content)
    return "sha256:" + hashlib.sha256(content).hexdigest()


@pytest.fixture
def model(store):
    """The folder of a complete artefact; its files' contents are of no matter to the fake engine."""
    folder = verify.path_of(MODEL_URI)
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("a card")
    (folder / "report.html").write_text("a report")
    (folder / ".gitattributes").write_text("hidden")
    write_manifest(folder)
    return folder


def golden_stage(**changes):
    """The golden stage file with top-level fields replaced."""
    return json.loads((GOLDEN / "serve.stage.json").read_text()) | changes


class Running:
    """A launcher in a process of its own, on free ports."""

    def __init__(self, tmp_path, stage, engine, env):
        self.log = tmp_path / "log"
        self.termination = tmp_path / "termination-log"
        self.engine_port, self.ready_port = free_ports(2)
        stage_file = tmp_path / "stage.json"
        stage_file.write_text(json.dumps(stage | {"port": self.engine_port, "readyPort": self.ready_port}))
        paths = {"TUNESMITH_STAGE_FILE": str(stage_file), "TUNESMITH_TERMINATION_LOG": str(self.termination)}
        start = f"import sys; from tunesmith_serving.launcher import main; sys.exit(main({engine!r}))"
        command = [sys.executable, "-c", start] if engine else [sys.executable, "-m", "tunesmith_serving"]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}/serving-image:{ROOT}/contract", **paths, **env}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def engine_url(self, path):
        return f"http://127.0.0.1:{self.engine_port}{path}"

    def probe(self, path):
        return get(f"http://127.0.0.1:{self.ready_port}{path}")

    def wait_ready(self, timeout=60):
        def ready_or_ended():
            assert self.process.poll() is None, self.log.read_text()
            return self.probe("/ready")[0] == 200

        wait_until(ready_or_ended, "the launcher to be ready", timeout)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)

    def exit_code(self, timeout=60):
        return self.process.wait(timeout)

    def engine_pids(self):
        """The processes that the launcher started."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()] if children.exists() else []

    def close(self):
        """End the launcher and the engine, which is a process group of its own and would outlive it."""
        for pid in self.engine_pids():
            os.killpg(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def result(self):
        return json.loads(self.termination.read_text())


@pytest.fixture
def launch(tmp_path, model):
    """Start a launcher: on the fake engine in one of its behaviours, or on vLLM (`engine=None`)."""
    started = []

    def start(behaviour="serve", stage=None, env=None):
        engine = behaviour and [sys.executable, FAKE_ENGINE, behaviour]
        running = Running(tmp_path, stage or plain_stage(), engine, env or {})
        started.append(running)
        return running

    yield start
    for running in started:
        running.close()


def plain_stage(**changes):
    """A stage that serves the `model` fixture whatever its digest is; the launcher need not wait long for proxies."""
    return golden_stage(**{"model": {"uri": MODEL_URI}, "pauseSeconds": 1} | changes)
