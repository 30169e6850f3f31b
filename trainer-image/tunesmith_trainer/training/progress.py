"""Progress: the loss curve beside the artefact, and the training's state posted to the operator (KEP-2779's protocol).

transformers has a KubeflowCallback for the second; ours differs where that one misleads: it reports 100 % when training is
interrupted, 0 % when it goes on, and it says nothing when the operator cannot be reached. (loop.py takes it out again.)
"""

from __future__ import annotations

import json
import math
import os
import queue
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunesmith_trainer import store
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.training.fence import Fence

MIN_INTERVAL_SECONDS = 5.0
MAX_INTERVAL_SECONDS = 300.0
TIMEOUT_SECONDS = 3.0
# After an outage that was longer than the store's patience.
OUTAGE_PAUSE_SECONDS = 30.0
T = TypeVar("T")


class MetricsFile(TrainerCallback):
    """Appends what transformers logs to `metrics.jsonl`, one JSON object a line. A thread writes: a store that is slow or away
    must not hold training up."""

    def __init__(self, path: Path, fence: Fence) -> None:
        """Take the file's path and the claim on its folder."""
        self._path = path
        self._fence = fence
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin to write, after the lines up to the step that training starts from: those of steps that were lost go."""
        if state.is_world_process_zero:
            self._thread = threading.Thread(target=self._run, args=(state.global_step,), name="metrics", daemon=True)
            self._thread.start()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        """Append one line."""
        if state.is_world_process_zero and logs:
            line = {"step": state.global_step, "epoch": state.epoch, "time": round(time.time(), 3), **logs}
            self._lines.put(json.dumps(line) + "\n")

    def close(self) -> None:
        """Wait until all lines are written, or given up."""
        if self._thread:
            self._closing.set()
            self._lines.put(None)
            self._thread.join()

    def _run(self, resumed_step: int) -> None:
        try:
            end = self._persevere(lambda: self._cut(resumed_step))
            while (line := self._lines.get()) is not None:
                lines = [line]
                while not self._lines.empty() and (line := self._lines.get()) is not None:
                    lines.append(line)
                text = "".join(lines).encode()
                self._persevere(partial(self._write, text, end))
                end += len(text)
                if line is None:
                    return
        except (OSError, StageError) as error:
            # What stops a checkpoint ends the training; a curve is not worth that.
            print(f"the loss curve is not written any further: {error}", flush=True)

    def _persevere(self, act: Callable[[], T]) -> T:
        """Return act()'s value; as long as training outlives an outage, so does its curve. At the end there is one more try."""
        while True:
            closing = self._closing.is_set()
            try:
                return store.persevere(act, "the loss curve")
            except StageError as error:
                if closing or error.reason == "Superseded":
                    raise
            self._closing.wait(OUTAGE_PAUSE_SECONDS)

    def _cut(self, resumed_step: int) -> int:
        """Return where in the file the next line goes, with what lies behind cut off."""
        self._fence.check()
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.is_file() else []
        kept = b"".join(line for line in lines if _step_of(line) <= resumed_step)
        store.write_bytes(self._path, kept)
        return len(kept)

    def _write(self, text: bytes, end: int) -> None:
        """Write at `end`; what lies behind it was left by a write that failed half way."""
        self._fence.check()
        with self._path.open("r+b") as file:
            file.truncate(end)
            file.seek(end)
            file.write(text)


class ProgressReport(TrainerCallback):
    """Posts progress to the operator, at most every few seconds; an operator out of reach is logged and no more."""

    def __init__(self, published: Callable[[], int | None] = lambda: None) -> None:
        """`published` tells the step of the newest checkpoint that this attempt has completed."""
        self._published = published
        self._metrics: dict[str, str] = {}
        self._first_step = 0
        self._started = self._posted = time.monotonic()
        self._pause = MIN_INTERVAL_SECONDS

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Post the step that training starts from."""
        self._first_step, self._started = state.global_step, time.monotonic()
        self._post(state)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        """Remember the newest figures."""
        self._metrics |= {key: f"{value:.6g}" for key, value in (logs or {}).items() if isinstance(value, int | float)}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Post, unless the last post was a moment ago."""
        if time.monotonic() - self._posted >= self._pause:
            self._post(state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Post where training ended: 100 % only when it ran to its end."""
        self._post(state)

    def _post(self, state: TrainerState) -> None:
        url = os.environ.get("KUBEFLOW_TRAINER_SERVER_URL")
        if not url or not state.is_world_process_zero:
            return
        self._posted = time.monotonic()
        body = json.dumps({"trainerStatus": self.status(state)}).encode()
        try:
            headers = {"Authorization": f"Bearer {_token()}", "Content-Type": "application/json"}
            request = urllib.request.Request(url, data=body, headers=headers, method="POST")
            context = ssl.create_default_context(cafile=os.environ.get("KUBEFLOW_TRAINER_SERVER_CA_CERT"))
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=context):
                self._pause = MIN_INTERVAL_SECONDS
        except (OSError, ValueError, KeyError) as error:
            print(f"progress was not reported: {error}", flush=True)
            # Each try may hold training up until it times out.
            self._pause = min(2 * self._pause, MAX_INTERVAL_SECONDS)

    def status(self, state: TrainerState) -> dict[str, Any]:
        """Return the protocol's `trainerStatus` of a training state."""
        total = max(state.max_steps, 1)
        done = state.global_step - self._first_step
        status: dict[str, Any] = {
            "lastUpdatedTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "progressPercentage": min(100, state.global_step * 100 // total),
        }
        if done > 0:
            seconds = (time.monotonic() - self._started) / done
            status["estimatedRemainingSeconds"] = int(seconds * (total - state.global_step))
        steps = {"current_step": state.global_step, "total_steps": total, "current_epoch": round(state.epoch or 0.0, 2)}
        if (saved := self._published()) is not None:
            steps["last_checkpoint_step"] = saved
        figures = self._metrics | {name: str(value) for name, value in steps.items()}
        status["metrics"] = [{"name": name, "value": value} for name, value in figures.items()]
        return status


def _step_of(line: bytes) -> float:
    """Return the step of a line of the loss curve, infinity for what is no whole line."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def _token() -> str:
    # Read for each post: the kubelet renews the file.
    return Path(os.environ["KUBEFLOW_TRAINER_SERVER_TOKEN"]).read_text().strip()
