import json

import pytest

from tests.serving.conftest import GOLDEN, golden_stage
from tunesmith_contract.results import Failure
from tunesmith_contract.stages import ServeInput
from tunesmith_serving import result
from tunesmith_serving.errors import ServeError


def test_the_golden_stage_file_is_read_and_written_unchanged():
    stage = ServeInput.model_validate(golden_stage())

    assert stage.model_dump(mode="json", by_alias=True, exclude_none=True) == golden_stage()


def test_the_golden_result_is_read_and_written_unchanged():
    golden = json.loads((GOLDEN / "serve.result.json").read_text())

    assert Failure.model_validate(golden).dump() == golden


@pytest.mark.parametrize("character", ["x", "ö", '"', "\n", "\U0001f600"])
def test_a_termination_message_is_whole_json_of_at_most_2048_bytes(character):
    failure = result.failure(ServeError("DigestMismatch", character * 5000), "2026-11-22T10:00:00Z")

    content = result.encode(failure)

    assert len(content) <= 2048
    assert json.loads(content)["reason"] == "DigestMismatch"


def test_a_termination_log_that_cannot_be_written_is_told_in_the_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TUNESMITH_TERMINATION_LOG", str(tmp_path / "missing" / "log"))

    result.write_termination(result.failure(ServeError("InvalidSettings", "no"), "2026-11-22T10:00:00Z"))

    assert "cannot write" in capsys.readouterr().err
