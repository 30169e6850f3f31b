"""Training through faults: real launchers, torchrun and gloo; each attempt ends in another way and the loss curve stays what it was."""

import errno
import json
import math

import pytest

from dev.cluster.ports import free_port
from dev.cluster.processes import wait_until
from tests.trainer import bench

pytestmark = pytest.mark.timeout(1800)
STEPS, EVERY = 60, 10
# In 32 bits and with small steps: runs that add in another order then differ in the last digits, which steps that grow tell apart.
SETTINGS = {"maxSteps": STEPS, "precision": "FP32", "learningRate": "2e-3"}
# 60 rows, unpacked: where an epoch's rows do not divide by the processes, accelerate fills its last step up with rows from its start.
BLOCKS = {"method": {"sft": {"packing": False, "assistantOnlyLoss": True}}, "validation": None}
TOLERANCE = 1e-3
HUNG_SECONDS = 8
"""After so long a process that does nothing is taken for hung, instead of 40."""


class Trial:
    """A run whose attempts meet with faults."""

    def __init__(self, folder, tiny_model, zygote, **blocks):
        self.store = bench.Bench(folder, tiny_model)
        self.zygote = zygote
        self.blocks = BLOCKS | blocks
        self.prepared = self.store.run(bench.prepare_input(training=bench.training(**SETTINGS), **self.blocks))[1]
        self.folder = self.store.path(self.prepared["runURI"])
        self.logs = []

    def input(self, attempt, nodes=1, processes=1):
        """Train's stage file; every step learns from two rows, whatever the number of processes."""
        block = bench.training(**SETTINGS, gradientAccumulationSteps=2 // (nodes * processes))
        checkpoints = {"everySteps": EVERY, "keep": 3}
        return bench.train_input(self.prepared, free_port(), nodes, attempt, processes, checkpoints, training=block, **self.blocks)

    def start(self, attempt, fault=None, nodes=1, processes=2, **extra):
        """Start the pods of an attempt."""
        value = self.input(attempt, nodes, processes)
        extra = self.zygote | {"FAULT": json.dumps(fault or {})} | extra
        pods = [self.store.start(value, index, **extra) for index in range(nodes)]
        self.logs += [pod.log for pod in pods]
        return pods

    def run(self, attempt, fault=None, **how):
        """Run an attempt of one pod to its end; returns exit code and result."""
        (pod,) = self.start(attempt, fault, **how)
        return pod.wait()

    def curve(self):
        """The run's losses by step; each step must be there once."""
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
        assert [step for step, _ in losses] == list(range(1, len(losses) + 1))
        return dict(losses)

    def complete(self):
        """The complete checkpoints as `attempt-<n>/step-<s>`."""
        return sorted(f"{path.parent.parent.name}/{path.parent.name}" for path in self.folder.glob("checkpoints/*/*/manifest.json"))

    def written(self):
        """The result file."""
        return json.loads((self.folder / "results" / "train.json").read_text())


@pytest.fixture(scope="module")
def make_trial(tmp_path_factory, tiny_model, zygote):
    return lambda **blocks: Trial(tmp_path_factory.mktemp("trial"), tiny_model, zygote, **blocks)


@pytest.fixture(scope="module")
def reference(make_trial):
    """The loss curve of a run that nothing happened to."""
    trial = make_trial()
    assert trial.prepared["trainRows"] % 2 == 0
    code, result = trial.run(1)
    assert (code, result["globalStep"]) == (0, STEPS), result
    return trial.curve()


def assert_bounded(result, resumed):
    """No more steps are lost than docs/contract.md says."""
    assert result.get("step", 0) - resumed <= 2 * EVERY


def assert_same(curve, reference):
    assert curve == pytest.approx(reference, abs=TOLERANCE)


@pytest.fixture(scope="module")
def bruised(make_trial):
    """Five attempts of one run, each with another fault; the third has half the processes."""
    trial = make_trial()
    trial.ends = [
        trial.run(1, {"do": "kill", "rank": 1, "step": 14}),
        trial.run(2, {"kill_at_fsync": 4, "step": 20}),
    ]
    trial.half_written = trial.complete(), sorted(path.name for path in trial.folder.glob("checkpoints/attempt-2/*"))
    trial.ends.append(trial.run(3, {"do": "exhaust", "step": 45}, processes=1))
    with (trial.folder / "checkpoints/attempt-3/step-40/optimizer.pt").open("r+b") as file:
        file.truncate(1000)
    with (trial.folder / "checkpoints/attempt-3/step-30/optimizer.pt").open("r+b") as file:
        file.seek(500)
        file.write(b"\xff\xff")
    trial.ends += [
        trial.run(4, {"do": "drain", "step": 47}),
        trial.run(5, {"do": "burn", "step": 48, "seconds": 2 * HUNG_SECONDS}, TUNESMITH_HUNG_SECONDS=str(HUNG_SECONDS)),
    ]
    return trial


def test_a_killed_process_is_named_and_costs_less_than_an_interval(bruised):
    code, result = bruised.ends[0]
    assert (code, result["reason"]) == (70, "ProcessLost")
    # It told its step once a second.
    assert result.get("step", 0) < 14
    assert_bounded(result, resumed=10)
    assert "rank 1" in result["message"]
    assert bruised.complete()


def test_a_kill_while_a_checkpoint_is_written_leaves_none_and_the_one_before_is_taken(bruised):
    code, result = bruised.ends[1]
    assert (code, result["reason"]) == (70, "ProcessLost")
    complete, begun = bruised.half_written
    assert complete == ["attempt-1/step-10"]
    assert begun == ["step-20"]
    assert_bounded(result, resumed=10)
    assert "attempt-2/step-20 is not complete and is deleted" in bruised.logs[2].read_text()


@pytest.mark.parametrize(("deed", "rank", "reason"), [("exhaust", 0, "OutOfMemory"), ("kill", 1, "ProcessLost")])
def test_a_process_that_fails_lets_the_checkpoint_under_way_be_published(make_trial, deed, rank, reason):
    trial = make_trial()
    code, result = trial.run(1, {"do": deed, "rank": rank, "step": EVERY + 1, "slow": 0.15})
    assert (code, result["reason"]) == (70, reason), result
    assert trial.complete() == [f"attempt-1/step-{EVERY}"]


def test_a_failure_before_the_first_step_tells_no_place_in_training(make_trial):
    trial = make_trial()
    code, result = trial.run(1, {"do": "exhaust", "in": "on_train_begin", "step": 0}, processes=1)
    assert (code, result["reason"]) == (70, "OutOfMemory"), result
    assert result.keys().isdisjoint({"step", "resumedFromStep"})


def test_out_of_memory_is_told_with_its_step_and_what_helps(bruised):
    code, result = bruised.ends[2]
    assert (code, result["reason"], result["step"]) == (70, "OutOfMemory", 44)
    assert "perDeviceTrainBatchSize" in result["message"]
    assert len(result["fingerprint"]) == 12


def test_a_truncated_and_a_corrupt_checkpoint_are_passed_over_and_told(bruised):
    log = bruised.logs[3].read_text()
    assert "attempt-3/step-40 is damaged and is passed over: optimizer.pt has 1000 bytes" in log
    assert "attempt-3/step-30 is damaged and is passed over: optimizer.pt has another content" in log
    code, result = bruised.ends[3]
    assert (code, result["reason"], result["globalStep"]) == (75, "Interrupted", 47)


def test_a_long_step_is_no_hang_and_the_curve_is_that_of_a_run_without_faults(bruised, reference):
    code, result = bruised.ends[4]
    assert (code, result.get("resumedFromStep"), result.get("globalStep"), result.get("worldSize")) == (0, 47, STEPS, 2), result
    assert_same(bruised.curve(), reference)


@pytest.mark.parametrize("steps", [(5, 20, 35), pytest.param(range(5, 55, 5), marks=pytest.mark.long)], ids=["three times", "ten times"])
def test_suspended_and_resumed_several_times_it_loses_no_step(make_trial, reference, steps):
    trial = make_trial()
    resumed = 0
    for number, step in enumerate(steps):
        # A queue that holds an attempt's Job back and lets it go again starts it twice under one number.
        code, result = trial.run(1 + number // 2, {"do": "drain", "step": step, "rank": number % 2})
        assert (code, result["reason"], result["globalStep"], result["checkpoint"]["step"]) == (75, "Interrupted", step, step), result
        resumed = step
    code, result = trial.run(1 + len(steps) // 2)
    assert (code, result["resumedFromStep"], result["globalStep"]) == (0, resumed, STEPS), result
    assert_same(trial.curve(), reference)


def test_a_pod_that_is_stopped_while_it_evaluates_saves_at_once(make_trial):
    trial = make_trial(validation={"fraction": "0.1"})
    epoch = math.ceil(trial.prepared["trainRows"] / 2)
    assert epoch % EVERY and STEPS % epoch
    # After the first epoch; then after the last step, which is not the last of an epoch.
    for attempt, step in ((1, epoch), (2, STEPS)):
        code, result = trial.run(attempt, {"do": "drain", "in": "on_prediction_step", "step": step, "rank": 1})
        assert (code, result["reason"], result["globalStep"], result["checkpoint"]["step"]) == (75, "Interrupted", step, step), result
    code, result = trial.run(3)
    assert (code, result["resumedFromStep"], result["globalStep"]) == (0, STEPS, STEPS), result
    assert result["evalLoss"] > 0
    assert len(trial.curve()) == STEPS


def test_a_pod_that_was_cut_off_and_goes_on_writing_cannot_spoil_the_run(make_trial, reference, tmp_path):
    trial, (cut, held) = make_trial(), (tmp_path / "cut", tmp_path / "held")
    patient = {"processes": 1, "TUNESMITH_HUNG_SECONDS": "600"}
    (old,) = trial.start(1, {"do": "wait", "step": 25, "until": str(cut)}, **patient)
    wait_until(lambda: trial.complete() == ["attempt-1/step-10", "attempt-1/step-20"], "the first attempt's checkpoints", bench.PATIENCE)
    (new,) = trial.start(2, {"do": "wait", "step": 45, "until": str(held)}, **patient)
    wait_until(lambda: "attempt-2/step-40" in trial.complete(), "the second attempt's checkpoints", bench.PATIENCE)
    cut.touch()
    code, result = old.wait()
    assert (code, result["reason"]) == (75, "Superseded"), result
    assert not (trial.folder / "results" / "train.json").exists()
    held.touch()
    code, result = new.wait()
    assert (code, result["resumedFromStep"], result["globalStep"]) == (0, 20, STEPS), result
    assert trial.complete() == ["attempt-2/step-40", "attempt-2/step-50", "attempt-2/step-60"]
    assert trial.written() == result
    assert_same(trial.curve(), reference)
    # And one that comes late is turned away.
    (trial.folder / "results" / "train.json").unlink()
    code, late = trial.run(1, **patient)
    assert (code, late["reason"]) == (75, "Superseded"), late
    assert not (trial.folder / "results" / "train.json").exists()
    code, finalized = trial.store.run(bench.finalize_input(trial.input(2), result))
    assert (code, {artifact["name"] for artifact in finalized["artifacts"]}) == (0, {"Adapter", "Merged"})


def test_a_full_volume_ends_the_attempt_and_a_short_outage_does_not(make_trial, reference, tmp_path):
    trial, (full, away) = make_trial(), (tmp_path / "full", tmp_path / "away")
    patient = {"processes": 1, "TUNESMITH_HUNG_SECONDS": "600"}
    # It waits for the volume to be full: steps are quicker than the thread that publishes what was saved at one.
    fault = {"errno": errno.ENOSPC, "while": str(full), "do": "wait", "step": 15, "until": str(full)}
    (pod,) = trial.start(1, fault, TUNESMITH_STORE_PATIENCE_SECONDS="2", **patient)
    wait_until(lambda: trial.complete() == ["attempt-1/step-10"], "a checkpoint", bench.PATIENCE)
    full.touch()
    code, result = pod.wait()
    assert (code, result["reason"], result["exitCode"]) == (69, "StorageFull", 69), result
    assert result["step"] >= 20
    assert_bounded(result, resumed=10)
    assert [path.name for path in trial.folder.glob("checkpoints/attempt-1/*")] == ["step-10"]
    (pod,) = trial.start(2, {"do": "wait", "step": 25, "until": str(away)}, **patient)
    wait_until(lambda: "attempt-2/step-20" in trial.complete(), "the next checkpoint", bench.PATIENCE)
    gone = trial.folder.with_name("gone")
    trial.folder.rename(gone)
    away.touch()
    wait_until(lambda: "trying again" in pod.log.read_text(), "the outage to be seen", bench.PATIENCE)
    gone.rename(trial.folder)
    code, result = pod.wait()
    assert (code, result["resumedFromStep"], result["globalStep"]) == (0, 10, STEPS), result
    assert_same(trial.curve(), reference)


def test_a_node_whose_disk_is_full_of_a_checkpoint_can_tell_so(make_trial):
    trial = make_trial()
    code, result = trial.run(1, {"do": "fill", "step": 12}, processes=1)
    assert (code, result["reason"], result["step"]) == (69, "StorageFull", 11), result


@pytest.mark.parametrize("how", ["sleep", pytest.param("stop", marks=pytest.mark.long)])
def test_a_process_that_hangs_is_named_and_all_pods_of_its_attempt_end(make_trial, how):
    trial = make_trial()
    pods = trial.start(1, {"do": how, "rank": 1, "step": 12}, nodes=2, processes=1, TUNESMITH_HUNG_SECONDS=str(HUNG_SECONDS))
    (code, waiting), (hung_code, hung) = [pod.wait() for pod in pods]
    assert (hung_code, hung["reason"]) == (69, "Hung"), hung
    assert "rank 1 in pod" in hung["message"]
    # It told its step once a second, and may have begun within the last one.
    assert hung.get("step", 0) < 12
    assert (code, waiting["reason"]) == (69, "PeerUnavailable"), waiting


def test_processes_that_spin_for_what_never_comes_are_found_by_the_time_of_their_steps(make_trial):
    trial = make_trial()
    # The steps before took a fraction of a second each.
    code, result = trial.run(1, {"do": "spin", "rank": "all", "step": 12}, processes=2, TUNESMITH_STALLED_SECONDS="8", TUNESMITH_HUNG_SECONDS="600")
    assert (code, result["reason"]) == (69, "Hung"), result
    assert "makes no step: none for " in result["message"]
    assert "after step 11, where the last ones took" in result["message"]
    assert "in spin" not in result["message"].split("its stack")[1]
    assert result["step"] == 11
    # Everybody waits: the place proves nothing.
    assert "fingerprint" not in result
