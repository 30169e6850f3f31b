"""Checkpoints on their way to the store: killed, full, away, and fenced off."""

import errno
import json
import os
import signal
import threading
from types import SimpleNamespace

import pytest

from dev.cluster.ports import free_port
from dev.cluster.processes import wait_until
from tunesmith_trainer import store
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.training import checkpoint, fence
from tunesmith_trainer.training.uploader import Place, Publisher, copy_file
from tunesmith_trainer.training.watchdog import Vitals

FILES = ("adapter_model.safetensors", "optimizer.pt", "sub/.metadata", "trainer_state.json")


@pytest.fixture(autouse=True)
def impatient(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_PVC_ROOT", str(tmp_path / "pvc"))
    monkeypatch.setenv("TUNESMITH_STORE_PATIENCE_SECONDS", "0")


def stage(attempt=1, uid="6f1c"):
    """What a fence reads of a stage."""
    return SimpleNamespace(attempt=attempt, object=SimpleNamespace(uid=uid))


class Writer:
    """One attempt that publishes checkpoints of a few small files."""

    def __init__(self, folder, attempt=1, keep=2):
        self.run, self.staging = folder / "pvc" / "models" / "run", folder / f"staging-{attempt}"
        self.claim = fence.claim(stage(attempt), self.run)
        self.publisher = Publisher(Place(self.run, attempt, keep), self.claim, self.staging)

    def stage(self, step):
        """Save on the node."""
        for name in FILES:
            path = self.staging / f"step-{step}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{name} of {step}".encode() * 1000)

    def save(self, step):
        """Save on the node and publish; returns once that is through."""
        self.stage(step)
        self.publisher.start(step)
        self.publisher.wait()

    def complete(self):
        return [f"{path.parent.name}/{path.name}" for path in checkpoint.complete(self.run)]


@pytest.fixture
def writer(tmp_path):
    return Writer(tmp_path)


def test_a_checkpoint_is_complete_with_every_file_and_leaves_nothing_on_the_node(writer):
    writer.save(10)
    folder = checkpoint.newest(writer.run)
    assert folder.name == "step-10"
    assert sorted(store.read_manifest(folder).files) == sorted(FILES)
    assert list(writer.staging.iterdir()) == []


@pytest.mark.parametrize("fsyncs", range(1, len(FILES) + 2))
def test_a_kill_at_any_moment_of_a_save_leaves_the_checkpoint_before(writer, monkeypatch, fsyncs):
    writer.save(10)
    child = os.fork()
    if not child:
        count = iter(range(1, 100))
        fsync = os.fsync
        # The last of them is the manifest's, under a name that no reader looks for.
        os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL) if next(count) == fsyncs else fsync(file)
        try:
            writer.save(20)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert (writer.run / "checkpoints/attempt-1/step-20").is_dir()
    assert checkpoint.newest(writer.run).name == "step-10"
    checkpoint.sweep(writer.run, attempt=1)
    assert not (writer.run / "checkpoints/attempt-1/step-20").exists()
    writer.save(20)
    assert checkpoint.newest(writer.run).name == "step-20"


def test_a_damaged_checkpoint_is_passed_over_told_and_not_kept_in_place_of_a_good_one(writer, capsys):
    for step in (10, 20):
        writer.save(step)
    (writer.run / "checkpoints/attempt-1/step-20/optimizer.pt").write_bytes(b"optimizer.pt")
    assert checkpoint.newest(writer.run).name == "step-10"
    assert "attempt-1/step-20 is damaged and is passed over: optimizer.pt has 12 bytes instead of" in capsys.readouterr().out
    checkpoint.prune(writer.run, keep=1, attempt=1)
    assert writer.complete() == ["attempt-1/step-10"]


def test_an_attempt_that_was_superseded_commits_nothing_more_and_deletes_nothing_of_its_successor(tmp_path):
    old = Writer(tmp_path, attempt=1, keep=1)
    old.save(50)
    new = Writer(tmp_path, attempt=2, keep=1)
    with pytest.raises(StageError, match="attempt 2 has taken this run over") as caught:
        old.save(60)
    assert (caught.value.reason, caught.value.exit_code) == ("Superseded", 75)
    assert old.publisher.failed
    new.save(55)
    # Even one that got past the fence just before: see fence.py.
    checkpoint.prune(old.run, keep=0, attempt=1)
    assert new.complete() == ["attempt-2/step-55"]


