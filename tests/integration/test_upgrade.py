"""An upgrade of the chart under running objects, and back: no pod restarts, no stage runs again, no revision rolls.

A control plane of its own, since the CRDs are Helm's here. The operator runs as a process with what the chart gives its pod.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from dev.cluster.controlplane import ControlPlane
from dev.cluster.processes import wait_until
from tests.integration.operators import FINE_TUNE_JOB, RESULTS, Namespace, settle
from tests.integration.schema_server import Server
from tests.integration.test_chart import ROOT, SYSTEM, TEAM, Machine, is_ready, operator_environment
from tunesmith.conditions import is_true
from tunesmith.values import Object

CHILDREN = ("Job", "Pod", "ConfigMap", "Service", "Deployment")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane(tmp_path_factory.mktemp("upgrade")) as running:
        yield running


@pytest.fixture
def machine(plane: ControlPlane) -> Machine:
    return Machine(plane.kubeconfig)


def next_chart(folder: Path) -> Path:
    """The chart as a later version may have it: its number, and one more member in a status."""
    chart = folder / "chart"
    shutil.copytree(ROOT / "helm" / "tunesmith", chart)
    described = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump({**described, "version": "99.0.0"}))
    path = chart / "files" / "crds" / "tunesmith.dev_finetunejobs.yaml"
    crd = yaml.safe_load(path.read_text())
    members = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    members["addedLater"] = {"type": "string", "maxLength": 10, "description": "Not known to this version."}
    path.write_text(yaml.safe_dump(crd))
    return chart


def deploy(machine: Machine, chart: Path, tag: str) -> None:
    """Install or upgrade to that chart, with images of that tag."""
    images = [f"--set=images.trainer=trainer:{tag}", f"--set=images.serving=serving:{tag}", f"--set=image=operator:{tag}"]
    machine.run("helm", "upgrade", "--install", "tunesmith", str(chart), f"--namespace={SYSTEM}", *images)
    machine.run("kubectl", "wait", "--for=condition=Established", "--timeout=30s", "crd/finetunejobs.tunesmith.dev")


@contextmanager
def operating(machine: Machine, folder: Path) -> Iterator[None]:
    """The operator as the chart that is installed now runs it."""
    folder.mkdir()
    environment = operator_environment(machine, folder) | {"TUNESMITH_RESYNC_SECONDS": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "tunesmith"], env=environment, stdout=log, stderr=log)
        try:
            wait_until(lambda: process.poll() is not None or is_ready(environment), "the operator to be ready", 60)
            assert process.poll() is None, (folder / "log").read_text()
            yield
        finally:
            process.terminate()
            process.wait(30)


def standing(space: Namespace) -> dict[str, Object]:
    """What must not change: which children there are, what is asked of them, what is on record."""
    children = {f"{item['kind']} {item['metadata']['uid']}": item.get("spec", item.get("data")) for item in space.all(*CHILDREN)}
    tune, serve = space.status("FineTuneJob", "tune"), space.status("ModelDeployment", "serve")
    recorded = {name: tune[name] for name in ("stages", "attempts", "resolved")}
    return {"children": children, "tune": recorded, "serve": {name: serve[name] for name in ("revisions", "conditions")}}


def test_an_upgrade_and_the_way_back_leave_what_runs_alone(plane: ControlPlane, machine: Machine, tmp_path: Path) -> None:
    for name in (SYSTEM, TEAM):
        machine.run("kubectl", "create", "namespace", name)
    deploy(machine, ROOT / "helm" / "tunesmith", "1")
    space = Namespace(Server.of(plane), TEAM)
    space.claim("models")
    with operating(machine, tmp_path / "before"):
        tune = space.create("FineTuneJob", "tune", FINE_TUNE_JOB)
        space.create("ModelDeployment", "serve", {"model": {"uri": "pvc://models/base"}})
        space.play(tune, "Prepare", RESULTS["Prepare"])
        space.wait_pods(tune, "Train")
        space.wait(lambda: "jobUID" in space.status("FineTuneJob", "tune")["stages"][1], "the training Job to be on record")
        space.wait(lambda: len(space.all("Pod")) == 3, "all pods")
        space.wait(lambda: space.status("ModelDeployment", "serve").get("revisions"), "the revision to be on record")
        before = standing(space)
    deploy(machine, next_chart(tmp_path), "2")
    with operating(machine, tmp_path / "after"):
        later = space.create("FineTuneJob", "later", FINE_TUNE_JOB)
        (pod,) = space.wait_pods(later, "Prepare")
        assert pod["spec"]["containers"][0]["image"] == "trainer:2", "the upgrade is in effect"
        space.patch("FineTuneJob", "tune", {"status": {"addedLater": "new"}}, "status")
        space.delete("FineTuneJob", "later")
        space.wait(lambda: standing(space) == before, "all to be as before", lambda: standing(space))
        assert settle(3, lambda: standing(space) == before)
    machine.run("helm", "rollback", "tunesmith", "1", f"--namespace={SYSTEM}")
    with operating(machine, tmp_path / "back"):
        assert settle(3, lambda: standing(space) == before)
        space.play(tune, "Train", RESULTS["Train"])
        space.play(tune, "Finalize", RESULTS["Finalize"])
        space.wait(lambda: is_true(space.status("FineTuneJob", "tune"), "Finished"), "the end")
        assert [(entry["stage"], entry["attempt"]) for entry in space.status("FineTuneJob", "tune")["attempts"]] == [(stage, 1) for stage in RESULTS]
        images = {pod["spec"]["containers"][0]["image"] for pod in space.all("Pod") if "tunesmith.dev/stage" in pod["metadata"]["labels"]}
        assert images == {"trainer:1"}, "what was begun is ended with the image it began with"
