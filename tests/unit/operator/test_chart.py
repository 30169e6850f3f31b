"""What the chart renders, by the real helm."""

import base64
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import tunesmith
from dev.cluster import tools
from tunesmith import settings
from tunesmith.core import objects
from tunesmith.runtime.resources import RESOURCES

# helm is built from its Go module on first use.
pytestmark = pytest.mark.timeout(1800)
ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "helm" / "tunesmith"
Render = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def helm() -> str:
    return str(tools.binary("helm"))


@pytest.fixture(scope="module")
def render(helm: str) -> Render:
    def run(*settings: str) -> list[dict[str, Any]]:
        arguments = [argument for setting in settings for argument in ("--set", setting)]
        command = [helm, "template", "tunesmith", str(CHART), "--namespace=tunesmith-system", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [entry for entry in yaml.safe_load_all(done.stdout) if entry]

    return run


def of_kind(objects: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {entry["metadata"]["name"]: entry for entry in objects if entry["kind"] == kind}


def operator_pod(objects: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = of_kind(objects, "Deployment")["tunesmith"]["spec"]["template"]["spec"]
    return spec


def environment(objects: list[dict[str, Any]]) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "from the pod") for entry in operator_pod(objects)["containers"][0]["env"]}


def rules(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [rule for kind in ("ClusterRole", "Role") for role in of_kind(objects, kind).values() for rule in role["rules"]]


def test_it_lints_without_a_warning(helm: str) -> None:
    done = subprocess.run([helm, "lint", "--strict", str(CHART)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_its_version_is_the_operators() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == tunesmith.__version__


def test_its_crds_are_copies_of_the_generated_ones() -> None:
    folders = (ROOT / "crds", CHART / "files" / "crds")
    ours, copies = ({path.name: path.read_text() for path in folder.glob("*.yaml")} for folder in folders)
    assert copies == ours, "run `make generate`"


def test_it_renders_the_crds_as_they_are_and_keeps_them(render: Render) -> None:
    rendered = of_kind(render(), "CustomResourceDefinition")
    assert len(rendered) == 3
    for crd in rendered.values():
        assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert crd == yaml.safe_load((ROOT / "crds" / f"tunesmith.dev_{crd['spec']['names']['plural']}.yaml").read_text())


@pytest.mark.parametrize(("setting", "kept", "number"), [("crds.keep=false", 0, 3), ("crds.enabled=false", 0, 0)])
def test_crds_can_be_let_go_or_left_out(render: Render, setting: str, kept: int, number: int) -> None:
    rendered = of_kind(render(setting), "CustomResourceDefinition")
    assert (len(rendered), sum("annotations" in crd["metadata"] for crd in rendered.values())) == (number, kept)


def test_the_operators_pod_is_restricted(render: Render) -> None:
    pod = operator_pod(render())
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        context = container["securityContext"]
        assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"], context["capabilities"]) == (False, True, {"drop": ["ALL"]})
    assert {next(iter(volume.keys() - {"name"})) for volume in pod["volumes"]} == {"emptyDir", "secret"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()


@pytest.mark.parametrize("chosen", [(), ("namespaces={team-a,team-b}",)])
def test_no_right_on_secrets_no_wildcard_no_escalation(render: Render, chosen: tuple[str, ...]) -> None:
    for rule in rules(render(*chosen)):
        words = {word for field in ("apiGroups", "resources", "verbs") for word in rule[field]}
        assert not words & {"*", "secrets", "pods/exec", "escalate", "bind", "impersonate", "nodes", "serviceaccounts/token"}, rule


def test_the_operator_may_list_and_watch_all_that_it_watches(render: Render) -> None:
    role = of_kind(render(), "ClusterRole")["tunesmith"]
    for resource in RESOURCES.values():
        verbs = {
            verb for rule in role["rules"] if resource.group in rule["apiGroups"] and resource.plural in rule["resources"] for verb in rule["verbs"]
        }
        assert verbs >= {"list", "watch"}, resource.kind


def test_with_namespaces_its_rights_end_there(render: Render) -> None:
    objects = render("namespaces={team-a,team-b}")
    assert list(of_kind(objects, "ClusterRoleBinding")) == ["tunesmith-tokenreview"]
    bound = {entry["metadata"]["namespace"] for entry in objects if entry["kind"] == "RoleBinding" and entry["roleRef"]["name"] == "tunesmith"}
    assert bound == {"team-a", "team-b"}
    assert environment(objects)["TUNESMITH_NAMESPACES"] == "team-a,team-b"


def test_the_lease_is_the_charts_and_the_operator_may_renew_that_one_and_make_none(render: Render) -> None:
    objects = render()
    (name,) = of_kind(objects, "Lease")
    assert environment(objects)["TUNESMITH_LEASE_NAME"] == name == settings.LeaseSettings().name
    (rule,) = [rule for rule in rules(objects) if "leases" in rule["resources"]]
    assert (rule["resourceNames"], rule["verbs"]) == ([name], ["get", "update"])


def test_where_the_chart_makes_no_lease_the_operator_may(render: Render) -> None:
    objects = render("lease.create=false")
    assert not of_kind(objects, "Lease")
    assert [rule["verbs"] for rule in rules(objects) if "leases" in rule["resources"]] == [["get", "update"], ["create"]]


def test_the_lease_is_not_the_one_that_the_first_version_made_by_itself(render: Render) -> None:
    # Helm would refuse to upgrade: it takes over nothing that it did not make.
    assert "tunesmith" not in of_kind(render(), "Lease")


def test_every_variable_is_one_that_the_operator_reads(render: Render) -> None:
    source = Path(settings.__file__).read_text()
    names = [name for name in environment(render()) if name.startswith(settings.PREFIX)]
    assert len(names) > 10
    for name in names:
        assert f'"{name.removeprefix(settings.PREFIX)}"' in source, name


def test_the_settings_reach_the_operator(render: Render) -> None:
    objects = render("images.trainer=a/trainer@sha256:1", "images.serving=a/serving:2", "operator.workers=7", "imagePullSecrets={one,two}")
    chosen = settings.from_environment(environment(objects))
    assert (chosen.images.trainer, chosen.images.serving, chosen.workers) == ("a/trainer@sha256:1", "a/serving:2", 7)
    assert chosen.image_pull_secrets == ("one", "two")
    assert chosen.progress.url == "https://tunesmith.tunesmith-system.svc:443"
    assert (chosen.lease.enabled, chosen.lease.namespace) == (True, "tunesmith-system")
    assert operator_pod(objects)["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}]


def test_the_images_default_to_the_charts_version(render: Render) -> None:
    objects = render()
    assert operator_pod(objects)["containers"][0]["image"] == f"tunesmith-operator:{tunesmith.__version__}"
    assert environment(objects)["TUNESMITH_SERVING_IMAGE"] == f"tunesmith-serving:{tunesmith.__version__}"


def test_the_certificate_is_for_the_name_that_training_pods_use(render: Render, tmp_path: Path) -> None:
    secret = of_kind(render(), "Secret")["tunesmith-progress-tls"]
    for name, data in secret["data"].items():
        (tmp_path / name).write_bytes(base64.b64decode(data))
    verify = ["openssl", "verify", "-CAfile", "ca.crt", "-verify_hostname", "tunesmith.tunesmith-system.svc", "tls.crt"]
    done = subprocess.run(verify, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_named_certificate_is_used_and_none_is_made(render: Render) -> None:
    objects = render("progress.tls.existingSecret=mine")
    assert not of_kind(objects, "Secret")
    assert "mine" in json.dumps(operator_pod(objects)["volumes"])


def test_without_progress_nothing_of_it_is_left(render: Render) -> None:
    objects = render("progress.enabled=false")
    assert not re.search(r"tls|tokenreview|8443|PROGRESS", json.dumps([entry for entry in objects if entry["kind"] != "CustomResourceDefinition"]))


@pytest.mark.parametrize("wrong", ["image.repository=a", "imagePullPolicy=Sometimes", "operator.workers=0", "replicas=3"])
def test_a_value_that_means_nothing_is_refused(render: Render, wrong: str) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        render(wrong)


def test_the_clusters_view_and_edit_cover_the_three_kinds(render: Render) -> None:
    roles = of_kind(render(), "ClusterRole")
    assert roles["tunesmith-view"]["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert roles["tunesmith-edit"]["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    kinds = {resource.plural for resource in RESOURCES.values() if resource.ours}
    assert kinds <= set(roles["tunesmith-view"]["rules"][0]["resources"])
    assert kinds == set(roles["tunesmith-edit"]["rules"][0]["resources"])
    assert "tunesmith-edit" not in of_kind(render("rbac.aggregate=false"), "ClusterRole")


def test_by_default_nothing_is_made_that_a_cluster_may_lack_or_be_cut_off_by(render: Render) -> None:
    assert not {"PodMonitor", "NetworkPolicy", "PodDisruptionBudget"} & {entry["kind"] for entry in render()}


def test_the_operators_policy_lets_in_the_pods_it_makes_and_out_to_the_api_server(render: Render) -> None:
    policy = of_kind(render("networkPolicy.operator=true", "networkPolicy.apiServerPorts={16443}"), "NetworkPolicy")["tunesmith"]["spec"]
    progress, metrics = policy["ingress"]
    labels = objects.MANAGED_BY
    assert progress == {
        "ports": [{"port": "progress", "protocol": "TCP"}],
        "from": [{"podSelector": {"matchLabels": labels}, "namespaceSelector": {}}],
    }
    assert metrics == {"ports": [{"port": "health", "protocol": "TCP"}]}
    assert [port["port"] for rule in policy["egress"] for port in rule["ports"]] == [53, 53, 16443]


def test_the_operators_policy_follows_namespaces_and_metrics_from(render: Render) -> None:
    chosen = (
        "networkPolicy.operator=true",
        "namespaces={team-a,team-b}",
        "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.name=monitoring",
    )
    progress, metrics = of_kind(render(*chosen), "NetworkPolicy")["tunesmith"]["spec"]["ingress"]
    (expression,) = progress["from"][0]["namespaceSelector"]["matchExpressions"]
    assert (expression["key"], expression["values"]) == ("kubernetes.io/metadata.name", ["team-a", "team-b"])
    assert metrics["from"] == [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]


def test_policies_of_models_can_be_left_to_others(render: Render) -> None:
    assert settings.from_environment(environment(render())).network_policies is True
    assert settings.from_environment(environment(render("networkPolicy.models=false"))).network_policies is False
    assert settings.from_environment(environment(render("networkPolicy.models=false"))).stage_policies is True
    assert settings.from_environment(environment(render("networkPolicy.stages=false"))).stage_policies is False


@pytest.mark.parametrize(
    ("kind", "setting"), [("PodMonitor", "monitoring.podMonitor.enabled=true"), ("PodDisruptionBudget", "podDisruptionBudget.enabled=true")]
)
def test_monitor_and_budget_select_the_operators_pod(render: Render, kind: str, setting: str) -> None:
    objects = render(setting)
    labels = of_kind(objects, "Deployment")["tunesmith"]["spec"]["template"]["metadata"]["labels"]
    assert of_kind(objects, kind)["tunesmith"]["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_the_monitor_scrapes_a_port_that_the_pod_has_and_carries_your_labels(render: Render) -> None:
    objects = render("monitoring.podMonitor.enabled=true", "monitoring.podMonitor.labels.release=prometheus")
    monitor = of_kind(objects, "PodMonitor")["tunesmith"]
    ports = {port["name"] for port in operator_pod(objects)["containers"][0]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= ports
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_where_the_operator_runs_can_be_chosen(render: Render) -> None:
    chosen = ("operator.priorityClassName=high", "operator.nodeSelector.pool=system", "operator.tolerations[0].operator=Exists")
    pod = operator_pod(render(*chosen, "operator.podAnnotations.team=ml", "operator.resources.limits.memory=1Gi"))
    assert (pod["priorityClassName"], pod["nodeSelector"], pod["tolerations"]) == ("high", {"pool": "system"}, [{"operator": "Exists"}])
    assert pod["containers"][0]["resources"]["limits"] == {"memory": "1Gi"}


def objects_of(schema: dict[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every schema of an object with the path it stands at."""
    found = [(path, schema)] if schema.get("type") == "object" else []
    return found + [entry for name, each in schema.get("properties", {}).items() for entry in objects_of(each, f"{path}.{name}")]


def test_every_value_is_known_to_the_schema_and_every_block_refuses_others() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    # Of Kubernetes' own types, or Helm's: what they hold is checked by the API server, or is not the chart's.
    foreign = {".global", ".operator.resources", ".operator.affinity"}
    loose = {path for path, block in objects_of(schema) if block.get("additionalProperties") is not False}
    assert loose == foreign

    def check(block: dict[str, Any], described: dict[str, Any], path: str) -> None:
        for name, value in block.items():
            assert name in described.get("properties", {}), f"{path}.{name} is missing in values.schema.json"
            inner = described["properties"][name]
            if isinstance(value, dict) and inner.get("properties"):
                check(value, inner, f"{path}.{name}")

    check(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("operator.replicaCount=2", "additional properties 'replicaCount' not allowed"),
        ("imagePullPolicy=Sometimes", "/imagePullPolicy"),
        ("namespaces={Team_A}", "/namespaces/0"),
        ("networkPolicy.apiServerPorts={0}", "/networkPolicy/apiServerPorts/0"),
    ],
)
def test_a_refused_value_is_named(helm: str, wrong: str, told: str) -> None:
    done = subprocess.run([helm, "template", "tunesmith", str(CHART), "--set", wrong], capture_output=True, text=True)
    assert done.returncode != 0
    assert told in done.stderr


def test_the_notes_say_how_to_look_and_what_uninstalling_leaves(helm: str) -> None:
    command = [helm, "install", "tunesmith", str(CHART), "--namespace=tunesmith-system", "--dry-run=client"]
    done = subprocess.run(command, capture_output=True, text=True)
    notes = done.stdout.partition("NOTES:")[2]
    assert "kubectl get tunesmith --all-namespaces" in notes, done.stderr
    assert "kubectl delete crd" in notes
