"""Certificates, keys and kubeconfigs of a cluster, made with the openssl command."""

from __future__ import annotations

import base64
import json
import os
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import packages
from .errors import ClusterError

DAYS = "3650"

# openssl's own default configuration would add CA:TRUE to every certificate.
OPENSSL_CONFIG = "[req]\ndistinguished_name = name\nprompt = no\n[name]\n"


@dataclass(frozen=True)
class Identity:
    """One certificate: its file name, subject, key usage and alternative names."""

    name: str
    subject: str
    usage: str
    alternatives: str = ""
    authority: str = "ca"


def control_plane_identities(address: str, service_address: str) -> list[Identity]:
    """The certificates that the control plane itself needs."""
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    names += ["kubernetes.default.svc.cluster.local", "localhost"]
    addresses = dict.fromkeys(["127.0.0.1", address, service_address])
    alternatives = [f"DNS:{name}" for name in names] + [f"IP:{ip}" for ip in addresses]
    return [
        Identity("apiserver", "/CN=kube-apiserver", "serverAuth", ",".join(alternatives)),
        Identity(
            "apiserver-kubelet",
            "/O=system:masters/CN=kube-apiserver-kubelet-client",
            "clientAuth",
        ),
        Identity("admin", "/O=system:masters/CN=admin", "clientAuth"),
        Identity("controller-manager", "/CN=system:kube-controller-manager", "clientAuth"),
        Identity("scheduler", "/CN=system:kube-scheduler", "clientAuth"),
        Identity("proxy", "/CN=system:kube-proxy", "clientAuth"),
        Identity("front-proxy-client", "/CN=front-proxy-client", "clientAuth", "", "front-proxy-ca"),
    ]


def node_identities(name: str, address: str) -> list[Identity]:
    """A kubelet's client and serving certificates."""
    return [
        Identity(name, f"/O=system:nodes/CN=system:node:{name}", "clientAuth"),
        Identity(
            f"{name}-serving",
            f"/CN={name}",
            "serverAuth",
            f"DNS:{name},IP:{address},IP:127.0.0.1",
        ),
    ]


def certificate_command(identity: Identity, folder: Path) -> list[str]:
    """The openssl call that makes a key and a certificate signed by the authority."""
    extensions = [
        "keyUsage=critical,digitalSignature",
        f"extendedKeyUsage={identity.usage}",
        "basicConstraints=critical,CA:FALSE",
    ]
    if identity.alternatives:
        extensions.append(f"subjectAltName={identity.alternatives}")
    command = _request_command(identity.name, identity.subject, folder)
    command += ["-CA", str(folder / f"{identity.authority}.crt")]
    command += ["-CAkey", str(folder / f"{identity.authority}.key")]
    for extension in extensions:
        command += ["-addext", extension]
    return command


def kubeconfig(server: str, authority: bytes, certificate: bytes, key: bytes) -> str:
    """A kubeconfig that needs no other file. JSON is YAML."""

    def encoded(data: bytes) -> str:
        return base64.b64encode(data).decode()

    user = {"client-certificate-data": encoded(certificate), "client-key-data": encoded(key)}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "tunesmith",
                "cluster": {"server": server, "certificate-authority-data": encoded(authority)},
            }
        ],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": "tunesmith", "context": {"cluster": "tunesmith", "user": "user"}}],
        "current-context": "tunesmith",
    }
    return json.dumps(document, indent=1) + "\n"


class Pki:
    """The certificates in one folder; what is there already is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """A file of the folder, such as `ca.crt`."""
        return self.folder / name

    def context(self, name: str) -> ssl.SSLContext:
        """TLS to what these authorities vouch for, with the certificate of that name."""
        context = ssl.create_default_context(cafile=str(self.path("ca.crt")))
        context.load_cert_chain(self.path(f"{name}.crt"), self.path(f"{name}.key"))
        return context

    def create_authorities(self) -> None:
        """The cluster's CA, the front proxy's CA and the service-account key pair."""
        packages.ensure(print, ["openssl"])
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self.path("openssl.cnf").write_text(OPENSSL_CONFIG)
        for name in ("ca", "front-proxy-ca"):
            if not self.path(f"{name}.crt").exists():
                command = _request_command(name, f"/CN=tunesmith-{name}", self.folder)
                command += ["-addext", "basicConstraints=critical,CA:TRUE"]
                command += ["-addext", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature"]
                _openssl(command)
        if not self.path("service-account.pub").exists():
            key, public = self.path("service-account.key"), self.path("service-account.pub")
            _openssl(["openssl", "genrsa", "-out", str(key), "2048"])
            _openssl(["openssl", "rsa", "-in", str(key), "-pubout", "-out", str(public)])

    def issue(self, identity: Identity) -> None:
        """Make the certificate unless it is there."""
        if not self.path(f"{identity.name}.crt").exists():
            _openssl(certificate_command(identity, self.folder))

    def write_kubeconfig(self, name: str, server: str, target: Path | None = None) -> Path:
        """A kubeconfig for the identity of that name, readable by its owner only."""
        target = target or self.path(f"{name}.kubeconfig")
        text = kubeconfig(
            server,
            self.path("ca.crt").read_bytes(),
            self.path(f"{name}.crt").read_bytes(),
            self.path(f"{name}.key").read_bytes(),
        )
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        return target


def _request_command(name: str, subject: str, folder: Path) -> list[str]:
    return [
        *("openssl", "req", "-x509", "-config", str(folder / "openssl.cnf")),
        *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-days", DAYS, "-subj", subject),
        *("-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.crt")),
    ]


def _openssl(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise ClusterError(f"openssl failed: {result.stderr.strip()}")
