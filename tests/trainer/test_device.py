"""What a stage that asked for GPUs finds out before it begins, and that none of them ever computes on the CPU instead."""

import os
import signal
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from dev.cluster.ports import free_port
from tests.trainer import bench
from tests.trainer.models import evaluate_input, quantize_input
from tunesmith_contract.stages import EvaluateInput, TrainInput
from tunesmith_trainer import device, runner
from tunesmith_trainer.device import Facts, Gpu, Wanted, problem
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.stage_input import needs_bf16, processes_per_pod
from tunesmith_trainer.training import group

H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0))
T4 = Gpu("Tesla T4", (7, 5))
GOOD = Facts("2.13.0+cu130", "13.0", "580.65.06", 13000, gpus=(H100,) * 8)
NO_DRIVER = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"
TOO_OLD = "The NVIDIA driver on your system is too old (found version 12080)."
BUSY = "CUDA-capable device(s) is/are busy or unavailable"


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        (GOOD, Wanted(8, 8, bf16=True)),
        (GOOD, Wanted(8, 1)),
        # Contract version 1 does not say how many.
        (GOOD, Wanted(None, 8)),
        (replace(GOOD, gpus=(T4,)), Wanted(1)),
        # A driver with NVIDIA's package for forward compatibility: what works is not too old.
        (replace(GOOD, driver="550.54.15", driver_cuda=12040), Wanted(8)),
        # No NVML to ask, and CUDA works all the same.
        (replace(GOOD, driver="", driver_cuda=0), Wanted(8)),
    ],
)
def test_gpus_that_are_as_asked_for_are_taken(facts, wanted):
    assert problem(facts, wanted) == ""


@pytest.mark.parametrize(
    ("facts", "wanted", "told"),
    [
        (replace(GOOD, gpus=(), error=NO_DRIVER, driver="", driver_cuda=0), Wanted(1), "none can be used: Found no NVIDIA driver"),
        (replace(GOOD, gpus=(), error=NO_DRIVER, driver="580.65.06", driver_cuda=0), Wanted(1), "is nvidia its runtime class"),
        (
            replace(GOOD, gpus=(), error=TOO_OLD, driver="570.86.15", driver_cuda=12080),
            Wanted(1),
            "needs driver 580.65.06 or newer: The NVIDIA driver",
        ),
        (replace(GOOD, gpus=(), error=BUSY), Wanted(1), BUSY),
        (replace(GOOD, gpus=()), Wanted(1), "no GPU is visible"),
        (Facts("2.13.0+cpu", "", gpus=()), Wanted(1), "has no CUDA and computes on CPUs alone"),
        (replace(GOOD, gpus=(H100,) * 7), Wanted(8), "8 GPUs were asked for, 7 can be used (7 x NVIDIA H100 80GB HBM3)"),
        (GOOD, Wanted(1), "the container sees GPUs of other pods"),
        (replace(GOOD, gpus=(H100,)), Wanted(None, 2), "2 GPUs were asked for, 1 can be used"),
        (replace(GOOD, gpus=(H100, T4)), Wanted(2, bf16=True), "GPU 1 (Tesla T4) has compute capability 7.5, and precision BF16 needs 8.0"),
        (
            replace(GOOD, gpus=(H100, replace(H100, wrong="a product in float32 is wrong"))),
            Wanted(2),
            "GPU 1 (NVIDIA H100 80GB HBM3, compute capability 9.0)",
        ),
    ],
)
def test_what_is_wrong_with_gpus_is_told_with_what_to_do(facts, wanted, told):
    assert told in problem(facts, wanted)


def test_the_least_driver_is_that_of_torchs_own_cuda():
    assert device.needed_driver(torch.version.cuda) == "580.65.06"
    assert device.is_too_old(Facts("2.13.0", torch.version.cuda, "570.86.15"))
    assert not device.is_too_old(Facts("2.13.0", torch.version.cuda, "580.65.06"))
    assert not device.is_too_old(Facts("2.13.0", torch.version.cuda, "610.43.2"))


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("import time; time.sleep(600)", "did not end within 1 s"),
        ("import os; os.kill(os.getpid(), 11)", "ended by SIGSEGV"),
        ("raise SystemExit(3)", "ended by exit code 3"),
        ("print('all is well')", "ended by exit code 0"),
    ],
)
def test_a_check_that_crashes_hangs_or_says_nothing_is_no_usable_gpu(program, told):
    facts = device.look(1 if "sleep" in program else 60, [sys.executable, "-c", program])
    assert told in problem(facts, Wanted(1))


def test_facts_come_back_from_the_child_process_as_they_were_found():
    told = "print(device.MARK + json.dumps(dataclasses.asdict(facts)))"
    imports = "import dataclasses, json; from tunesmith_trainer import device; from tunesmith_trainer.device import Facts, Gpu"
    assert device.look(60, [sys.executable, "-c", f"{imports}; print('noise'); facts = {GOOD!r}; {told}"]) == GOOD


