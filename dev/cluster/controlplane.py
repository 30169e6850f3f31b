"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler as local processes.

On loopback with free ports it needs neither root nor a network of its own, which is what the
integration tests use; the two-node cluster runs the same class on its bridge's address.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path

from . import tools
from .errors import ClusterError
from .pki import Pki, control_plane_identities
from .ports import free_ports
from .processes import ProcessTable, wait_until

AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
# Health probes and kubelet heartbeats would be most of the log and say nothing about us.
- level: None
  nonResourceURLs: ["/healthz*", "/livez*", "/readyz*"]
- level: None
  userGroups: ["system:nodes"]
  resources: [{group: coordination.k8s.io, resources: [leases]}]
- level: Metadata
"""
PROCESSES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


@dataclass(frozen=True)
class Ports:
    """TCP ports of the control plane."""

    etcd: int
    etcd_peer: int
    apiserver: int


@dataclass(frozen=True)
class Settings:
    """What the flags of the four processes are made from."""

    state: Path
    address: str
    ports: Ports
    service_cidr: str = "10.96.0.0/16"
    apiserver_flags: Sequence[str] = ()
    controller_manager_flags: Sequence[str] = ()
    scheduler_flags: Sequence[str] = ()
    secrets: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "secrets", self.state / "pki")

    @property
    def service_address(self) -> str:
        """The address of the `kubernetes` Service: the first one of the range."""
        return str(ip_network(self.service_cidr)[1])

    @property
    def server(self) -> str:
        """The API server's URL."""
        return f"https://{self.address}:{self.ports.apiserver}"


def etcd_flags(settings: Settings) -> list[str]:
    """etcd on loopback. Without fsync: the data does not outlive the machine anyway."""
    client = f"http://127.0.0.1:{settings.ports.etcd}"
    peer = f"http://127.0.0.1:{settings.ports.etcd_peer}"
    return [
        f"--data-dir={settings.state / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def apiserver_flags(settings: Settings) -> list[str]:
    """kube-apiserver: RBAC and Node authorization, audit log, aggregation, Pod Security."""
    return [
        f"--etcd-servers=http://127.0.0.1:{settings.ports.etcd}",
        *_apiserver_address_flags(settings),
        *_apiserver_identity_flags(settings.secrets),
        f"--service-cluster-ip-range={settings.service_cidr}",
        "--authorization-mode=Node,RBAC",
        # Pod Security admission is on by default; NodeRestriction is not.
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--audit-policy-file={settings.state / 'audit-policy.yaml'}",
        f"--audit-log-path={settings.state / 'audit.log'}",
        # MiB. Who counts requests reads one file: at the default, 100, a long benchmark's first writes would be in another one.
        "--audit-log-maxsize=2048",
        "--audit-log-maxbackup=1",
        *settings.apiserver_flags,
    ]


def _apiserver_address_flags(settings: Settings) -> list[str]:
    flags = [
        f"--bind-address={settings.address}",
        f"--advertise-address={settings.address}",
        f"--secure-port={settings.ports.apiserver}",
        "--kubelet-preferred-address-types=InternalIP",
        # Extension API servers are reached at their pods, as kube-proxy does not run here.
        "--enable-aggregator-routing=true",
    ]
    if ip_address(settings.address).is_loopback:
        # A loopback address is refused as an endpoint of the `kubernetes` Service.
        flags.append("--endpoint-reconciler-type=none")
    return flags


def _apiserver_identity_flags(secrets: Path) -> list[str]:
    return [
        f"--client-ca-file={secrets}/ca.crt",
        f"--tls-cert-file={secrets}/apiserver.crt",
        f"--tls-private-key-file={secrets}/apiserver.key",
        f"--kubelet-client-certificate={secrets}/apiserver-kubelet.crt",
        f"--kubelet-client-key={secrets}/apiserver-kubelet.key",
        f"--kubelet-certificate-authority={secrets}/ca.crt",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={secrets}/service-account.pub",
        f"--service-account-signing-key-file={secrets}/service-account.key",
        f"--requestheader-client-ca-file={secrets}/front-proxy-ca.crt",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={secrets}/front-proxy-client.crt",
        f"--proxy-client-key-file={secrets}/front-proxy-client.key",
    ]


def controller_manager_flags(settings: Settings) -> list[str]:
    """kube-controller-manager with its default client limits (20 per second, bursts of 30)."""
    secrets = settings.secrets
    return [
        *_client_flags(secrets / "controller-manager.kubeconfig"),
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={secrets}/service-account.key",
        f"--root-ca-file={secrets}/ca.crt",
        f"--cluster-signing-cert-file={secrets}/ca.crt",
        f"--cluster-signing-key-file={secrets}/ca.key",
        *settings.controller_manager_flags,
    ]


def scheduler_flags(settings: Settings) -> list[str]:
    """kube-scheduler with its default configuration."""
    kubeconfig = settings.secrets / "scheduler.kubeconfig"
    return [*_client_flags(kubeconfig), *settings.scheduler_flags]


def _client_flags(kubeconfig: Path) -> list[str]:
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        # One instance each, and no HTTPS port of its own that a second cluster would clash with.
        "--leader-elect=false",
        "--secure-port=0",
    ]


