"""Libraries that take seconds to import are not imported where a stage does not use them, and are where it does."""

import importlib.util
import subprocess
import sys

import pytest

from tests.trainer import bench
from tunesmith_contract.stages import FinalizeInput, PrepareInput, TrainInput
from tunesmith_trainer import runner
from tunesmith_trainer.stage_input import unused

TRAINING = {"baseQuantization": "NF4"}, {"training": {**bench.run_block()["training"], "overrides": {"optim": "adamw_bnb_8bit"}}}


def inputs(**changes):
    prepared = {"runURI": "pvc://models/out/run", "model": {"uri": "pvc://models/base", "digest": "sha256:" + "0" * 64}}
    train = bench.train_input(prepared, 29500, **changes) | ({"baseQuantization": "NF4"} if "baseQuantization" in changes else {})
    return runner.parse(PrepareInput, bench.prepare_input(**changes)), runner.parse(TrainInput, train)


def test_what_training_does_not_use_is_left_out_of_prepare_train_and_finalize():
    checkpoint = {"checkpoint": {"uri": "pvc://models/out/run/checkpoints/attempt-1/step-4", "step": 4}}
    prepare, train = inputs()
    finalize = runner.parse(FinalizeInput, bench.finalize_input(train.model_dump(mode="json", by_alias=True), checkpoint))
    assert [unused(each) for each in (prepare, train, finalize)] == [{"bitsandbytes", "sklearn"}] * 3


@pytest.mark.parametrize("changes", TRAINING, ids=["a base in NF4", "an optimizer of the user's"])
def test_bitsandbytes_is_there_for(changes):
    assert [unused(each) for each in inputs(**changes)] == [{"sklearn"}] * 2


def test_what_is_left_out_seems_not_to_be_installed_and_what_is_imported_stays(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    runner.leave_out(["colorsys", "json"])
    try:
        assert importlib.util.find_spec("colorsys") is None
        with pytest.raises(ModuleNotFoundError):
            import colorsys  # noqa: F401
        assert sys.modules["json"] is not None
    finally:
        del sys.modules["colorsys"]


def test_without_them_training_imports_neither_them_nor_the_compiler():
    program = "import sys; from tunesmith_trainer import runner, stage_input; runner.leave_out(stage_input.UNUSED); "
    program += "import tunesmith_trainer.training.loop; "
    program += "print([name for name in ('bitsandbytes', 'sklearn', 'torch._inductor.compile_fx') if sys.modules.get(name)])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