def test_a_start_that_is_cut_off_while_it_commits_does_not_delete_what_its_successor_loads(tmp_path, monkeypatch):
    old = Writer(tmp_path, attempt=1, keep=1)
    old.save(10)
    write, loaded = store.write_bytes, []

    def overtaken(path, content):
        if path.name == store.MANIFEST:
            Writer(tmp_path, attempt=2)
            loaded.append(checkpoint.newest(old.run))
        write(path, content)

    monkeypatch.setattr(store, "write_bytes", overtaken)
    with pytest.raises(StageError, match="attempt 2 has taken this run over"):
        old.save(20)
    assert [folder.name for folder in loaded] == ["step-10"]
    assert store.is_intact(loaded[0])


def test_an_attempt_that_starts_late_is_refused_and_one_made_anew_is_not(tmp_path):
    fence.claim(stage(3), tmp_path)
    with pytest.raises(StageError, match="attempt 3 has taken"):
        fence.claim(stage(2), tmp_path)
    again = fence.claim(stage(3), tmp_path)
    anew = fence.claim(stage(1, uid="another"), tmp_path)
    anew.check()
    with pytest.raises(StageError) as caught:
        again.check()
    assert caught.value.reason == "Superseded"


def test_the_same_attempt_started_again_fences_its_first_start_off(tmp_path):
    first, second = Writer(tmp_path), Writer(tmp_path)
    second.save(10)
    with pytest.raises(StageError, match="taken this run over"):
        first.save(20)
    assert second.complete() == ["attempt-1/step-10"]


def test_a_full_volume_leaves_no_half_checkpoint_and_the_one_before(writer, monkeypatch):
    writer.save(10)

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StageError) as caught:
            writer.save(20)
    assert (caught.value.reason, caught.value.exit_code) == ("StorageFull", 69)
    assert not (writer.run / "checkpoints/attempt-1/step-20").exists()
    assert checkpoint.newest(writer.run).name == "step-10"


def test_a_save_waits_for_the_one_before_so_that_two_intervals_are_the_most_to_lose(writer, monkeypatch):
    writer.save(10)
    begun, go_on, fsync = threading.Event(), threading.Event(), os.fsync

    def slow(file):
        begun.set()
        assert go_on.wait(60)
        fsync(file)

    monkeypatch.setattr(os, "fsync", slow)
    writer.stage(20)
    writer.publisher.start(20)
    assert begun.wait(60)
    writer.stage(30)
    saving = threading.Thread(target=writer.publisher.start, args=(30,))
    saving.start()
    # Training goes on until its next save, and no further.
    saving.join(0.2)
    assert saving.is_alive()
    assert writer.complete() == ["attempt-1/step-10"]
    go_on.set()
    saving.join()
    writer.publisher.wait()
    assert writer.complete() == ["attempt-1/step-30", "attempt-1/step-20"]


def test_a_full_disk_is_told_by_the_system_itself(tmp_path):
    (tmp_path / "source").write_bytes(b"x" * 100)
    with pytest.raises(OSError, match="No space left on device"):
        copy_file(tmp_path / "source", type(tmp_path)("/dev/full"))


def test_an_outage_is_sat_out_without_a_word_to_training(writer, monkeypatch):
    monkeypatch.setenv("TUNESMITH_STORE_PATIENCE_SECONDS", "60")
    writer.save(10)
    away = writer.run.with_name("away")
    writer.run.rename(away)
    pauses = []

    def come_back(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            away.rename(writer.run)

    monkeypatch.setattr(store.time, "sleep", come_back)
    writer.save(20)
    assert pauses == [1, 2, 5]
    assert checkpoint.newest(writer.run).name == "step-20"


@pytest.fixture
def first_process(writer, monkeypatch):
    """The environment of a run's first training process, and the store at which all of them meet."""
    from torch.distributed import TCPStore

    port = free_port()
    for name, value in {"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TUNESMITH_LAUNCH": writer.claim.launch}.items():
        monkeypatch.setenv(name, value)
    return TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)