def test_products_of_small_whole_numbers_are_exact_and_a_wrong_one_is_seen(monkeypatch):
    cpu = torch.device("cpu")
    assert device.product(cpu, bf16=True) == ""
    right = torch.Tensor.__matmul__

    def off_by_one(left, other):
        found = right(left, other)
        found[200, 17] += left.dtype == torch.bfloat16
        return found

    monkeypatch.setattr(torch.Tensor, "__matmul__", off_by_one)
    assert device.product(cpu, bf16=False) == ""
    assert device.product(cpu, bf16=True) == "a product in bfloat16 is wrong"


def on_gpus(value, gpus=1):
    return value | {"device": "GPU", "gpus": gpus}


@pytest.fixture
def visible(monkeypatch):
    """This process's view of GPUs, put back afterwards."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("TUNESMITH_NODE", "gpu-7")


@pytest.mark.usefixtures("visible")
@pytest.mark.parametrize("what", ["Train", "Quantize", "Evaluate"])
def test_a_stage_that_asked_for_gpus_ends_within_seconds_where_there_is_none(store, what):
    # In 32 bits: transformers itself refuses bf16 without a GPU.
    blocks = {"training": bench.training(precision="FP32")}
    prepared = {"runURI": "pvc://models/out/run", "model": {"uri": "pvc://models/base", "digest": "sha256:" + "0" * 64}}
    inputs = {
        "Train": bench.train_input(prepared, free_port(), **blocks),
        "Quantize": quantize_input("w8a8", {"scheme": "W8A8", "algorithm": "GPTQ", "numCalibrationSamples": 8}),
        "Evaluate": evaluate_input("pvc://models/base"),
    }
    began = time.monotonic()
    code, result = store.run(on_gpus(inputs[what]))
    assert (code, result["reason"], result["stage"]) == (69, "DeviceUnavailable", what), result
    assert result["message"].startswith("node gpu-7 (no NVIDIA driver): GPUs were asked for and none can be used: Found no NVIDIA driver")
    assert "fingerprint" not in result
    assert time.monotonic() - began < 60


@pytest.mark.usefixtures("visible")
def test_a_stage_on_cpus_sees_no_gpu_and_neither_do_its_children(store):
    store.run(bench.prepare_input())
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_more_processes_than_gpus_are_a_wrong_setting_and_no_matter_of_the_node():
    value = on_gpus(
        bench.train_input({"runURI": "pvc://models/run", "model": {"uri": "pvc://models/base", "digest": "sha256:" + "0" * 64}}, 1, processes=3), 2
    )
    with pytest.raises(StageError, match="3 processes of a pod cannot share 2 GPUs") as caught:
        runner.require_devices(TrainInput.model_validate(value))
    assert (caught.value.reason, caught.value.exit_code) == ("InvalidSettings", 64)


def test_what_a_stage_asks_of_its_gpus_is_read_of_its_input():
    value = bench.train_input({"runURI": "pvc://models/run", "model": {"uri": "pvc://models/base", "digest": "sha256:" + "0" * 64}}, 1, processes=4)
    train = TrainInput.model_validate(on_gpus(value, 4))
    assert (train.gpus, processes_per_pod(train), needs_bf16(train)) == (4, 4, True)
    evaluate = EvaluateInput.model_validate(evaluate_input("pvc://models/base", precision="FP32"))
    assert (evaluate.gpus, processes_per_pod(evaluate), needs_bf16(evaluate)) == (None, 1, False)


def test_a_training_process_that_accelerate_would_put_on_the_cpu_is_refused_before_a_weight_is_loaded(tmp_path):
    from trl.trainer.sft_config import SFTConfig

    asked = SimpleNamespace(device="GPU", rendezvous=SimpleNamespace(nodes=1, processes_per_node=1))
    with pytest.raises(StageError, match="this training process sees no GPU") as caught:
        group.require_visible(asked)
    assert caught.value.reason == "DeviceUnavailable"
    # As the stage makes it, without CUDA: accelerate and transformers say nothing of it.
    settings = SFTConfig(output_dir=str(tmp_path), use_cpu=False, bf16=False, report_to="none")
    with pytest.raises(StageError, match="training would compute on cpu, and cuda was asked for") as caught:
        group.check(asked, settings)
    assert caught.value.reason == "DeviceUnavailable"
    asked.device, asked.rendezvous.processes_per_node = "CPU", 2
    with pytest.raises(StageError, match="training has 1 processes that know one another, and 2 were asked for"):
        group.check(asked, settings)
    asked.rendezvous.processes_per_node = 1
    group.check(asked, settings)


def test_sigterm_ends_the_check_of_the_devices(store, monkeypatch):
    monkeypatch.setattr(device, "look", lambda: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(60))
    code, result = store.run(on_gpus(bench.prepare_input()))
    assert (code, result["reason"]) == (75, "Interrupted")
