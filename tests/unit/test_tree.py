"""What a reader may rely on about the tree itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tunesmith

ROOT = Path(__file__).resolve().parents[2]
LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout
FILES = [ROOT / line for line in LISTED.splitlines() if (ROOT / line).is_file()]
PYTHON = [path for path in FILES if path.suffix == ".py"]


def test_the_operator_folder_is_no_package_so_that_it_cannot_shadow_the_standard_library() -> None:
    assert not (ROOT / "operator/__init__.py").exists()


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_file_and_its_functions_are_short_enough_to_read(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= 60]
    assert long == []


def test_nothing_but_tests_imports_tests() -> None:
    for path in PYTHON:
        if path.is_relative_to(ROOT / "tests"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
            assert not [name for name in names if name.split(".")[0] == "tests"], path


def test_the_contract_needs_pydantic_and_nothing_else() -> None:
    allowed = sys.stdlib_module_names | {"pydantic", "pydantic_core", "tunesmith_contract"}
    for path in (ROOT / "contract").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
            assert not [name for name in names if name and name.split(".")[0] not in allowed], path


def test_both_images_look_at_devices_and_weights_by_one_text() -> None:
    for name in ("device.py", "model/weights.py"):
        trainer = ROOT / "trainer-image/tunesmith_trainer" / name
        assert trainer.read_text() == (ROOT / "serving-image/tunesmith_serving" / trainer.name).read_text(), name


def test_locks_hold_hashes_and_no_download_addresses() -> None:
    locks = [path for path in FILES if re.fullmatch(r"requirements.*\.txt", path.name)]
    assert len(locks) >= 4
    for lock in locks:
        text = lock.read_text()
        assert "--hash=sha256:" in text
        assert "://" not in text
    assert not [path for path in FILES if re.fullmatch(r"uv\.lock|poetry\.lock|pylock.*\.toml", path.name)]


def test_the_changelog_tells_of_the_version_and_the_chart_carries_it() -> None:
    assert f"## [{tunesmith.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"appVersion: {tunesmith.__version__}" in (ROOT / "helm/tunesmith/Chart.yaml").read_text().replace('"', "")


def test_every_command_of_the_readme_is_a_target_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z]+(?:-[a-z]+)*)", (ROOT / "README.md").read_text())) - {"it"}:
        assert re.search(rf"^[a-z0-9 -]*\b{target}\b[a-z0-9 -]*:", makefile, re.MULTILINE), target
