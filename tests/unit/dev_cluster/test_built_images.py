"""The real images: what decides about a new build, what a build sees of the machine, and what an image must not hold."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from dev import images

ROOT = Path(__file__).resolve().parents[3]
VERSION = "1.2.3"
CONFIG = {"User": "65532:65532", "Labels": {f"org.opencontainers.image.{label}": VERSION for label in images.LABELS}}


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_a_good_image_has_no_faults(tmp_path: Path) -> None:
    compiled = ("usr/lib/python3.11/asyncio/__pycache__/x.pyc", "app/tunesmith_trainer/__pycache__/x.pyc")
    assert images.faults(CONFIG, make(tmp_path, "opt/trainer/bin/python", "usr/bin/python3", *compiled), VERSION) == []


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("usr/bin/gcc", "/usr/bin/gcc"),
        ("usr/bin/make", "/usr/bin/make"),
        ("opt/uv/bin/uv", "opt/uv"),
        ("opt/trainer/bin/pip", "installs packages"),
        ("var/lib/apt/lists/x", "package lists"),
        ("mnt/pip.conf", "left by the build"),
        ("etc/apt/sources.list.d/x.sources", "left by the build"),
        ("usr/lib/python3.11/asyncio/events.py", "/usr/lib/python3.11/asyncio is compiled by each process"),
        ("app/tunesmith_trainer/runner.py", "/app/tunesmith_trainer is compiled by each process"),
    ],
)
def test_what_does_not_belong_into_an_image_is_told(tmp_path: Path, file: str, told: str) -> None:
    (fault, *_) = images.faults(CONFIG, make(tmp_path, file), VERSION)
    assert told in fault


def test_an_image_that_compiles_has_a_compiler_and_pythons_headers(tmp_path: Path) -> None:
    tools = ("usr/bin/gcc", "usr/bin/g++")
    found = images.faults(CONFIG, make(tmp_path / "bare", "usr/bin/python3"), VERSION, compiles=True)
    assert found == [*(f"it compiles and has no /{tool}" for tool in tools), "it compiles and has no Python.h"]
    assert images.faults(CONFIG, make(tmp_path / "whole", *tools, "usr/include/python3.11/Python.h"), VERSION, compiles=True) == []


def test_the_trainer_image_compiles_and_every_stage_on_gpus_with_it() -> None:
    assert [part.name for part in images.PARTS.values() if part.compiles] == ["trainer"]
    for part in ("trainer-image", "serving-image"):
        text = (ROOT / part / "Containerfile").read_text()
        assert "g++" in text
        assert "libpython3-dev" in text
        assert '--requirements "/app/${LOCK}"' in text


def test_root_and_missing_labels_are_faults(tmp_path: Path) -> None:
    told = images.faults({"User": "", "Labels": None}, tmp_path, VERSION)
    assert len(told) == 1 + len(images.LABELS)


def test_the_builds_variables_are_faults_in_an_image(tmp_path: Path) -> None:
    found = images.faults(CONFIG | {"Env": ["PATH=/bin", "SSL_CERT_FILE=/mnt/x"]}, tmp_path, VERSION)
    assert found == ["the variable SSL_CERT_FILE of the build is in it"]


def test_the_label_of_another_version_is_a_fault(tmp_path: Path) -> None:
    assert images.faults(CONFIG, tmp_path, "1.2.4") == ["it is labelled as version 1.2.3, not 1.2.4"]


@pytest.mark.parametrize("part", images.PARTS.values(), ids=lambda part: part.name)
def test_a_containerfile_ends_as_the_user_without_rights_and_installs_by_a_tool_that_is_only_lent(part: images.Part) -> None:
    text = (ROOT / part.folder / "Containerfile").read_text()
    lender, _, final = text.partition("\nFROM ${BASE_IMAGE}\n")
    assert "AS uv" in lender
    assert "COPY --from" not in final
    assert "--mount=type=bind,from=uv,source=/opt/uv/bin" in final
    assert "--require-hashes" in final
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == [images.USER]


def test_another_base_is_the_only_way_in_from_outside() -> None:
    for part in images.PARTS.values():
        text = (ROOT / part.folder / "Containerfile").read_text()
        assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${BASE_IMAGE}"}


def repository(folder: Path) -> Path:
    """A repository with one part in it."""
    make(folder, "operator/Containerfile", "operator/tunesmith/a.py", "contract/tunesmith_contract/base.py", "README.md", "helm/tunesmith/Chart.yaml")
    set_version(folder, VERSION)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


def set_version(folder: Path, version: str) -> None:
    (folder / "helm/tunesmith/Chart.yaml").write_text(f"name: tunesmith\nversion: {version}\nappVersion: 9\n")


def test_an_image_is_rebuilt_when_a_file_of_its_folder_or_of_the_contract_or_the_version_changes_and_only_then(tmp_path: Path) -> None:
    part, root = images.PARTS["operator"], repository(tmp_path)
    before = images.image_key(part, root)
    (root / "README.md").write_text("more")
    assert images.image_key(part, root) == before
    set_version(root, "1.2.4")
    assert images.image_key(part, root) != before
    set_version(root, VERSION)
    assert images.image_key(part, root) == before
    (root / "contract/tunesmith_contract/base.py").write_text("more")
    other = images.image_key(part, root)
    (root / "operator/tunesmith/a.py").write_text("more")
    assert len({before, other, images.image_key(part, root)}) == 3


def test_the_build_mounts_over_folders_that_the_base_has_so_that_none_is_left_behind(tmp_path: Path) -> None:
    arguments = images.host_arguments(tmp_path / "settings", "/cache/uv")
    targets = {argument.split(":")[1] for argument in arguments if argument.startswith("--volume=")}
    assert targets == {"/etc/apt/sources.list.d", "/mnt", "/media"}
    assert (tmp_path / "settings/pip/ca-certificates.crt").is_file()
