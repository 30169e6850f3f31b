"""The launcher, PID 1 of a serving pod: verify the model, start the engine, answer probes, pass SIGTERM on, drain."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from tunesmith_contract.stages import ServeInput
from tunesmith_serving import device, drain, engine, machine, result, whole
from tunesmith_serving.errors import ServeError
from tunesmith_serving.probes import Answer, ModelCheck, ProbeServer
from tunesmith_serving.process import EngineProcess, describe_exit
from tunesmith_serving.verify import refuse_unsafe_weights, verify

STAGE_FILE = "/etc/tunesmith/stage.json"
# vLLM ends its processes one after another once the last request is answered; beyond this it hangs.
TEARDOWN_SECONDS = engine.SHUTDOWN_SECONDS + 15
LOOK_SECONDS, QUIET_LOOKS = 0.2, 5
CHECKING = "the devices are being checked"
VERIFYING = "the model's files are being verified"
STARTING = "the engine is being started"


def log(message: str) -> None:
    """Write a line to the container's log."""
    print(f"tunesmith: {message}", flush=True)


class Launcher:
    """One model's life in one pod. Its phase, for the probes, is a sentence that says what it waits for."""

    def __init__(self, stage: ServeInput, engine_command: Sequence[str]) -> None:
        self.stage = stage
        self.engine_command = engine_command
        self.phase = VERIFYING if stage.device == "CPU" else CHECKING
        self.stopping = False
        self.drained = False
        self.process: EngineProcess | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="tunesmith-")
        self._drain_file = Path(self._folder.name) / "draining"
        self._check = ModelCheck(stage.port, stage.served_model_name)

    def run(self) -> int:
        """Serve until stopped and return the exit code; raises ServeError when serving is impossible or ends badly."""
        for number in (signal.SIGTERM, signal.SIGINT):
            # PID 1 has no default handlers: without these, SIGTERM would be ignored.
            signal.signal(number, self._on_stop)
        with self._folder, ProbeServer(self.stage.ready_port, {"/ready": self.ready, "/live": self.live}):
            self._start_engine(self._verified_command())
            return self._wait()

    def ready(self) -> Answer:
        """Return whether requests may be sent here. While the pod drains they may: where nothing else is ready, proxies still do so."""
        if self.drained:
            return Answer(False, "the engine is being stopped")
        if self.process is None:
            return Answer(False, self.phase)
        return self._check()

    def live(self) -> Answer:
        """Return whether the launcher, and the engine once it is started, are running."""
        if self.process is not None and not self.process.alive:
            return Answer(False, "the engine has ended")
        return Answer(True, "alive")

    def _verified_command(self) -> list[str]:
        # Settings first: a wrong one must not cost the reading of 100 GB.
        engine.arguments(self.stage, Path())
        require_devices(self.stage)
        self.phase = VERIFYING
        model = verify(self.stage.model)
        log(f"verified {self.stage.model.uri}: {model}")
        refuse_unsafe_weights(model.folder)
        log(f"{self.stage.model.uri}: {whole.check(model.folder, self.stage.model.uri)}")
        return engine.command(self.stage, model.folder, self.engine_command)

    def _start_engine(self, command: list[str]) -> None:
        self.phase = STARTING
        home, cpus = machine.writable_home(), machine.available_cpus()
        log("starting " + " ".join(command))
        base = {**os.environ, drain.FILE_VARIABLE: str(self._drain_file)}
        self.process = EngineProcess(command, engine.environment(self.stage, base, home, cpus))
        if self.stopping:
            # The signal came while there was no process to pass it on to.
            self._stop(self.process)

    def _on_stop(self, number: int, _: object) -> None:
        log(f"stopping on {signal.Signals(number).name}")
        repeated, self.stopping = self.stopping, True
        if self.process is not None and not repeated:
            # A signal handler must return: the main thread waits for the engine.
            threading.Thread(target=self._drain, args=(self.process,), daemon=True).start()
        elif self.phase in (CHECKING, VERIFYING):
            # Nothing to drain, and the threads that hash would keep us for as long as the largest file takes.
            os._exit(0)

    def _drain(self, process: EngineProcess) -> None:
        """Let the engine serve until nobody is connected to it, as far as the grace period allows; then stop it."""
        # An engine that was never ready has never been sent a request.
        if self._check.listed:
            start = time.monotonic()
            self._drain_file.touch()
            time.sleep(self.stage.pause_seconds)
            deadline = start + self.stage.grace_period_seconds - TEARDOWN_SECONDS
            quiet = 0
            # Clients that no other pod is left for come back between two answers: for a whole second nobody may be there.
            while quiet < QUIET_LOOKS and time.monotonic() < deadline:
                time.sleep(LOOK_SECONDS)
                quiet = 0 if drain.connections(self.stage.port) else quiet + 1
            log(f"{drain.connections(self.stage.port)} connections are open {time.monotonic() - start:.0f} s after the signal; stopping the engine")
        self._stop(process)

    def _stop(self, process: EngineProcess) -> None:
        self.drained = True
        process.terminate()
        deadline = threading.Timer(TEARDOWN_SECONDS, process.kill)
        deadline.daemon = True
        deadline.start()

    def _wait(self) -> int:
        assert self.process is not None
        code = self.process.wait()
        log(f"the engine ended with {describe_exit(code)}")
        # An engine that was still starting has no handler yet and dies of the signal: nothing was lost.
        if self.stopping and code in (0, -signal.SIGTERM, 128 + signal.SIGTERM):
            return 0
        raise ServeError("EngineFailed", f"vLLM ended with {self.process.last_words(self._check.listed)}")


def require_devices(stage: ServeInput) -> None:
    """Return where the pod has the GPUs that it asked for; raises ServeError(DeviceUnavailable), since vLLM may serve on the CPU instead."""
    if stage.device == "CPU":
        return
    facts = device.look()
    wrong = device.problem(facts, device.Wanted(stage.gpus, stage.engine.vllm.tensor_parallel_size))
    if machine.vllm_is_for_cpus():
        wrong = "this serving image holds vLLM for CPUs, and GPUs were asked for: build it with LOCK=requirements-gpu.txt"
    if wrong:
        raise ServeError("DeviceUnavailable", f"{device.node()} ({device.describe(facts)}): {wrong}")
    log("devices: " + ", ".join(gpu.name for gpu in facts.gpus) + f"; {device.describe(facts)}")


def read_stage() -> ServeInput:
    """Return the stage file's content; raises ServeError(InvalidSettings)."""
    path = Path(os.environ.get("TUNESMITH_STAGE_FILE", STAGE_FILE))
    try:
        return ServeInput.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ServeError("InvalidSettings", f"the stage file cannot be read: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ServeError("InvalidSettings", f"the stage file {path} is refused: {wrong}") from error


def main(engine_command: Sequence[str] = engine.VLLM) -> int:
    """Run the launcher and return the exit code; a failure is written to the termination log."""
    start_time = result.timestamp()
    try:
        return Launcher(read_stage(), engine_command).run()
    except ServeError as error:
        failed = error
    except Exception as error:
        traceback.print_exc()
        failed = ServeError("InternalError", f"{type(error).__name__}: {error}")
    sys.stdout.flush()
    result.write_termination(result.failure(failed, start_time))
    return failed.exit_code
