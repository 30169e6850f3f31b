import json
import os
import re
import subprocess
import sys

import pytest

from tests.serving.conftest import MODEL_URI, ROOT, write_manifest
from tunesmith_contract.stages import UnpinnedModel
from tunesmith_serving.errors import ServeError
from tunesmith_serving.verify import MANIFEST, path_of, refuse_unsafe_weights, verify

# Of the `model` fixture.
DIGEST = "sha256:61043d816660d11e1d21bad63facab9ac6b5ba04d48c41ac4ae92e03c473d303"


def refusal(digest=None, uri=MODEL_URI):
    with pytest.raises(ServeError) as refused:
        verify(UnpinnedModel(uri=uri, digest=digest))
    return refused.value.reason, refused.value.message


def in_the_trainer(code):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}/trainer-image:{ROOT}/contract"}
    return subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).strip()


def test_an_intact_artefact_has_the_digest_of_its_manifest(model):
    verified = verify(UnpinnedModel(uri=MODEL_URI, digest=DIGEST))

    assert (verified.folder, verified.digest, verified.size_bytes) == (model, DIGEST, 7004)
    assert re.search(r"MB hashed in [\d.]+ s \(\d+ MB/s\)$", str(verified))


def test_a_folder_without_a_manifest_has_the_digest_that_its_manifest_would_have(model):
    (model / MANIFEST).unlink()

    assert verify(UnpinnedModel(uri=MODEL_URI, digest=DIGEST)).digest == DIGEST


def test_a_manifest_is_canonical_json_over_the_loadable_files(model):
    content = (model / MANIFEST).read_text()

    assert content == json.dumps(json.loads(content), sort_keys=True, separators=(",", ":"))
    assert [row["path"] for row in json.loads(content)["files"]] == ["config.json", "model.safetensors", "sub/tokenizer.json"]


def test_the_trainer_image_computes_the_same_digest(model):
    # The image that writes artefacts must agree with the one that checks them; neither imports the other.
    code = f"from tunesmith_trainer import store; print(store.scan(store.path_of({MODEL_URI!r})).digest)"

    assert in_the_trainer(code) == DIGEST


@pytest.mark.parametrize("name", ["chat_template.jinja", "sub/added_tokens.json", "README.md", ".cache/x"])
def test_the_trainer_image_refuses_the_files_beside_a_model_that_are_refused_here(model, name):
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("x")
    try:
        here = verify(UnpinnedModel(uri=MODEL_URI)).digest
    except ServeError as error:
        here = error.reason
    code = (
        "from tunesmith_trainer import errors, store\n"
        f"try: print(store.verify({MODEL_URI!r}, None)[1])\n"
        "except errors.StageError as error: print(error.reason)"
    )

    assert in_the_trainer(code) == here


def test_cards_reports_and_hidden_files_may_change(model):
    for name in ("README.md", "report.html", ".gitattributes"):
        (model / name).write_text("changed")

    assert verify(UnpinnedModel(uri=MODEL_URI)).digest == DIGEST


def test_a_flipped_byte_is_found(model):
    content = bytearray((model / "model.safetensors").read_bytes())
    content[3000] ^= 1
    (model / "model.safetensors").write_bytes(content)

    assert refusal() == (
        "DigestMismatch",
        f"{MODEL_URI} is not what its manifest says: model.safetensors has another content; write the model again",
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{ }"), "config.json has 3 bytes instead of 2"),
        (lambda folder: (folder / "chat_template.jinja").write_text("x"), "chat_template.jinja is not in manifest.json"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "manifest.json is damaged"),
        (lambda folder: (folder / MANIFEST).write_text('{"files": [{}]}'), "manifest.json is damaged"),
    ],
)
def test_a_changed_folder_is_refused_by_the_name_of_the_file(model, change, expected):
    change(model)

    reason, message = refusal()

    assert reason == "DigestMismatch"
    assert expected in message


def test_an_artefact_written_anew_under_the_same_uri_is_refused(model):
    (model / "config.json").write_text('{"changed": true}')
    changed = write_manifest(model)

    reason, message = refusal(DIGEST)

    assert reason == "DigestMismatch"
    assert changed in message and DIGEST in message


def test_a_folder_that_does_not_exist_is_refused(store):
    assert refusal()[0] == "SourceNotFound"


@pytest.mark.parametrize("uri", ["hf://org/name", "pvc://", "pvc://claim/../other", "pvc://claim//x", "/etc"])
def test_a_uri_that_is_not_a_path_in_a_claim_is_refused(store, uri):
    with pytest.raises(ServeError) as refused:
        path_of(uri)
    assert refused.value.reason == "InvalidSettings"


def test_a_link_out_of_the_store_is_refused(model):
    (model / "config.json").unlink()
    (model / "config.json").symlink_to("/etc/hostname")

    assert refusal()[0] == "UnsafeWeights"


def test_a_store_that_cannot_be_read_is_told_from_a_changed_model(model, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("tunesmith_serving.verify._hash_file", fail)

    assert refusal()[0] == "StoreUnavailable"


def test_a_file_that_may_not_be_read_is_told_with_its_remedy(model, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("tunesmith_serving.verify._hash_file", refuse)

    reason, message = refusal()

    assert reason == "StoreUnavailable"
    assert "chmod -R a+rX" in message and "config.json" in message


def test_weights_other_than_safetensors_are_refused(model):
    refuse_unsafe_weights(model)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")

    with pytest.raises(ServeError, match="convert the weights to safetensors"):
        refuse_unsafe_weights(model)
