"""Image archives: names, digests, stable layers."""

import hashlib
import json
import os
import tarfile

import pytest

from dev.cluster import images, oci


@pytest.fixture
def code(tmp_path):
    folder = tmp_path / "code"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "__pycache__" / "main.pyc").write_bytes(b"compiled")
    (folder / "main.py").write_text("print(1)\n")
    return folder


def names(path):
    with tarfile.open(path) as tar:
        return tar.getnames()


def test_equal_code_gives_an_equal_layer(code, tmp_path):
    first = oci.write_layer({"app/x": code}, tmp_path / "1.tar")
    os.utime(code / "main.py", (1, 1))
    (code / "main.py").chmod(0o600)
    second = oci.write_layer({"app/x": code}, tmp_path / "2.tar")
    assert first.digest == second.digest


def test_a_change_gives_another_layer(code, tmp_path):
    first = oci.write_layer({"app/x": code}, tmp_path / "1.tar")
    (code / "main.py").write_text("print(2)\n")
    assert oci.write_layer({"app/x": code}, tmp_path / "2.tar").digest != first.digest


def test_a_layer_holds_the_code_at_its_place_and_compiled_files_unless_it_is_stable(code, tmp_path):
    layer = oci.write_layer({"app/x": code}, tmp_path / "layer.tar")
    assert names(layer.path) == ["app/x", "app/x/main.py"]
    assert names(oci.write_layer({"app/x": code}, tmp_path / "whole.tar", stable=False).path)[1:] == [
        "app/x/__pycache__",
        "app/x/__pycache__/main.pyc",
        "app/x/main.py",
    ]
    assert layer.digest == f"sha256:{hashlib.sha256(layer.path.read_bytes()).hexdigest()}"


def test_everyone_may_read_what_a_strict_umask_made(code, tmp_path):
    (code / "main.py").chmod(0o600)
    code.chmod(0o700)
    layer = oci.write_layer({"app/x": code}, tmp_path / "layer.tar")
    with tarfile.open(layer.path) as tar:
        assert tar.getmember("app/x").mode == 0o755
        assert tar.getmember("app/x/main.py").mode == 0o644


def test_an_archive_names_its_image_and_holds_every_blob(code, tmp_path):
    layer = oci.write_layer({"app/x": code}, tmp_path / "layer.tar")
    config = oci.ImageConfig(entrypoint=("python",), env={"A": "b"}, user="65532", labels={"l": "m"})
    archive = oci.write_archive(tmp_path / "image.tar", "localhost/x:1", [layer], config)
    with tarfile.open(archive) as tar:
        index = json.loads(tar.extractfile("index.json").read())
        blobs = [name for name in tar.getnames() if name.startswith("blobs/")]
        for name in blobs:
            digest = hashlib.sha256(tar.extractfile(name).read()).hexdigest()
            assert name == f"blobs/sha256/{digest}"
        manifest = json.loads(tar.extractfile(blobs[1]).read())
        document = json.loads(tar.extractfile(blobs[0]).read())
    assert index["manifests"][0]["annotations"]["io.containerd.image.name"] == "localhost/x:1"
    assert manifest["layers"][0]["digest"] == layer.digest
    assert document["rootfs"]["diff_ids"] == [layer.digest]
    assert document["config"]["User"] == "65532"
    assert "A=b" in document["config"]["Env"]


def test_an_omitted_layer_is_named_but_not_included(code, tmp_path):
    layer = oci.write_layer({"app/x": code}, tmp_path / "layer.tar")
    archive = oci.write_archive(tmp_path / "image.tar", "localhost/x:1", [layer], oci.ImageConfig(), omit={layer.digest})
    assert f"blobs/sha256/{layer.digest[7:]}" not in names(archive)


def test_a_thin_images_code_is_compiled_so_that_its_source_has_no_time_to_compare(code, tmp_path):
    (code / "__pycache__" / "old.pyc").write_bytes(b"compiled")
    (compiled,) = (path for path in images._compiled(code, tmp_path / "compiled").rglob("*") if path.is_file())
    assert compiled.name.startswith("main.cpython")
    # PEP 552: by the source's hash, which is not checked.
    assert int.from_bytes(compiled.read_bytes()[4:8], "little") == 1
