"""What waits for others is no hang, whatever it takes them: real processes, with a limit of three seconds instead of fifteen minutes."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import distributed

from dev.cluster.ports import free_port
from tests.trainer.bench import ROOT
from tests.trainer.test_vitals import await_beat, watch
from tunesmith_trainer import device
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.training import watchdog
from tunesmith_trainer.training.group import Meeting, check_placed, mismatch
from tunesmith_trainer.training.watchdog import STALLED_SECONDS, Patient, Vitals, Ward, stalled_seconds

PROGRAM = """
import os, sys, threading, time
from pathlib import Path
from types import SimpleNamespace
from torch import distributed
from tunesmith_trainer.training.watchdog import Vitals
own = Vitals()
report, what, run = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
rank = int(os.environ["RANK"])

def find_start():
    from tunesmith_trainer.training import start
    from tunesmith_trainer.training.uploader import Place
    own.start(report)
    start.find_start(Place(run, 1, 2), own)

def upload():
    from tunesmith_trainer import store
    from tunesmith_trainer.training.fence import Fence
    from tunesmith_trainer.training.uploader import Place, Publisher
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    publisher = Publisher(Place(run, 1, 2), Fence(run, "x"), run / f"staging-{rank}", own)
    own.phase = "saving"
    own.start(report)
    if rank == 0 and sys.argv[4] == "others":
        time.sleep(600)  # the leader, whose part takes long: it has not come to the meeting yet
    publisher._copy = lambda *_: {} if sys.argv[4] == "others" else time.sleep(600)
    publisher.start(10)
    publisher.wait()

def tokenize():
    from tunesmith_trainer.training.group import Meeting
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    meeting = Meeting(own)
    own.start(report)
    with meeting.first_on_node("the node's first process, which tokenizes"):
        time.sleep(600 if rank == 0 else 0)

{"find_start": find_start, "upload": upload, "tokenize": tokenize}[what]()
"""


@pytest.fixture
def ward(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_PATIENT_SECONDS", "3")
    monkeypatch.setattr(watchdog, "BEAT_SECONDS", 0.2)
    return Ward(tmp_path, first_rank=1, processes=1)


@pytest.fixture
def run(tmp_path):
    """Start the first process and one that waits for it; the second is the one that the ward looks at."""
    started = []

    def begin(what, detail=""):
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1" if what == "upload" else "2"}
        place |= {"PYTHONPATH": f"{ROOT}/trainer-image:{ROOT}/contract", "TORCHELASTIC_USE_AGENT_STORE": "False"}
        for rank in range(2):
            ranks = {"RANK": str(rank), "LOCAL_RANK": "0" if what == "upload" else str(rank)}
            report = watchdog.path_for(tmp_path, 0) if rank else tmp_path / "first.json"
            if what == "find_start" and rank == 0:
                started.append(distributed.TCPStore("127.0.0.1", int(place["MASTER_PORT"]), is_master=True, wait_for_workers=False))
                continue
            command = [sys.executable, "-c", PROGRAM, str(report), what, str(tmp_path / "run"), detail]
            started.append(subprocess.Popen(command, env=os.environ | place | ranks))

    yield begin
    for process in started:
        if isinstance(process, subprocess.Popen):
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("what", "detail", "told"),
    [
        ("find_start", "", "the first process, which reads the newest checkpoint"),
        ("upload", "others", "the other nodes' parts of a checkpoint"),
        ("tokenize", "", "the node's first process, which tokenizes"),
    ],
)
def test_one_that_waits_for_another_is_not_hung_and_says_what_it_waits_for(ward, run, what, detail, told):
    run(what, detail)
    await_beat(ward)
    assert watch(ward, 6) is None
    assert ward.patients[0].told["waitsFor"] == told
    assert ward.patients[0].idle_seconds > 3


def test_one_whose_own_store_stands_still_is_hung(ward, run):
    run("upload", "own")
    await_beat(ward)
    found = watch(ward, 60)
    assert found.reason == "Hung"
    assert "uploader.py" in found.message
    assert "fingerprint" not in found.details


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_steps_time_is_without_what_is_no_step():
    clock = Clock()
    own = Vitals(clock)
    clock.now = 1000
    own.begin(40)
    assert own.step_seconds is None
    for step, seconds in enumerate((300.0, 2.0, 4.0), 41):
        clock.now += seconds
        own.step = step
    # The first compiles: the median is no worse for it.
    assert own.step_seconds == 4.0
    for phase in ("saving", "evaluating"):
        own.phase = phase
        clock.now += 5000
        own.phase = "training"
    with own.waiting(lambda: "others"):
        clock.now += 5000
    clock.now += 3
    own.step = 44
    assert own.step_seconds == 3.5
    for step in range(45, 100):
        clock.now += 1
        own.step = step
    assert own.step_seconds == 1.0


@pytest.mark.parametrize(
    ("step_seconds", "limit"), [(None, float("inf")), (0.2, STALLED_SECONDS), (60.0, STALLED_SECONDS), (61.0, 610.0), (400.0, 4000.0)]
)
def test_how_long_no_step_may_come_follows_the_last_steps_and_has_a_floor(step_seconds, limit):
    assert stalled_seconds(step_seconds) == limit


def told(**changes):
    return {
        "pid": os.getpid(),
        "beat": 1,
        "step": 7,
        "phase": "training",
        "place": {},
        "stack": ["a.py:1 f"],
        "waitsFor": "",
        "stepSeconds": 2.0,
    } | changes


def listen(patient, seconds, **changes):
    """Have a process that is busy be heard once a second."""
    for _ in range(seconds):
        beat = patient.told.get("beat", 0) + 1
        patient.hear(told(beat=beat, **changes), patient.cpu_seconds + 1, 0, 1.0)


@pytest.mark.parametrize(
    ("changes", "stalled"),
    [
        ({}, True),
        ({"phase": "saving"}, False),
        ({"phase": "evaluating"}, False),
        ({"phase": "starting"}, False),
        ({"phase": "ending"}, False),
        ({"waitsFor": "the others, which save"}, False),
        ({"stepSeconds": None}, False),
        ({"stepSeconds": 100.0}, False),
    ],
)
def test_a_busy_process_without_a_step_is_stalled_in_training_alone(changes, stalled):
    patient = Patient()
    listen(patient, 620, **changes)
    assert (patient.is_stalled, patient.is_hung) == (stalled, False)


def test_a_step_a_phase_and_a_wait_begin_the_time_without_a_step_again():
    patient = Patient()
    listen(patient, 590)
    listen(patient, 590, step=8)
    assert not patient.is_stalled
    listen(patient, 5, phase="saving", step=8)
    listen(patient, 590, step=8)
    assert not patient.is_stalled
    listen(patient, 3, waitsFor="the others", step=8)
    listen(patient, 590, step=8)
    assert not patient.is_stalled
    listen(patient, 20, step=8)
    assert patient.is_stalled


def test_one_that_has_waited_long_and_goes_on_is_not_hung_for_what_it_waited():
    patient, waits = Patient(), ["/lib/torch/distributed/distributed_c10d.py:1 all_reduce", "stopping.py:1 _agree"]
    for second in range(1, 300):
        patient.hear(told(beat=second, stack=waits), 0.0, 0, 1.0)
    assert patient.idle_seconds > 250
    # The step goes on, and has used hardly any CPU yet.
    for second in range(300, 310):
        patient.hear(told(beat=second, stack=["/lib/torch/nn/modules/linear.py:1 forward"]), 0.1, 0, 1.0)
    assert not patient.is_hung
    for second in range(310, 360):
        patient.hear(told(beat=second, stack=["deadlock.py:1 acquire"]), 0.1, 0, 1.0)
    assert patient.is_hung


def test_what_a_mapped_file_brings_moves_data_on_a_store_that_the_kernel_does_not_count(tmp_path):
    """Weights are read from a mapped file. What a store in user space has read for it stands in no counter but that of the faults."""
    import mmap

    import psutil

    path = tmp_path / "weights"
    path.write_bytes(b"1" * (64 << 20))  # in memory from here on, so nothing is read of any disk
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        before = watchdog._moved(psutil.Process())
        assert all(mapped[place] == 49 for place in range(0, len(mapped), mmap.PAGESIZE))
        assert watchdog._moved(psutil.Process()) - before > 1 << 20


def test_one_whose_children_end_is_as_busy_as_it_is_itself():
    """What its children have used and moved goes with them: torch.compile's workers end a minute after they are needed."""
    patient = Patient()
    patient.hear(told(phase="evaluating"), 2000.0, 1 << 40, 1.0)
    for second in range(1, 200):
        patient.hear(told(phase="evaluating", beat=second), 30.0 + second, 1 << 20, 1.0)
        assert not patient.is_hung, second
    for second in range(200, 260):
        patient.hear(told(phase="evaluating", beat=second), 230.0, 1 << 20, 1.0)
    assert patient.is_hung