FLAGS: dict[str, Callable[[Settings], list[str]]] = {
    "etcd": etcd_flags,
    "kube-apiserver": apiserver_flags,
    "kube-controller-manager": controller_manager_flags,
    "kube-scheduler": scheduler_flags,
}


class ControlPlane:
    """A control plane with all its files in one folder; start, stop and start again at will.

    `start` returns when the API server is ready and the controllers have begun their work.
    Stopping keeps etcd's data, so a second `start` of the same object goes on where it was.
    With `die_with_parent` the processes end with the thread that started them.
    """

    def __init__(
        self,
        state: Path,
        *,
        address: str = "127.0.0.1",
        ports: Ports | None = None,
        service_cidr: str = "10.96.0.0/16",
        apiserver_flags: Sequence[str] = (),
        controller_manager_flags: Sequence[str] = (),
        scheduler_flags: Sequence[str] = (),
        find: Callable[[str], Path] = tools.binary,
        die_with_parent: bool = True,
    ) -> None:
        self.settings = Settings(
            state.resolve(),
            address,
            ports or Ports(*free_ports(3)),
            service_cidr,
            tuple(apiserver_flags),
            tuple(controller_manager_flags),
            tuple(scheduler_flags),
        )
        self.processes = ProcessTable(self.settings.state)
        self.pki = Pki(self.settings.secrets)
        self._find = find
        self._die_with_parent = die_with_parent

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.settings.state / "kubeconfig"

    @property
    def audit_log(self) -> Path:
        """The API server's audit log: one JSON object a line, at level Metadata."""
        return self.settings.state / "audit.log"

    @property
    def server(self) -> str:
        """The API server's URL."""
        return self.settings.server

    def prepare(self) -> None:
        """Make the certificates, kubeconfigs and files that the processes read."""
        self.settings.state.mkdir(parents=True, exist_ok=True)
        self.pki.create_authorities()
        service_address = self.settings.service_address
        for identity in control_plane_identities(self.settings.address, service_address):
            self.pki.issue(identity)
        for name in ("controller-manager", "scheduler", "proxy"):
            self.pki.write_kubeconfig(name, self.server)
        self.pki.write_kubeconfig("admin", self.server, self.kubeconfig)
        (self.settings.state / "audit-policy.yaml").write_text(AUDIT_POLICY)

    def start(self, timeout: float = 90.0) -> None:
        """Start the four processes and wait until the API server is ready."""
        self.prepare()
        try:
            self.start_process("etcd")
            self.start_process("kube-apiserver")
            self.wait_ready(timeout)
            # These two would give up after 10 s without an API server.
            self.start_process("kube-controller-manager")
            self.start_process("kube-scheduler")
            self.wait_controllers(timeout)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the processes at once; etcd's files survive that."""
        for name in reversed(PROCESSES):
            self.stop_process(name)

    def start_process(self, name: str) -> None:
        """Start one of PROCESSES, such as one that a test has stopped."""
        command = [str(self._find(name)), *FLAGS[name](self.settings)]
        self.processes.start(name, command, die_with_parent=self._die_with_parent)

    def stop_process(self, name: str, *, grace: float = 0.0) -> None:
        """Kill one of PROCESSES, after a grace period if one is given."""
        self.processes.stop(name, grace=grace)

    def wait_ready(self, timeout: float = 90.0) -> None:
        """Wait until the API server answers /readyz; fail early when a process has ended."""

        def ready() -> bool:
            for name in ("etcd", "kube-apiserver"):
                if self.processes.pid(name) is None:
                    raise ClusterError(f"{name} has ended:\n{self.processes.tail(name)}")
            return self.is_ready()

        wait_until(ready, "the API server to be ready", timeout, interval=0.1)

    def is_ready(self) -> bool:
        """Whether /readyz says so now."""
        return self._get_succeeds("/readyz")

    def wait_controllers(self, timeout: float = 90.0) -> None:
        """Wait until pods can be created in `default`, that is, its ServiceAccount is there."""
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        what = "the controller-manager to make the default ServiceAccount"
        wait_until(lambda: self._get_succeeds(account), what, timeout, interval=0.1)

    def _get_succeeds(self, path: str) -> bool:
        # No proxy from the environment may come between us and our own API server.
        handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self.pki.context("admin")))
        try:
            opener = urllib.request.build_opener(*handlers)
            with opener.open(self.server + path, timeout=5) as response:
                return bool(response.status == 200)
        except OSError:  # a refused connection, and any status that is not a success
            return False

    def __enter__(self) -> ControlPlane:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