@pytest.mark.usefixtures("first_process")
def test_training_does_not_begin_anew_because_the_volume_is_away_for_a_moment(writer, monkeypatch):
    from tunesmith_trainer.training.start import find_start

    monkeypatch.setenv("TUNESMITH_STORE_PATIENCE_SECONDS", "60")
    writer.save(10)
    away = writer.run.with_name("away")
    writer.run.rename(away)
    monkeypatch.setattr(store.time, "sleep", lambda _: away.rename(writer.run))
    folder, launch = find_start(Place(writer.run, 1, 2), Vitals())
    assert (folder, launch) == (writer.run / "checkpoints/attempt-1/step-10", writer.claim.launch)


@pytest.mark.usefixtures("first_process")
def test_training_does_not_begin_anew_where_the_volume_stays_away(writer):
    from tunesmith_trainer.training.start import find_start

    writer.save(10)
    writer.run.rename(writer.run.with_name("away"))
    with pytest.raises(StageError) as caught:
        find_start(Place(writer.run, 1, 2), Vitals())
    assert caught.value.reason == "StoreUnavailable"


def test_an_outage_that_lasts_ends_the_attempt_and_writes_nothing_where_the_volume_was(writer):
    writer.save(10)
    writer.run.rename(writer.run.with_name("away"))
    with pytest.raises(StageError) as caught:
        writer.save(20)
    assert (caught.value.reason, caught.value.exit_code) == ("StoreUnavailable", 69)
    assert not writer.run.exists()


def test_the_loss_curve_goes_on_where_training_does_and_over_a_write_cut_in_half(writer):
    from tunesmith_trainer.training.progress import MetricsFile

    path = writer.run / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    metrics = MetricsFile(path, writer.claim)
    state = SimpleNamespace(global_step=2, epoch=0.5, is_world_process_zero=True)
    metrics.on_train_begin(None, state, None)
    state.global_step = 3
    metrics.on_log(None, state, None, logs={"loss": 1.5})
    metrics.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[-1]["loss"] == 1.5
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b'{"half')
    metrics._write(b'{"step": 4}\n', size)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


def test_the_loss_curve_outlives_every_outage_that_training_outlives(writer, monkeypatch):
    from tunesmith_trainer.training import progress

    monkeypatch.setattr(progress, "OUTAGE_PAUSE_SECONDS", 0.01)
    given_up, persevere = threading.Semaphore(0), store.persevere

    def counted(act, what):
        try:
            return persevere(act, what)
        except StageError:
            given_up.release()
            raise

    monkeypatch.setattr(store, "persevere", counted)
    metrics = progress.MetricsFile(writer.run / "metrics.jsonl", writer.claim)
    away = writer.run.with_name("away")
    writer.run.rename(away)
    state = SimpleNamespace(global_step=0, epoch=0.5, is_world_process_zero=True)
    metrics.on_train_begin(None, state, None)
    state.global_step = 1
    metrics.on_log(None, state, None, logs={"loss": 1.5})
    # The store's patience is at its end, and again.
    assert all(given_up.acquire(timeout=10) for _ in range(2))
    away.rename(writer.run)
    metrics.close()
    assert [json.loads(line)["step"] for line in (writer.run / "metrics.jsonl").read_text().splitlines()] == [1]


def test_the_loss_curve_of_a_training_that_ends_in_an_outage_is_given_up(writer, capsys):
    from tunesmith_trainer.training.progress import MetricsFile

    metrics = MetricsFile(writer.run / "metrics.jsonl", writer.claim)
    writer.run.rename(writer.run.with_name("away"))
    metrics.on_train_begin(None, SimpleNamespace(global_step=0, epoch=0.0, is_world_process_zero=True), None)
    metrics.close()
    assert "not written any further" in capsys.readouterr().out


def test_a_superseded_attempt_writes_no_more_into_the_loss_curve(tmp_path, capsys):
    from tunesmith_trainer.training.progress import MetricsFile

    old = Writer(tmp_path, attempt=1)
    metrics = MetricsFile(old.run / "metrics.jsonl", old.claim)
    state = SimpleNamespace(global_step=0, epoch=0.0, is_world_process_zero=True)
    metrics.on_train_begin(None, state, None)
    wait_until((old.run / "metrics.jsonl").exists, "the loss curve to be begun", 30)
    Writer(tmp_path, attempt=2)
    metrics.on_log(None, state, None, logs={"loss": 1.5})
    metrics.close()
    assert (old.run / "metrics.jsonl").read_text() == ""
    assert "not written any further" in capsys.readouterr().out
