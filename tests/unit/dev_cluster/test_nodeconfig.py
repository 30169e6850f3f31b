"""A node's configuration files."""

import json
import tomllib
from pathlib import Path

import pytest

from dev.cluster import nodeconfig
from dev.cluster.images import NamedArchive
from dev.cluster.topology import Node, nodes

SECRETS = Path("/state/pki")
BINARIES = {name: Path("/bin") / name for name in ("kubelet", "kube-proxy", "fakegpu", "containerd", "containerd-shim-runc-v2", "ctr")}


def test_the_kubelet_works_with_either_cgroup_version_and_never_loses_images():
    config = nodeconfig.kubelet_config(Node(1), SECRETS)
    assert config["failCgroupV1"] is False
    assert config["cgroupDriver"] == "cgroupfs"
    assert config["cgroupRoot"] == "/tunesmith/n1"
    assert config["imageGCHighThresholdPercent"] == 100


def test_the_kubelet_admits_nobody_anonymous():
    config = nodeconfig.kubelet_config(Node(1), SECRETS)
    assert config["authentication"]["anonymous"] == {"enabled": False}
    assert config["authorization"] == {"mode": "Webhook"}


def test_kube_proxy_leaves_the_hosts_connection_tracking_alone():
    conntrack = nodeconfig.kube_proxy_config(Node(1), SECRETS)["conntrack"]
    assert {str(value) for value in conntrack.values()} == {"0", "0s"}


def test_pods_addresses_are_not_translated():
    bridge = nodeconfig.cni_config(Node(2))["plugins"][0]
    assert bridge["ipMasq"] is False
    assert bridge["ipam"]["ranges"] == [[{"subnet": "10.244.2.0/24"}]]


@pytest.mark.parametrize("base_spec", [None, Path("/node/base-spec.json")])
def test_containerd_configuration_is_toml(base_spec):
    config = tomllib.loads(nodeconfig.containerd_config(base_spec))
    runtime = config["plugins"]["io.containerd.cri.v1.runtime"]
    runc = runtime["containerd"]["runtimes"]["runc"]
    assert runtime["restrict_oom_score_adj"] is True
    assert runc["options"]["SystemdCgroup"] is False
    assert runc.get("base_runtime_spec") == (str(base_spec) if base_spec else None)


def test_binds_are_read_only_and_open_files_unlimited():
    default = {"process": {"rlimits": [{"type": "RLIMIT_NOFILE"}]}, "mounts": [{"type": "proc"}]}
    spec = nodeconfig.base_runtime_spec(default, {"trainer": Path("/envs/trainer-1")})
    assert "rlimits" not in spec["process"]
    assert spec["mounts"][0] == {"type": "proc"}
    assert spec["mounts"][1]["destination"] == "/opt/trainer"
    assert spec["mounts"][1]["source"] == "/envs/trainer-1"
    assert "ro" in spec["mounts"][1]["options"]
    assert len(default["mounts"]) == 1, "the default must not change"


def test_files_of_a_node_without_binds_leave_containers_alone():
    files = nodeconfig.node_files(Node(1), SECRETS, None, {})
    assert "base-spec.json" not in files
    assert "base_runtime_spec" not in files["containerd.toml"]
    assert json.loads(files["cni-config/10-tunesmith.conflist"])["cniVersion"] == "1.0.0"


def test_files_of_a_node_with_binds_name_the_spec():
    files = nodeconfig.node_files(Node(1), SECRETS, {"mounts": []}, {"operator": Path("/x")})
    assert "base-spec.json" in files["containerd.toml"]
    assert json.loads(files["base-spec.json"])["mounts"][0]["destination"] == "/opt/operator"


def test_init_knows_the_way_to_the_other_node():
    first, second = nodes(2)
    images = [NamedArchive("localhost/a:1", Path("/a.tar"))]
    config = nodeconfig.init_config(first, [first, second], Path("/state"), BINARIES, images)
    assert ["ip", "route", "add", second.pod_cidr, "via", second.address] in config["network"]
    assert config["images"] == [{"name": "localhost/a:1", "archive": "/a.tar"}]
    assert json.dumps(config), "init reads it from a file"
