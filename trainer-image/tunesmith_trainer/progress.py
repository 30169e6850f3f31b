"""Progress: the loss curve beside the artefact, and the training's state posted to the operator (KEP-2779's protocol).

transformers has a KubeflowCallback for the second; ours differs where that one misleads: it reports 100 % when training is
interrupted, and it says nothing when the operator cannot be reached.
"""

from __future__ import annotations

import json
import os
import ssl
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

MIN_INTERVAL_SECONDS = 5.0
TIMEOUT_SECONDS = 5.0


class MetricsFile(TrainerCallback):
    """Appends what transformers logs to `metrics.jsonl`, one JSON object a line."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        """Take the file's path; lines of steps that were lost, after the one resumed from, are taken out."""
        self._path = path
        self._resumed_step = resumed_step

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Cut the file back to the step that training starts from."""
        if state.is_world_process_zero and self._path.is_file():
            lines = self._path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= self._resumed_step]
            self._path.write_text("".join(kept))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        """Append one line."""
        if state.is_world_process_zero and logs:
            line = {"step": state.global_step, "epoch": state.epoch, "time": round(time.time(), 3), **logs}
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")


class ProgressReport(TrainerCallback):
    """Posts progress to the operator, at most every few seconds; an operator out of reach is logged and no more."""

    def __init__(self) -> None:
        self._metrics: dict[str, str] = {}
        self._first_step = 0
        self._started = self._posted = time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Post the step that training starts from."""
        self._first_step, self._started = state.global_step, time.monotonic()
        self._post(state)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        """Remember the newest figures."""
        self._metrics |= {key: f"{value:.6g}" for key, value in (logs or {}).items() if isinstance(value, int | float)}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Post, unless the last post was a moment ago."""
        if time.monotonic() - self._posted >= MIN_INTERVAL_SECONDS:
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
                pass
        except (OSError, ValueError, KeyError) as error:
            print(f"progress was not reported: {error}", flush=True)

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
        figures = self._metrics | {name: str(value) for name, value in steps.items()}
        status["metrics"] = [{"name": name, "value": value} for name, value in figures.items()]
        return status


def _token() -> str:
    # Read for each post: the kubelet renews the file.
    return Path(os.environ["KUBEFLOW_TRAINER_SERVER_TOKEN"]).read_text().strip()
