import json
import shutil

import pytest

from tests.trainer.models import VARIANTS, quantize_input
from tunesmith_trainer import effect, quantize, store
from tunesmith_trainer.errors import StageError

LINEARS = 14
"""Of the tiny model's two layers, without the head."""


def run(value):
    return quantize.run(quantize.INPUT.model_validate(value))


@pytest.mark.parametrize(("name", "least", "most"), [("w8a8", 8.0, 8.5), ("w4a16", 4.0, 5.0)])
def test_a_variant_is_quantized_on_disk_and_complete(in_zoo, name, least, most):
    answer = in_zoo.variants[name]
    folder = in_zoo.root / "models" / "run" / "variants" / name
    assert answer.effect.quantized_modules == LINEARS
    assert least <= answer.effect.bits_per_weight <= most
    assert store.is_intact(folder)
    assert answer.artifacts[0].digest == store.read_manifest(folder).digest
    assert {"tokenizer.json", "config.json", "generation_config.json", "model.safetensors"} <= set(store.read_manifest(folder).files)
    assert "SmoothQuant" in (folder / "README.md").read_text() or name == "w4a16"
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] == "compressed-tensors"


def test_no_file_of_a_variant_names_python_objects(in_zoo):
    files = [path for name in VARIANTS for path in (in_zoo.root / "models" / "run" / "variants" / name).rglob("*") if path.is_file()]
    assert not [path for path in files if b"!!python" in path.read_bytes()]


def test_the_effect_is_read_from_the_weights_and_not_from_what_the_config_claims(in_zoo, tmp_path):
    claims = json.loads((in_zoo.root / "models" / "run" / "variants" / "w8a8" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(claims))
    (tmp_path / "model.safetensors").symlink_to(in_zoo.root / "models" / "base" / "model.safetensors")
    assert effect.measure(tmp_path).quantized_modules == 0


def test_a_quantization_that_changed_nothing_is_an_error(in_zoo, monkeypatch):
    def do_nothing(_, source, target):
        shutil.copytree(source, target)
        return 8

    monkeypatch.setattr(quantize, "calibrate_and_save", do_nothing)
    with pytest.raises(StageError) as caught:
        run(quantize_input("none", VARIANTS["w8a8"]))
    assert caught.value.reason == "NoEffect"
    assert store.read_manifest(in_zoo.root / "models" / "run" / "variants" / "none") is None


def test_the_calibration_rows_are_the_same_each_time_and_no_more_than_there_are(in_zoo):
    path = in_zoo.root / "models" / "run" / "data" / "train.jsonl"
    assert quantize.calibration_rows(path, 5) == quantize.calibration_rows(path, 5)
    assert len(quantize.calibration_rows(path, 1000)) == 24


def test_calibration_rows_are_joined_to_full_sequences_and_none_is_lost_or_cut():
    rows = [[number] * length for number, length in enumerate((3, 4, 2, 10, 1, 9))]
    assert list(quantize.packed(rows, 10)) == [rows[0] + rows[1] + rows[2], rows[3], rows[4] + rows[5]]
    assert list(quantize.packed([], 10)) == []


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"scheme": "W4A16", "algorithm": "GPTQ"}, "GroupSizeMismatch"),
        ({"scheme": "W4A16", "algorithm": "GPTQ", "groupSize": 48}, "GroupSizeMismatch"),
        ({"scheme": "W4A16", "algorithm": "SmoothQuantGPTQ", "groupSize": 32}, "InvalidSettings"),
        ({"scheme": "W8A8", "algorithm": "GPTQ", "groupSize": 32}, "InvalidSettings"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_loaded(in_zoo, settings, reason):
    with pytest.raises(StageError) as caught:
        run(quantize_input("odd", {"numCalibrationSamples": 8} | settings))
    assert caught.value.reason == reason


def test_a_model_that_is_not_the_one_asked_for_is_refused(in_zoo):
    value = quantize_input("w8a8", VARIANTS["w8a8"])
    value["model"]["digest"] = "sha256:" + "0" * 64
    with pytest.raises(StageError) as caught:
        run(value)
    assert caught.value.reason == "DigestMismatch"


def test_calibration_on_another_kind_of_device_is_refused():
    quantize.require_device("CPU", "cpu")
    quantize.require_device("GPU", "cuda")
    for asked, kind in (("GPU", "cpu"), ("CPU", "cuda"), ("GPU", "mps")):
        with pytest.raises(StageError, match=f"would calibrate on {kind}") as caught:
            quantize.require_device(asked, kind)
        assert caught.value.reason == "DeviceUnavailable"
