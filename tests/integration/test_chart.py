"""The chart on a real API server: what it installs works with the rights it gives, and uninstalling leaves nothing behind.

A control plane of its own: the shared one has the CRDs already, and here they are Helm's.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.cluster import tools
from dev.cluster.controlplane import ControlPlane
from dev.cluster.errors import ClusterError
from dev.cluster.ports import free_ports
from dev.cluster.processes import wait_until

pytestmark = pytest.mark.timeout(1800)
ROOT = Path(__file__).resolve().parents[2]
SYSTEM, TEAM = "tunesmith-system", "team-a"
OPERATOR = f"system:serviceaccount:{SYSTEM}:tunesmith"
CHART = ROOT / "helm" / "tunesmith"
CRDS = {f"{plural}.tunesmith.dev" for plural in ("finetunejobs", "evalruns", "modeldeployments")}

KEPT = {f"CustomResourceDefinition /{name}" for name in CRDS} | {"APIService /v1alpha1.tunesmith.dev"}


class Machine:
    """kubectl and helm, as the administrator of one control plane."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig

    def run(self, tool: str, *arguments: str, body: object = None, check: bool = True) -> str:
        command = [str(tools.binary(tool)), f"--kubeconfig={self.kubeconfig}", *arguments]
        text = None if body is None else json.dumps(body)
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=180)
        assert not check or done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.run("kubectl", "get", *arguments, "--output=json"))
        return answer

    def install(self, *settings: str, chart: Path = CHART) -> None:
        # Nothing runs pods here, so nothing is waited for.
        arguments = [argument for setting in settings for argument in ("--set", setting)]
        self.run("helm", "upgrade", "--install", "tunesmith", str(chart), f"--namespace={SYSTEM}", *arguments)

    def uninstall(self) -> None:
        self.run("helm", "uninstall", "tunesmith", f"--namespace={SYSTEM}")

    def may(self, verb: str, resource: str, namespace: str) -> bool:
        """Whether the operator's account may do that."""
        return self.run("kubectl", "auth", "can-i", verb, resource, f"--as={OPERATOR}", f"--namespace={namespace}", check=False).strip() == "yes"

    def everything(self) -> set[str]:
        """Names of all objects of all kinds, but for Events (they expire), addresses of Services, and what the control plane is elected by."""
        items = json.loads(wait_until(self._list, "a list of all objects", 180, 0.5))["items"]
        names = {f"{item['kind']} {item['metadata'].get('namespace', '')}/{item['metadata']['name']}" for item in items}
        return {name for name in names if not name.startswith("Lease kube-system/")}

    def _list(self) -> str:
        told = {"events", "events.events.k8s.io", "componentstatuses", "ipaddresses.networking.k8s.io"}
        try:
            kinds = set(self.run("kubectl", "api-resources", "--verbs=list", "--output=name").split()) - told
            return self.run("kubectl", "get", ",".join(sorted(kinds)), "--all-namespaces", "--output=json")
        except AssertionError as error:
            # A kind may go between the two commands, and in the midst of one.
            print(error)
            return ""

    def without_crds(self) -> set[str]:
        """Take the CRDs away, and return what is there without them."""
        self.run("kubectl", "delete", "crd", "--wait", "--ignore-not-found", *sorted(CRDS))
        # The CRDs' APIService goes a moment later than they.
        wait_until(lambda: not self.everything() & KEPT, "the CRDs to go", 180)
        return self.everything()

    def wait_left(self, what: set[str]) -> None:
        """Wait until nothing but that is there; says what else is."""
        try:
            wait_until(lambda: self.everything() <= what, "the rest to go", 180)
        except ClusterError as error:
            raise AssertionError(f"{error}: {', '.join(sorted(self.everything() - what))}") from None


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with ControlPlane(tmp_path_factory.mktemp("chart")) as running:
        running.wait_controllers()
        machine = Machine(running.kubeconfig)
        for name in (SYSTEM, TEAM):
            labels = {"pod-security.kubernetes.io/enforce": "restricted"}
            machine.run(
                "kubectl", "create", "--filename=-", body={"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
            )
        wait_until(lambda: "default" in machine.run("kubectl", "get", "serviceaccounts", f"--namespace={TEAM}", "--output=name"), "its account", 30)
        yield machine


@pytest.fixture
def installed(machine: Machine) -> Iterator[Machine]:
    machine.install()
    machine.run("kubectl", "wait", "--for=condition=Established", "--timeout=30s", *(f"crd/{name}" for name in sorted(CRDS)))
    yield machine
    machine.uninstall()


def pods(machine: Machine, namespace: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = machine.get("pods", f"--namespace={namespace}")["items"]
    return items


def test_uninstalling_leaves_nothing_but_the_crds(machine: Machine) -> None:
    before = machine.everything()
    machine.install()
    assert len(machine.everything() - before) > 10
    machine.uninstall()
    machine.wait_left(before | KEPT)
    wait_until(lambda: machine.everything() >= KEPT, "the CRDs to be there", 180)


def test_with_crds_let_go_uninstalling_leaves_nothing_at_all(machine: Machine) -> None:
    before = machine.without_crds()
    machine.install("crds.keep=false")
    assert len(machine.everything() - before) > 10
    machine.uninstall()
    machine.wait_left(before)
    assert machine.everything() == before


POD_MONITOR_CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "podmonitors.monitoring.coreos.com", "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"}},
    "spec": {
        "group": "monitoring.coreos.com",
        "names": {"kind": "PodMonitor", "plural": "podmonitors"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
ALL_ON = ("networkPolicy.operator=true", "podDisruptionBudget.enabled=true", "monitoring.podMonitor.enabled=true")
OPTIONAL = {f"{kind} {SYSTEM}/tunesmith" for kind in ("NetworkPolicy", "PodDisruptionBudget", "PodMonitor")}


@pytest.fixture
def pod_monitors(machine: Machine) -> Iterator[None]:
    """What the Prometheus operator brings along."""
    machine.run("kubectl", "create", "--filename=-", body=POD_MONITOR_CRD)
    machine.run("kubectl", "wait", "--for=condition=Established", "--timeout=30s", f"crd/{POD_MONITOR_CRD['metadata']['name']}")
    # Made beside it, not before.
    wait_until(lambda: "APIService /v1.monitoring.coreos.com" in machine.everything(), "its APIService", 60)
    yield
    machine.run("kubectl", "delete", "crd", POD_MONITOR_CRD["metadata"]["name"])


def test_all_options_install_roll_back_and_uninstall_without_a_trace(machine: Machine, pod_monitors: None) -> None:
    before = machine.everything()
    machine.install()
    plain = machine.everything()
    machine.install(*ALL_ON)
    assert OPTIONAL <= machine.everything()
    machine.run("helm", "rollback", "tunesmith", f"--namespace={SYSTEM}")
    # Each revision of the release has a Secret of Helm's own; ReplicaSets and pods belong to the Deployment.
    wait_until(lambda: not OPTIONAL & machine.everything(), "the options to go", 180)
    assert {name for name in plain if not name.startswith(("Secret", "Pod ", "ReplicaSet"))} <= machine.everything()
    machine.uninstall()
    machine.wait_left(before | KEPT)


def test_a_monitor_without_its_crd_is_refused_with_its_name(machine: Machine) -> None:
    with pytest.raises(AssertionError, match="PodMonitor"):
        machine.install("monitoring.podMonitor.enabled=true")
    machine.run("helm", "uninstall", "tunesmith", f"--namespace={SYSTEM}", "--ignore-not-found")


def test_an_upgrade_brings_the_crds_along_and_a_rollback_takes_them_back(machine: Machine, tmp_path: Path) -> None:
    older = shutil.copytree(CHART, tmp_path / "tunesmith")
    crd = older / "files/crds/tunesmith.dev_finetunejobs.yaml"
    text = yaml.safe_load(crd.read_text())
    del text["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["retries"]
    crd.write_text(yaml.safe_dump(text, sort_keys=False))

    def has_retries() -> bool:
        schema = machine.get("crd/finetunejobs.tunesmith.dev")["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        return "retries" in schema["properties"]["spec"]["properties"]

    seen = []
    for step in (
        lambda: machine.install(chart=older),
        machine.install,
        lambda: machine.run("helm", "rollback", "tunesmith", f"--namespace={SYSTEM}"),
    ):
        step()
        seen.append(has_retries())
    machine.uninstall()
    assert seen == [False, True, False]


def test_pod_security_restricted_admits_the_operators_pod(installed: Machine) -> None:
    wait_until(lambda: len(pods(installed, SYSTEM)) == 1, "the operator's pod", 30)


def test_the_certificate_outlives_an_upgrade(installed: Machine) -> None:
    secret = ("secret", "tunesmith-progress-tls", f"--namespace={SYSTEM}")
    before = installed.get(*secret)["data"]
    installed.install("operator.workers=2")
    assert installed.get(*secret)["data"] == before


def test_the_operator_may_not_read_secrets_nor_enter_pods(installed: Machine) -> None:
    for verb, resource in (("get", "secrets"), ("list", "secrets"), ("create", "pods/exec"), ("create", "pods"), ("create", "serviceaccounts/token")):
        assert not installed.may(verb, resource, TEAM), f"{verb} {resource}"
    for verb in ("create", "delete", "list"):
        assert not installed.may(verb, "leases.coordination.k8s.io", SYSTEM), verb


def test_with_namespaces_the_operator_may_act_in_those_alone(machine: Machine) -> None:
    machine.install(f"namespaces={{{TEAM}}}")
    try:
        assert machine.may("create", "deployments.apps", TEAM)
        assert not machine.may("create", "deployments.apps", "default")
        assert not machine.may("list", "finetunejobs.tunesmith.dev", "default")
    finally:
        machine.uninstall()


def kubeconfig_of_the_operator(machine: Machine, folder: Path) -> Path:
    """A kubeconfig that holds nothing but a token of the operator's account."""
    config = json.loads(machine.run("kubectl", "config", "view", "--raw", "--flatten", "--output=json"))
    token = machine.run("kubectl", "create", "token", "tunesmith", f"--namespace={SYSTEM}").strip()
    config["users"] = [{"name": config["contexts"][0]["context"]["user"], "user": {"token": token}}]
    path = folder / "operator.kubeconfig"
    path.write_text(json.dumps(config))
    return path


def operator_environment(machine: Machine, folder: Path) -> dict[str, str]:
    """The variables that the chart gives the operator, with paths and ports of this machine."""
    pod = machine.get("deployment", "tunesmith", f"--namespace={SYSTEM}")["spec"]["template"]["spec"]
    given = {entry["name"]: "operator-0" if "valueFrom" in entry else entry.get("value", "") for entry in pod["containers"][0]["env"]}
    for name, data in machine.get("secret", "tunesmith-progress-tls", f"--namespace={SYSTEM}")["data"].items():
        (folder / name).write_bytes(base64.b64decode(data))
    ports = dict(zip(("TUNESMITH_HEALTH_PORT", "TUNESMITH_PROGRESS_PORT"), map(str, free_ports(2)), strict=True))
    placed = {name: value.replace("/etc/tunesmith/progress-tls", str(folder)) for name, value in given.items()}
    base = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    kubeconfig = str(kubeconfig_of_the_operator(machine, folder))
    # Long, so that a machine that stands still for some seconds ends no operator.
    lease = {"TUNESMITH_LEASE_DURATION_SECONDS": "20", "TUNESMITH_LEASE_DEADLINE_SECONDS": "15"}
    return base | placed | ports | lease | {"PYTHONPATH": f"{ROOT}/operator:{ROOT}/contract", "KUBECONFIG": kubeconfig, "HOME": str(folder)}


def is_ready(environment: Mapping[str, str]) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{environment['TUNESMITH_HEALTH_PORT']}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def operating(machine: Machine, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The operator as the chart that is installed now runs it; its log is printed when it is ended."""
    environment = operator_environment(machine, folder)
    with (folder / "log").open("w") as log:
        operator = subprocess.Popen([sys.executable, "-m", "tunesmith"], env=environment, stdout=log, stderr=subprocess.STDOUT, text=True)
        try:
            wait_until(lambda: operator.poll() is not None or is_ready(environment), "the operator to be ready", 180)
            assert operator.poll() is None
            yield operator
        finally:
            operator.terminate()
            operator.wait(30)
            print((folder / "log").read_text())


def serve(machine: Machine, name: str) -> None:
    """Make a ModelDeployment and the claim that its model is on, and wait for its pod."""
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    objects = [
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"}, "spec": claim},
        {"apiVersion": "tunesmith.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": name}, "spec": {"model": {"uri": "pvc://models/m"}}},
    ]
    machine.run("kubectl", "apply", "--filename=-", f"--namespace={TEAM}", body={"apiVersion": "v1", "kind": "List", "items": objects})
    wait_until(lambda: any(pod["metadata"]["labels"]["tunesmith.dev/name"] == name for pod in pods(machine, TEAM)), "a serving pod", 180)


@pytest.mark.parametrize("settings", [(), (f"namespaces={{{TEAM}}}",)], ids=["everywhere", "in one namespace"])
def test_the_operator_works_with_the_charts_rights_and_settings(installed: Machine, tmp_path: Path, settings: tuple[str, ...]) -> None:
    installed.install(*settings)
    name = "everywhere" if not settings else "one"
    with operating(installed, tmp_path):
        serve(installed, name)
        assert installed.get("modeldeployment", name, f"--namespace={TEAM}")["status"]["stage"] == "Starting"
        installed.run("kubectl", "delete", f"modeldeployment/{name}", "pvc/models", f"--namespace={TEAM}", "--wait=false")
        # The claim goes after them, which it is protected for.
        wait_until(lambda: not installed.get("pods,persistentvolumeclaims", f"--namespace={TEAM}")["items"], "the pods to go with their owner", 180)
    assert "forbidden" not in (tmp_path / "log").read_text().lower()


def test_uninstalled_beside_objects_and_an_operator_that_runs_only_what_is_the_users_stays(machine: Machine, tmp_path: Path) -> None:
    before = machine.everything() | KEPT
    machine.install()
    machine.run("kubectl", "wait", "--for=condition=Established", "--timeout=30s", *(f"crd/{name}" for name in sorted(CRDS)))
    with operating(machine, tmp_path) as operator:
        serve(machine, "left")
        machine.uninstall()
        # Without its Lease and its account it can but end, and must leave nothing new behind.
        operator.wait(60)
    wait_until(lambda: all(f" {TEAM}/" in name for name in machine.everything() - before), "what is the release's to go", 180)
    assert {f"ModelDeployment {TEAM}/left", f"PersistentVolumeClaim {TEAM}/models"} < machine.everything() - before
    assert pods(machine, TEAM), "what serves goes on serving"
    machine.run("kubectl", "delete", "modeldeployment/left", "pvc/models", f"--namespace={TEAM}", "--wait=false")
    machine.wait_left(before)


def test_uninstalled_with_the_crds_nothing_of_the_objects_stays_either(machine: Machine, tmp_path: Path) -> None:
    before = machine.without_crds()
    machine.install("crds.keep=false")
    machine.run("kubectl", "wait", "--for=condition=Established", "--timeout=30s", *(f"crd/{name}" for name in sorted(CRDS)))
    with operating(machine, tmp_path) as operator:
        serve(machine, "left")
        machine.uninstall()
        operator.wait(60)
    machine.run("kubectl", "delete", "pvc/models", f"--namespace={TEAM}", "--wait=false")
    machine.wait_left(before)
