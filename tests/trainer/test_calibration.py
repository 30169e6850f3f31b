"""What variants are calibrated on."""

import json

import pytest

from dev.rows import write_rows
from tests.trainer.bench import prepare_input
from tunesmith_contract.quantization import Variant
from tunesmith_trainer.data import dataset
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.model.base import load_tokenizer
from tunesmith_trainer.quantization import calibration

GPTQ = {"scheme": "W8A8", "algorithm": "GPTQ"}
SAMPLES = GPTQ | {"numCalibrationSamples": 5}


def variant(**quantization):
    return Variant.model_validate({"name": "small", "quantization": GPTQ | quantization})


def tokens(count):
    return {"calibration": {"maxTokens": count}}


@pytest.fixture(scope="module")
def rows():
    return [dataset.Placed({"text": "red green blue " * (1 + number % 5)}, f"row {number}") for number in range(40)]


def test_rows_are_drawn_the_same_each_time_up_to_a_number_of_rows_or_of_tokens_and_cut_at_the_length_of_training(tiny_model, rows):
    tokenizer = load_tokenizer(tiny_model)

    def drawn(**quantization):
        return calibration.tokens(rows, variant(**quantization).quantization, tokenizer, 8)

    assert drawn(numCalibrationSamples=5) == drawn(numCalibrationSamples=5)
    assert len(drawn(numCalibrationSamples=5)) == 5
    assert len(drawn(numCalibrationSamples=1000)) == 40
    assert sum(map(len, drawn(**tokens(50)))) == 50
    assert drawn(**tokens(50)) == drawn(**tokens(50))
    everything = drawn(**tokens(100_000))
    assert (len(everything), max(map(len, everything))) == (40, 8)
    assert sorted(everything) == sorted(drawn(numCalibrationSamples=40))


@pytest.mark.parametrize(
    ("settings", "count", "reason", "message"),
    [
        (tokens(99), 99, "InvalidSettings", "raise calibration.maxTokens to 1600, or 100 at least"),
        (tokens(1000), 99, "InvalidDataset", "on 99 tokens, fewer than the widest layer that is quantized has inputs (100)"),
    ],
)
def test_fewer_tokens_than_a_layer_has_inputs_are_refused(settings, count, reason, message):
    with pytest.raises(StageError) as caught:
        calibration.check(variant(**settings), count, 100)
    assert caught.value.reason == reason
    assert message in caught.value.message


def test_few_tokens_are_warned_of_and_a_number_of_rows_is_only_warned_of():
    assert "on 1599 tokens, fewer than 16 times the 100 inputs" in calibration.check(variant(**tokens(5000)), 1599, 100)
    assert calibration.check(variant(**tokens(5000)), 1600, 100) is None
    assert "on 9 tokens" in calibration.check(variant(numCalibrationSamples=1), 9, 100)


def test_a_variant_may_be_calibrated_on_rows_of_its_own_whose_content_counts_and_not_their_place(store):
    def prepared(name, text):
        write_rows(store.root / "data" / name, [{"text": f"{text} {number}"} for number in range(30)])
        own = {"dataset": {"uri": f"pvc://data/{name}", "format": "Text"}, "maxTokens": 5000}
        code, result = store.run(prepare_input(variants=[{"name": "small", "quantization": GPTQ | {"calibration": own}}]))
        assert code == 0, result
        return result

    first, moved, other = prepared("a.jsonl", "cat"), prepared("b.jsonl", "cat"), prepared("b.jsonl", "dog")
    assert first["runDigest"] == moved["runDigest"] != other["runDigest"]
    path = calibration.path(
        store.path(first["runURI"]), variant(calibration={"maxTokens": 1, "dataset": {"uri": "pvc://data/a.jsonl", "format": "Text"}})
    )
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()][:2] == ["cat 0", "cat 1"]
    assert any("variant 'small': it is calibrated on" in warning for warning in first["warnings"])


def test_the_digest_of_a_run_whose_variant_has_a_number_of_rows_is_taken_over_what_it_was_before():
    assert Variant.model_validate({"name": "small", "quantization": SAMPLES}).dump() == {"name": "small", "quantization": SAMPLES}