def test_one_that_moves_data_is_not_idle_however_little_cpu_that_takes():
    slow, still = Patient(), Patient()
    for second in range(1, 2000):
        slow.hear(told(phase="saving", beat=second), 0.001 * second, (1 << 20) * second, 1.0)
        still.hear(told(phase="saving", beat=second), 0.001 * second, 4096 * second, 1.0)
    assert (slow.is_hung, still.is_hung) == (False, True)


@pytest.mark.parametrize(
    ("asked", "found", "told"),
    [
        ((4, "cuda"), (4, "cuda"), ""),
        ((1, "cpu"), (1, "cpu"), ""),
        # What accelerate makes of many processes where it finds no GPU.
        ((4, "cuda"), (1, "cpu"), "training would compute on cpu, and cuda was asked for"),
        ((4, "cuda"), (1, "cuda"), "training has 1 processes that know one another, and 4 were asked for"),
        ((2, "cpu"), (1, "cpu"), "and 2 were asked for"),
        ((1, "cpu"), (1, "cuda"), "training would compute on cuda, and cpu was asked for"),
    ],
)
def test_a_group_that_is_not_what_was_asked_for_is_refused(asked, found, told):
    wrong = mismatch(asked[0], found[0], asked[1], found[1])
    assert wrong.startswith(told) or told in wrong
    assert bool(wrong) == bool(told)


def test_a_model_that_lies_elsewhere_is_refused(monkeypatch):
    monkeypatch.setenv("TUNESMITH_NODE", "gpu-7")
    monkeypatch.setattr(device, "driver", lambda: ("580.65.06", 13000))
    weights = [torch.zeros(1), torch.zeros(1, device="meta")]
    check_placed(SimpleNamespace(device="CPU"), weights[:1])
    with pytest.raises(StageError, match=r"node gpu-7 \(driver 580.65.06\): weights of the model do not lie on cuda: 1 on cpu, 1 on meta") as caught:
        check_placed(SimpleNamespace(device="GPU"), weights)
    assert caught.value.reason == "DeviceUnavailable"


def test_a_process_alone_meets_nobody_and_waits_for_none():
    own = Vitals()
    meeting = Meeting(own)
    meeting.wait("nobody")
    with meeting.first_on_node("nobody"):
        assert own.waits_for == ""
    assert meeting.devices() is None
