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

from dev.bench.life import COMPARED
from dev.cluster.controlplane import ControlPlane
from dev.cluster.processes import wait_until
from tests.integration import served
from tests.integration.operators import EVAL_RUN, EVALUATED, FINE_TUNE_JOB, RESULTS, Namespace, settle
from tests.integration.schema_server import Server
from tests.integration.test_chart import ROOT, SYSTEM, TEAM, Machine, is_ready, operator_environment
from tunesmith.core.objects import Object

CHILDREN = ("Job", "Pod", "Service", "Deployment")
JUDGE: Object = {**EVAL_RUN, "model": {"uri": "pvc://models/base"}, "output": {"uri": "pvc://models/out"}}
OTHER_SETTINGS = ("--set=images.pullPolicy=Always", "--set=imagePullSecrets={mirror}", "--set=networkPolicy.models=false")
PRESENT = ("-m", "tunesmith")
LATER = """
import runpy
from tunesmith.workload import podspec
from tunesmith.modeldeployment import build
podspec.USER, build.GRACE_PERIOD_SECONDS = 1000, 60
runpy.run_module("tunesmith", run_name="__main__")
"""
"""The operator as a later version may be: it renders pods and the orders of the serving ones otherwise."""


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


def deploy(machine: Machine, chart: Path, tag: str, *settings: str) -> None:
    """Install or upgrade to that chart, with images of that tag."""
    images = [f"--set=images.trainer=trainer:{tag}", f"--set=images.serving=serving:{tag}", f"--set=image=operator:{tag}"]
    machine.run("helm", "upgrade", "--install", "tunesmith", str(chart), f"--namespace={SYSTEM}", *images, *settings)
    machine.run("kubectl", "wait", "--for=condition=Established", "--timeout=30s", "crd/finetunejobs.tunesmith.dev")


@contextmanager
def operating(machine: Machine, folder: Path, *program: str) -> Iterator[None]:
    """The operator as the chart that is installed now runs it."""
    folder.mkdir()
    environment = operator_environment(machine, folder) | {"TUNESMITH_RESYNC_SECONDS": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, *program], env=environment, stdout=log, stderr=log)
        try:
            wait_until(lambda: process.poll() is not None or is_ready(environment), "the operator to be ready", 60)
            assert process.poll() is None, (folder / "log").read_text()
            yield
        finally:
            process.terminate()
            process.wait(30)


def standing(space: Namespace) -> dict[str, Object]:
    """What must not change: which children there are, what is asked of them, how often that changed, what is on record."""
    children = {f"{item['kind']} {item['metadata']['uid']}": (item["metadata"].get("generation"), item["spec"]) for item in space.all(*CHILDREN)}
    tune, judge, serve = space.status("FineTuneJob", "tune"), space.status("EvalRun", "judge"), space.status("ModelDeployment", "serve")
    recorded = {name: tune[name] for name in ("stages", "attempts", "resolved")}
    judged = {name: judge[name] for name in ("stages", "resolved")}
    return {"children": children, "tune": recorded, "judge": judged, "serve": {name: serve[name] for name in ("revisions", "conditions")}}


def begin(space: Namespace) -> tuple[Object, Object]:
    """A FineTuneJob that trains, an EvalRun that evaluates, a ModelDeployment that serves; the first two are returned."""
    space.claim("models")
    tune, judge = space.create("FineTuneJob", "tune", FINE_TUNE_JOB), space.create("EvalRun", "judge", JUDGE)
    space.play(tune, "Prepare", RESULTS["Prepare"])
    for pod in (*space.wait_pods(tune, "Train"), *space.wait_pods(judge, "Evaluate", part="tested")):
        space.run_pod(pod)
    for kind, name in (("FineTuneJob", "tune"), ("EvalRun", "judge")):
        space.wait(lambda kind=kind, name=name: "Running" in states(space, kind, name), f"{name} to run")  # type: ignore[misc]
    served.serve(space, {"model": {"uri": "pvc://models/base"}})
    space.wait(lambda: space.status("ModelDeployment", "serve")["stage"] == "Serving", "it to serve")
    return tune, judge


def states(space: Namespace, kind: str, name: str) -> list[str]:
    return [entry["state"] for entry in space.status(kind, name).get("stages", ())]


def end(space: Namespace, tune: Object, judge: Object) -> None:
    """Let all stages come to their end."""
    space.play(tune, "Train", RESULTS["Train"])
    space.play(tune, "Finalize", RESULTS["Finalize"])
    space.play(judge, "Evaluate", {**EVALUATED, "model": {**EVALUATED["model"], "uri": "pvc://models/base"}}, part="tested")
    space.play(judge, "Compare", COMPARED)
    for kind, name in (("FineTuneJob", "tune"), ("EvalRun", "judge")):
        space.wait_condition(kind, name, "Finished")


def test_an_upgrade_and_the_way_back_leave_what_runs_alone(plane: ControlPlane, machine: Machine, tmp_path: Path) -> None:
    # Of a pod that a test has said to run, it would say that there is no node for it.
    plane.stop_process("kube-scheduler")
    for name in (SYSTEM, TEAM):
        machine.run("kubectl", "create", "namespace", name)
    deploy(machine, ROOT / "helm" / "tunesmith", "1")
    space = Namespace(Server.of(plane), TEAM)
    with operating(machine, tmp_path / "before", *PRESENT):
        tune, judge = begin(space)
        before = standing(space)
    deploy(machine, next_chart(tmp_path), "2", *OTHER_SETTINGS)
    with operating(machine, tmp_path / "after", "-c", LATER):
        later = space.create("FineTuneJob", "later", FINE_TUNE_JOB)
        (pod,) = space.wait_pods(later, "Prepare")
        container = pod["spec"]["containers"][0]
        effects = (container["image"], container["imagePullPolicy"], pod["spec"]["imagePullSecrets"], pod["spec"]["securityContext"]["runAsUser"])
        assert effects == ("trainer:2", "Always", [{"name": "mirror"}], 1000), "the upgrade is in effect"
        space.patch("FineTuneJob", "tune", {"status": {"addedLater": "new"}}, "status")
        space.delete("FineTuneJob", "later")
        space.wait(lambda: standing(space) == before, "all to be as before", lambda: standing(space))
        assert settle(3, lambda: standing(space) == before)
    machine.run("helm", "rollback", "tunesmith", "1", f"--namespace={SYSTEM}")
    with operating(machine, tmp_path / "back", *PRESENT):
        assert settle(3, lambda: standing(space) == before)
        end(space, tune, judge)
        assert [(entry["stage"], entry["attempt"]) for entry in space.status("FineTuneJob", "tune")["attempts"]] == [(stage, 1) for stage in RESULTS]
        assert {entry["attempt"] for entry in space.status("EvalRun", "judge")["attempts"]} == {1}
        images = {pod["spec"]["containers"][0]["image"] for pod in space.all("Pod")}
        assert images == {"trainer:1", "serving:1"}, "what was begun is ended with the image it began with"
