"""The control plane's flags and ports."""

from pathlib import Path

from dev.cluster.controlplane import FLAGS, PROCESSES, Ports, Settings
from dev.cluster.ports import free_ports


def settings(address="127.0.0.1", **changes):
    return Settings(Path("/state"), address, Ports(2379, 2380, 6443), **changes)


def test_every_process_has_flags():
    assert set(FLAGS) == set(PROCESSES)


def test_free_ports_are_different():
    assert len(set(free_ports(3))) == 3


def test_the_api_server_authorizes_audits_and_aggregates():
    flags = FLAGS["kube-apiserver"](settings())
    assert "--authorization-mode=Node,RBAC" in flags
    assert {"--audit-log-path=/state/audit.log", "--audit-log-maxsize=2048"} <= set(flags)
    assert "--enable-aggregator-routing=true" in flags
    assert "--requestheader-client-ca-file=/state/pki/front-proxy-ca.crt" in flags
    assert "--proxy-client-cert-file=/state/pki/front-proxy-client.crt" in flags


def test_pod_security_admission_is_not_turned_off():
    flags = FLAGS["kube-apiserver"](settings())
    assert not any(flag.startswith("--disable-admission-plugins") for flag in flags)


def test_loopback_is_no_endpoint_of_the_kubernetes_service():
    assert "--endpoint-reconciler-type=none" in FLAGS["kube-apiserver"](settings())
    assert "--endpoint-reconciler-type=none" not in FLAGS["kube-apiserver"](settings("10.89.0.1"))


def test_the_controller_manager_keeps_its_default_client_limits():
    flags = FLAGS["kube-controller-manager"](settings())
    assert not any("kube-api-qps" in flag or "kube-api-burst" in flag for flag in flags)


def test_extra_flags_come_last_so_that_they_win():
    extra = settings(controller_manager_flags=("--kube-api-qps=1000",))
    assert FLAGS["kube-controller-manager"](extra)[-1] == "--kube-api-qps=1000"


def test_service_address_is_the_first_of_the_range():
    assert settings().service_address == "10.96.0.1"
