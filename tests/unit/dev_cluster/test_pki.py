"""Certificates that openssl itself accepts."""

import json
import subprocess

import pytest

from dev.cluster.pki import Pki, control_plane_identities, kubeconfig, node_identities


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    made = Pki(tmp_path_factory.mktemp("pki"))
    made.create_authorities()
    for identity in control_plane_identities("10.0.0.1", "10.96.0.1"):
        made.issue(identity)
    return made


def text_of(path):
    command = ["openssl", "x509", "-in", str(path), "-noout", "-text"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("name", "authority"), [("apiserver", "ca"), ("front-proxy-client", "front-proxy-ca")])
def test_certificates_verify_against_their_authority(pki, name, authority):
    command = ["openssl", "verify", "-CAfile", str(pki.path(f"{authority}.crt"))]
    subprocess.run([*command, str(pki.path(f"{name}.crt"))], check=True, capture_output=True)


def test_a_leaf_is_no_authority(pki):
    assert "CA:FALSE" in text_of(pki.path("admin.crt"))


def test_the_api_server_is_known_by_its_addresses_and_names(pki):
    text = text_of(pki.path("apiserver.crt"))
    for name in ("10.0.0.1", "10.96.0.1", "127.0.0.1", "DNS:kubernetes.default.svc"):
        assert name in text


def test_issuing_again_keeps_the_certificate(pki):
    before = pki.path("admin.crt").read_bytes()
    pki.issue(control_plane_identities("10.0.0.1", "10.96.0.1")[2])
    assert pki.path("admin.crt").read_bytes() == before


def test_keys_and_kubeconfigs_are_private(pki):
    path = pki.write_kubeconfig("admin", "https://10.0.0.1:6443")
    assert path.stat().st_mode & 0o077 == 0
    assert pki.folder.stat().st_mode & 0o077 == 0


def test_a_kubeconfig_needs_no_other_file():
    document = json.loads(kubeconfig("https://x", b"ca", b"cert", b"key"))
    assert document["clusters"][0]["cluster"]["certificate-authority-data"] == "Y2E="


def test_a_node_is_in_the_group_that_node_authorization_knows():
    client, serving = node_identities("n1", "10.89.0.11")
    assert client.subject == "/O=system:nodes/CN=system:node:n1"
    assert "IP:10.89.0.11" in serving.alternatives
