"""A volume that fails, or memory that is out, is never told as a fault of what the user gave: libraries' errors are looked through."""

import errno
import json
import os
from types import SimpleNamespace

import pytest
from datasets.exceptions import DatasetGenerationError

from tests.trainer import bench
from tunesmith_contract.methods import Method
from tunesmith_contract.training import Training
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.failure import classify
from tunesmith_trainer.model import base, generation
from tunesmith_trainer.suites import harness, harness_tasks
from tunesmith_trainer.training import arguments, rehearsal

UNREADABLE = "/proc/self/mem"
"""Opens, and gives EIO when it is read from its start."""


def break_off(folder, name):
    """Have a read of that file fail as on a volume that is gone."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(UNREADABLE)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        (folder / name).read_bytes()


@pytest.fixture
def folder(tmp_path):
    """The files of a model that say what it is, with a tokenizer."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "generation_config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("tokenizer.json", base.load_tokenizer),
        ("tokenizer_config.json", base.load_tokenizer),
        ("config.json", base.inspect),
        ("generation_config.json", generation.check),
    ],
)
def test_a_file_of_the_model_that_the_volume_does_not_give_is_the_volumes_fault(folder, name, load):
    break_off(folder, name)
    try:
        load(folder)
    except Exception as error:
        failure = classify(error)
        assert (failure.reason, failure.exit_code) == ("StoreUnavailable", 69), failure.message
    else:
        pytest.fail("it was loaded")


def test_a_file_of_the_model_that_is_wrong_is_the_users_still(folder):
    (folder / "tokenizer.json").write_text("no JSON")
    with pytest.raises(StageError) as caught:
        base.load_tokenizer(folder)
    assert caught.value.reason == "InvalidModel"


def raiser(error):
    """What raises an error as libraries do: another one, about what they could not do, while the first is handled."""

    def call(*_arguments, **_named):
        try:
            raise error
        except BaseException:
            raise ValueError("this cannot be used")  # noqa: B904

    return call


ERRORS = [
    (OSError(errno.EIO, "Input/output error"), "StoreUnavailable"),
    (OSError(errno.ESTALE, "Stale file handle"), "StoreUnavailable"),
    (OSError(errno.ENOSPC, "No space left on device"), "StorageFull"),
    (MemoryError(), "OutOfMemory"),
    (Exception("Input/output error (os error 5)"), "StoreUnavailable"),
    (StageError("Interrupted", "stopped by SIGTERM"), "Interrupted"),
]


@pytest.mark.parametrize(("error", "reason"), ERRORS, ids=lambda value: repr(value)[:40])
def test_settings_and_tasks_are_not_blamed_for_it_either(monkeypatch, error, reason):
    from trl.trainer import sft_config

    monkeypatch.setattr(sft_config, "SFTConfig", raiser(error))
    with pytest.raises(StageError) as caught:
        arguments.check(
            Training.model_validate(bench.training()), Method.model_validate({"sft": {"packing": False, "assistantOnlyLoss": False}}), None
        )
    assert caught.value.reason == reason
    with pytest.raises(StageError) as caught:
        harness._loaded(SimpleNamespace(load=raiser(error)), ["mine"])
    assert caught.value.reason == reason
    with pytest.raises(StageError) as caught:
        rehearsal._holds(raiser(error))
    assert caught.value.reason == reason


def test_data_of_a_task_that_the_volume_does_not_give_are_the_volumes_fault():
    def load(names):
        raise DatasetGenerationError("An error occurred") from OSError(errno.EIO, "Input/output error")

    with pytest.raises(StageError) as caught:
        harness._loaded(SimpleNamespace(load=load), ["mine"])
    assert caught.value.reason == "StoreUnavailable"


def test_what_libraries_say_of_themselves_is_about_the_settings_still(monkeypatch):
    with pytest.raises(StageError) as caught:
        harness._loaded(SimpleNamespace(load=raiser(FileNotFoundError(errno.ENOENT, "No such file")), all_subtasks=()), ["mine"])
    assert caught.value.reason == "SourceNotFound"
    assert rehearsal._holds(raiser(KeyError("x"))) is False


def test_a_task_file_that_the_volume_does_not_give_is_the_volumes_fault(tmp_path, monkeypatch):
    path = tmp_path / "task.yaml"
    path.write_text("task: mine")
    monkeypatch.setattr(type(path), "read_text", raiser_of(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(StageError) as caught:
        harness_tasks._read(path, tmp_path)
    assert caught.value.reason == "StoreUnavailable"


def raiser_of(error):
    def call(*_arguments, **_named):
        raise error

    return call
