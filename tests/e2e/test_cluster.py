"""The development cluster keeps what the other tests rely on. (Its end is tested in tests/e2e_down.)"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import urllib.request
from collections.abc import Iterator

import pytest

from dev.cluster.cluster import Cluster
from dev.demo.kube import DemoError, Kube
from dev.demo.stack import Stack
from tests.e2e import cluster_pods as pods

NAMESPACE = "cluster-test"
# Until a server listens and each node's proxy knows of it, its Service refuses.
ASK = """
import time, urllib.request
deadline = time.monotonic() + 30
while True:
    try:
        print(urllib.request.urlopen("{url}", timeout=10).status)
        break
    except OSError:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.2)
"""


@pytest.fixture(scope="module")
def here(stack: Stack) -> Iterator[Kube]:
    """kubectl in a restricted namespace with a shared volume and a web server on each node."""
    if not stack.ours:
        pytest.skip("KUBECONFIG names a cluster that is not the development cluster")
    kube = dataclasses.replace(stack.kube, namespace=NAMESPACE)
    kube.apply(pods.restricted_namespace(NAMESPACE))
    kube.apply(pods.shared_claim("data"))
    for name, node in (("one", "n1"), ("two", "n2")):
        kube.apply(pods.pod(name, node, "python3", "-m", "http.server", "8000", "--directory", "/data", claim="data"))
        kube.apply(pods.service(name, 8000))
    kube.run("wait", "pod", "--all", "--for=condition=Ready", "--timeout=120s")
    yield kube
    kube.run("delete", "namespace", NAMESPACE, "--wait=false")


def python(kube: Kube, pod: str, program: str) -> str:
    return kube.run("exec", pod, "--", "python3", "-c", program).strip()


def test_both_nodes_are_ready(here: Kube) -> None:
    here.run("wait", "node/n1", "node/n2", "--for=condition=Ready", "--timeout=10s")


def test_a_name_leads_to_a_pod_on_the_other_node(here: Kube) -> None:
    for pod, other in (("one", "two"), ("two", "one")):
        url = f"http://{other}.{NAMESPACE}.svc.cluster.local:8000/"
        assert python(here, pod, ASK.format(url=url)) == "200"


def test_pods_reach_the_api_server_at_its_service(here: Kube) -> None:
    program = "import socket; socket.create_connection(('kubernetes.default', 443), 10); print('connected')"
    assert python(here, "two", program) == "connected"


def test_the_host_reaches_services_and_pods(here: Kube) -> None:
    addresses = [here.get("service", "two")["spec"]["clusterIP"], here.get("pod", "two")["status"]["podIP"]]
    for address in addresses:
        with urllib.request.urlopen(f"http://{address}:8000/", timeout=10) as answer:
            assert answer.status == 200


def test_a_volume_written_on_one_node_is_read_on_the_other_without_root(here: Kube) -> None:
    assert python(here, "one", "import os; open('/data/note', 'w').write(str(os.getuid()))") == ""
    assert python(here, "two", "print(open('/data/note').read())") == str(pods.USER)
    # The other way round too: into what the first one's user made.
    assert python(here, "two", "open('/data/note', 'a').write('!')") == ""
    assert python(here, "one", "print(open('/data/note').read())") == f"{pods.USER}!"


def test_each_node_offers_four_gpus_and_a_pod_gets_what_it_asks_for(here: Kube) -> None:
    for node in here.get("nodes")["items"]:
        assert node["status"]["allocatable"]["nvidia.com/gpu"] == "4"
    here.apply(pods.pod("gpus", "n1", "sh", "-c", "echo $NVIDIA_VISIBLE_DEVICES", gpus=2))
    here.run("wait", "pod/gpus", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
    assert len(here.run("logs", "gpus").strip().split(",")) == 2


def test_pod_security_refuses_a_privileged_pod(here: Kube) -> None:
    privileged = pods.pod("privileged", "n1", "true")
    privileged["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    with pytest.raises(DemoError, match="violates PodSecurity"):
        here.apply(privileged)


def test_the_api_server_writes_down_who_did_what(here: Kube) -> None:
    log = Cluster().control_plane.audit_log.read_text().splitlines()
    creations = [json.loads(line) for line in log if f"/namespaces/{NAMESPACE}/pods/one?" in line]
    assert any(event["user"]["username"] == "admin" and event["level"] == "Metadata" for event in creations)


def test_containers_may_open_more_than_1024_files(here: Kube) -> None:
    limit = python(here, "one", "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])")
    assert int(limit) > 1024


def test_a_second_cluster_is_refused_in_one_sentence(here: Kube) -> None:
    done = subprocess.run(["python3", "-m", "dev.cluster", "up"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: the cluster is running already: python3 -m dev.cluster down\n"
