"""What is served is the whole model that its config.json describes: vLLM fills what is missing with random numbers, and says nothing."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.conftest import MODEL_URI, ROOT, write_manifest
from tunesmith_serving import whole
from tunesmith_serving.errors import ServeError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4096\n"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama") / "model"
    # In a process of its own: torch stays out of this one.
    subprocess.run([sys.executable, str(Path(__file__).with_name("tiny_llama.py")), str(folder)], check=True, capture_output=True)
    return folder


def read_header(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def without(folder, name):
    """Take a tensor out of a model's header, and leave its bytes to the one before it."""
    path = folder / "model.safetensors"
    header, data = read_header(path)
    start, end = header.pop(name)["data_offsets"]
    for entry in header.values():
        if "data_offsets" in entry and entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [offset - (end - start) for offset in entry["data_offsets"]]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[:start] + data[end:])


def config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_weights_broken_are_not_served(tmp_path, llama):
    without(headless := shutil.copytree(llama, tmp_path / "headless"), "lm_head.weight")
    with pytest.raises(ServeError) as refused:
        whole.check(headless, MODEL_URI)
    assert (refused.value.reason, refused.value.exit_code) == ("InvalidModel", 65)
    assert refused.value.message.startswith(
        f"{MODEL_URI}: it lacks 1 of its 21 tensors (lm_head.weight), which loading would fill with random numbers"
    )


def test_a_model_is_compared_with_its_config_and_its_tokenizer_as_far_as_transformers_knows_it(tmp_path, llama):
    folders = {name: shutil.copytree(llama, tmp_path / name) for name in ("narrow", "wordy", "unknown")}
    config(folders["narrow"], vocab_size=400)
    config(folders["unknown"], model_type="nonsense")
    tokenizer = json.loads((llama / "tokenizer.json").read_text())
    beyond = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": beyond, "content": "<new>"})
    (folders["wordy"] / "tokenizer.json").write_text(json.dumps(tokenizer))
    # One process for all: most of what it does is to import transformers.
    code = "import sys; from pathlib import Path; from tunesmith_serving import whole; print([whole.main(Path(name)) for name in sys.argv[1:]])"
    command = [sys.executable, "-c", code, llama, *folders.values()]
    said = subprocess.check_output(command, text=True, env=os.environ | {"PYTHONPATH": f"{ROOT}/serving-image:{ROOT}/contract"}).splitlines()
    assert said[-1] == str([0, whole.UNFIT, whole.UNFIT, whole.UNKNOWN])
    assert f"lm_head.weight is {beyond} x 64 in the files and 400 x 64 by config.json" in said[-4]
    assert said[-3].startswith(f"the model has embeddings for {beyond} tokens, and the tokenizer more ('<new>' is {beyond})")
    assert said[-2].startswith("ValueError: The checkpoint you are trying to load has model type `nonsense`")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(POINTER), "model.safetensors is a Git LFS pointer"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"weights"), "model.safetensors is no whole safetensors file"),
        (lambda folder: shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors"), "and vLLM would load it with"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "adapter_config.json lies beside the model"),
    ],
)
def test_files_that_are_not_the_models_weights_are_refused_before_the_engine_is_started(launch, model, change, words):
    change(model)
    write_manifest(model)
    running = launch()
    assert running.exit_code() == 65
    result = running.result()
    assert result["reason"] == "InvalidModel"
    assert words in result["message"]
    assert "starting" not in running.log.read_text()
