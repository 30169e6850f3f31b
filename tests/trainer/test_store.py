import json
import signal

import pytest

from tunesmith_trainer import failure, result, runner
from tunesmith_trainer import store as pvc
from tunesmith_trainer.errors import StageError


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_PVC_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def folder(root):
    place = root / "models" / "m"
    (place / "sub").mkdir(parents=True)
    (place / "config.json").write_text("{}")
    (place / "sub" / "weights.safetensors").write_bytes(b"w")
    return place


def test_a_uri_is_a_path_below_its_claim_and_back(root):
    assert pvc.path_of("pvc://models/a/b") == root / "models" / "a" / "b"
    assert pvc.uri_of(root / "models" / "a") == "pvc://models/a"


@pytest.mark.parametrize("uri", ["pvc://models/../etc", "pvc://models//a", "pvc://", "pvc://..", "s3://bucket/a", "/etc/passwd"])
def test_a_uri_that_leads_elsewhere_is_refused(uri):
    with pytest.raises(StageError) as caught:
        pvc.path_of(uri)
    assert caught.value.reason == "InvalidSettings"
    assert uri in caught.value.message


def test_a_manifest_is_canonical_and_its_hash_is_the_digest(folder):
    manifest = pvc.write_manifest(folder)
    content = (folder / "manifest.json").read_bytes()
    rows = json.loads(content)["files"]
    assert [row["path"] for row in rows] == ["config.json", "sub/weights.safetensors"]
    assert content == json.dumps({"files": rows}, sort_keys=True, separators=(",", ":")).encode()
    assert manifest.digest == pvc.file_digest(folder / "manifest.json")


def test_a_card_a_report_and_a_hidden_file_do_not_change_the_digest(folder):
    before = pvc.scan(folder).digest
    (folder / "README.md").write_text("card")
    (folder / "report.html").write_text("report")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.json").write_text("x")
    assert pvc.scan(folder).digest == before


def test_a_folder_without_manifest_has_the_digest_that_its_manifest_would_have(folder):
    found = pvc.verify("pvc://models/m", None)[1]
    assert pvc.write_manifest(folder).digest == found


def test_a_changed_byte_is_found(folder):
    digest = pvc.write_manifest(folder).digest
    (folder / "sub" / "weights.safetensors").write_bytes(b"v")
    with pytest.raises(StageError, match=r"sub/weights\.safetensors has another content") as caught:
        pvc.verify("pvc://models/m", digest)
    assert caught.value.reason == "DigestMismatch"


@pytest.mark.parametrize("look", [pvc.verify, pvc.open_artifact])
def test_a_file_laid_beside_a_model_is_refused_as_the_serving_image_refuses_it(folder, look):
    digest = pvc.write_manifest(folder).digest
    assert pvc.is_intact(folder)
    (folder / "chat_template.jinja").write_text("x")
    with pytest.raises(StageError, match=r"chat_template\.jinja is not in manifest\.json") as caught:
        look("pvc://models/m", digest)
    assert caught.value.reason == "DigestMismatch"
    assert not pvc.is_intact(folder)


def test_an_artefact_of_another_digest_or_without_manifest_is_refused(folder):
    with pytest.raises(StageError, match="not complete"):
        pvc.open_artifact("pvc://models/m", None)
    pvc.write_manifest(folder)
    with pytest.raises(StageError, match="it was changed"):
        pvc.open_artifact("pvc://models/m", "sha256:" + "0" * 64)


def test_a_link_out_of_the_store_is_refused(folder, tmp_path_factory):
    secret = tmp_path_factory.mktemp("outside") / "token"
    secret.write_text("secret")
    (folder / "token.json").symlink_to(secret)
    with pytest.raises(StageError, match="leads out of the store"):
        pvc.scan(folder)


def test_a_long_result_is_cut_to_whole_json_in_the_order_of_the_contract():
    whole = {
        "stage": "Evaluate", "outcome": "Succeeded", "versions": {"a": "1"}, "metrics": [{"m": "x" * 99}] * 40,
        "results": [{"metric": "y" * 60}] * 40, "datasets": [{"name": "d"}], "message": "z" * 400,
    }  # fmt: skip
    cut = json.loads(result.cut(whole))
    assert len(result.cut(whole)) <= result.TERMINATION_LIMIT
    assert "versions" not in cut
    assert "metrics" not in cut
    assert 0 < len(cut["results"]) < 40
    assert (cut["datasets"], cut["message"]) == (whole["datasets"], whole["message"])


def test_a_cut_counts_bytes_not_letters():
    cut = result.cut({"outcome": "Failed", "message": "ü" * 2048})
    assert len(cut) <= result.TERMINATION_LIMIT
    assert json.loads(cut)["message"].endswith("…")


def test_a_finished_result_counts_only_while_its_artefact_is_there(folder, root):
    digest = pvc.write_manifest(folder).digest
    value = {"outcome": "Succeeded", "artifacts": [{"uri": "pvc://models/m", "digest": digest}]}
    pvc.write_json(root / "models" / "run" / "results" / "finalize.json", value)
    assert result.read_finished("pvc://models/run", "finalize") == value
    (folder / "manifest.json").unlink()
    assert result.read_finished("pvc://models/run", "finalize") is None


def test_sigterm_is_no_error_of_the_model_to_those_who_expect_one():
    def load_a_broken_model():
        try:
            runner._interrupt(signal.SIGTERM, None)
        except Exception as error:
            raise AssertionError("taken for a library's error") from error

    with pytest.raises(runner.Interruption) as caught:
        load_a_broken_model()
    refused = failure.classify(caught.value)
    assert (refused.reason, refused.exit_code) == ("Interrupted", 75)
