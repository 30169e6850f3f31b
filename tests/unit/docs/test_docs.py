"""The documents say what the code does: checked against the code, in both directions."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from dev import api_reference
from tests.unit.docs.reasons import collect
from tunesmith_contract.results import SUCCESSES

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
LISTING = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
)
PAGES = [ROOT / name for name in LISTING.stdout.split()]
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")


def rows(page: str, pattern: str) -> set[str]:
    """First cells of the page's table rows that are one word in backquotes."""
    return set(re.findall(rf"^\| `({pattern})` \|", (DOCS / page).read_text(), re.MULTILINE))


def exported() -> set[str]:
    """Names of all metrics as a scrape shows them, without what every Python program exports."""
    importlib.import_module("tunesmith.metrics")
    families = [family for family in REGISTRY.collect() if not family.name.startswith(("python_", "process_"))]
    return {family.name + ("_total" if family.type == "counter" else "") for family in families}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {"#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_api_reference_is_what_the_crds_say() -> None:
    assert (DOCS / "api.md").read_text() == api_reference.render(), "run `make generate`"


def test_every_reason_that_the_code_can_write_is_in_troubleshooting() -> None:
    missing = {reason: path for reason, path in collect().items() if reason not in rows("troubleshooting.md", "[A-Z][A-Za-z]+")}
    assert not missing, f"add a row for each to a table of docs/troubleshooting.md (meaning, what to do): {missing}"


def test_every_reason_in_troubleshooting_is_one_that_the_code_can_write() -> None:
    gone = rows("troubleshooting.md", "[A-Z][A-Za-z]+") - collect().keys()
    assert not gone, f"nothing in the code writes these reasons: remove their rows from docs/troubleshooting.md: {sorted(gone)}"


def test_the_stages_names_are_told_to_be_reasons() -> None:
    text = (DOCS / "troubleshooting.md").read_text()
    missing = [stage for stage in SUCCESSES if f"`{stage}`" not in text]
    assert not missing, f"while a stage runs its name is the reason: name {missing} in docs/troubleshooting.md, section Waiting"


def test_reasons_are_collected_from_every_way_to_give_one() -> None:
    found = collect()
    # A call's argument, a subclass' __init__, one of two, an assigned variable, a dictionary, a stage's exit codes.
    assert {"NoGate", "DependencyFailed", "ScaledToZero", "Scaling", "NameConflict", "UnsafeWeights"} <= found.keys()


def test_every_metric_is_in_operations() -> None:
    missing = exported() - rows("operations.md", "[a-z_]+")
    assert not missing, f"add a row for each to the table of docs/operations.md, section Metrics: {sorted(missing)}"


def test_every_metric_in_operations_is_exported() -> None:
    gone = rows("operations.md", "[a-z_]+") - exported()
    assert not gone, f"nothing exports these metrics: remove their rows from docs/operations.md: {sorted(gone)}"


def test_the_metrics_module_is_the_only_one_that_makes_metrics() -> None:
    # The two tests above see what is made when that module is imported.
    makers = {"Counter", "Gauge", "Histogram", "Summary", "Info", "Enum"}
    for path in (ROOT / "operator/tunesmith").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "prometheus_client" and path.name != "metrics.py":
                assert not makers & {name.name for name in node.names}, f"make the metric of {path.name} in metrics.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(re.sub(r"`[^`\n]*`", "", page.read_text())):
        if "://" in target:
            continue
        goal = (page.parent / target) if target else page
        assert goal.exists(), f"{page.name} links to {target}, which is not there"
        assert not anchor or anchor in anchors(goal), f"{page.name} links to {anchor} of {goal.name}, which has no such heading"


def test_every_document_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    missing = [path.name for path in sorted(DOCS.glob("*.md")) if f"docs/{path.name}" not in readme]
    assert not missing, f"link them from README.md: {missing}"


def alerts() -> list[dict[str, Any]]:
    """The rules in operations.md."""
    block = re.search(r"## Alerts\n\n```yaml\n(.*?)```", (DOCS / "operations.md").read_text(), re.DOTALL)
    assert block
    rules: list[dict[str, Any]] = yaml.safe_load(block[1])["groups"][0]["rules"]
    return rules


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_every_alert_asks_for_metrics_that_are_exported(alert: dict[str, Any]) -> None:
    selectors = re.sub(r"\{[^}]*\}|\[[^]]*\]|\bby \([^)]*\)", "", alert["expr"])
    asked = set(re.findall(r"[a-z_]+_[a-z_]+", selectors))
    assert asked, "it asks for nothing"
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked} <= exported()


EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if path.is_dir())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_listed_and_a_test_or_the_demo_names_its_folder(example: Path) -> None:
    assert f"[{example.name}]({example.name})" in (ROOT / "examples/README.md").read_text(), "add a row to examples/README.md"
    tests = "".join(path.read_text() for folder in ("tests/e2e", "tests/integration", "dev/demo") for path in (ROOT / folder).glob("*.py"))
    # That it runs to its end is what that test is to show.
    assert f"examples/{example.name}" in tests, "run it in tests/e2e/test_examples.py"
