"""The text of a node's configuration files. Pure functions: what they return is tested."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .images import PAUSE_IMAGE, NamedArchive
from .topology import (
    DNS_ADDRESS,
    GPU_RESOURCE,
    GPUS_PER_NODE,
    POD_CIDR,
    Node,
    inside_commands,
)

CNI_PLUGINS = "/usr/lib/cni"
# The paths that kubelet, containerd and the CNI plugins insist on: each node gets its own view.
PRIVATE_FOLDERS = {
    "containerd": "/var/lib/containerd",
    "kubelet": "/var/lib/kubelet",
    "log-pods": "/var/log/pods",
    "log-containers": "/var/log/containers",
    "cni-state": "/var/lib/cni",
    "cni-config": "/etc/cni/net.d",
}
PRIVATE_TMPFS = ("/run/containerd", "/run/netns")
NODE_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    # kube-proxy's rules must see traffic between pods of one node.
    "net/bridge/bridge-nf-call-iptables": "1",
}


def kubelet_config(node: Node, secrets: Path) -> dict[str, Any]:
    """The kubelet's configuration."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "x509": {"clientCAFile": str(secrets / "ca.crt")},
            "webhook": {"enabled": True},
            "anonymous": {"enabled": False},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(secrets / f"{node.name}-serving.crt"),
        "tlsPrivateKeyFile": str(secrets / f"{node.name}-serving.key"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": "cluster.local",
        "volumePluginDir": str(node.folder / "volume-plugins"),
        "resolvConf": str(node.folder / "resolv.conf"),
        # Imported images cannot be pulled again: never collect them, and do not evict pods for
        # a fairly full disk.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {
            "memory.available": "200Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
        },
    }


def kube_proxy_config(node: Node, secrets: Path) -> dict[str, Any]:
    """kube-proxy's configuration. The connection-tracking limits are the host's: left alone."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": str(secrets / "proxy.kubeconfig")},
        "clusterCIDR": POD_CIDR,
        "hostnameOverride": node.name,
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    }


def cni_config(node: Node) -> dict[str, Any]:
    """The pods' network: a bridge in the node, without address translation."""
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": node.pod_cidr}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": "/var/lib/cni",
    }
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": ipam,
    }
    port_map = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": "tunesmith", "plugins": [bridge, port_map]}


def containerd_config(base_spec: Path | None) -> str:
    """containerd's configuration; `base_spec` is the runtime spec that containers start from."""
    base = f"base_runtime_spec = '{base_spec}'" if base_spec else ""
    return f"""\
version = 3
root = '/var/lib/containerd'
state = '/run/containerd'
disabled_plugins = [
  'io.containerd.nri.v1.nri',
  'io.containerd.tracing.processor.v1.otlp',
  'io.containerd.internal.v1.tracing',
]

[grpc]
  address = '/run/containerd/containerd.sock'

[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  discard_unpacked_layers = true
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = '{PAUSE_IMAGE}'

[plugins.'io.containerd.cri.v1.runtime']
  # Without CAP_SYS_RESOURCE a sandbox may not lower its score: every one would fail to start.
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['{CNI_PLUGINS}']
    conf_dir = '/etc/cni/net.d'
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = 'runc'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = 'io.containerd.runc.v2'
      {base}
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        SystemdCgroup = false
"""


def base_runtime_spec(default: Mapping[str, Any], binds: Mapping[str, Path]) -> dict[str, Any]:
    """containerd's default runtime spec with folders bound read-only at /opt/NAME."""
    spec = copy.deepcopy(dict(default))
    # The default would limit containers to 1024 open files.
    spec.get("process", {}).pop("rlimits", None)
    for name, source in sorted(binds.items()):
        mount = {
            "destination": f"/opt/{name}",
            "type": "bind",
            "source": str(source),
            "options": ["rbind", "ro", "nosuid", "nodev"],
        }
        spec.setdefault("mounts", []).append(mount)
    return spec


def init_config(
    node: Node,
    all_nodes: Sequence[Node],
    state: Path,
    binaries: Mapping[str, Path],
    images: Sequence[NamedArchive],
) -> dict[str, Any]:
    """What the node's init does: private folders, network, images and processes."""
    folder, secrets = node.folder, state / "pki"
    kubelet = [
        str(binaries["kubelet"]),
        f"--config={folder / 'kubelet.json'}",
        f"--kubeconfig={secrets / f'{node.name}.kubeconfig'}",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
    ]
    return {
        "hostname": node.name,
        "binds": {str(folder / name): path for name, path in PRIVATE_FOLDERS.items()},
        "tmpfs": list(PRIVATE_TMPFS),
        "network": inside_commands(node, all_nodes),
        "sysctls": NODE_SYSCTLS,
        "logs": str(state / "logs"),
        "path": [str(binaries["containerd-shim-runc-v2"].parent)],
        "ctr": str(binaries["ctr"]),
        "images": [{"name": image.name, "archive": str(image.archive)} for image in images],
        "containerd": [str(binaries["containerd"]), "--config", str(folder / "containerd.toml")],
        "kubelet": kubelet,
        "kube-proxy": [str(binaries["kube-proxy"]), f"--config={folder / 'kube-proxy.json'}"],
        "fakegpu": [str(binaries["fakegpu"]), GPU_RESOURCE, str(GPUS_PER_NODE)],
    }


def node_files(node: Node, secrets: Path, default_spec: Mapping[str, Any] | None, binds: Mapping[str, Path]) -> dict[str, str]:
    """Every configuration file of a node, by its path in the node's folder."""
    spec_path = node.folder / "base-spec.json" if default_spec is not None else None
    files = {
        "kubelet.json": json.dumps(kubelet_config(node, secrets), indent=1),
        "kube-proxy.json": json.dumps(kube_proxy_config(node, secrets), indent=1),
        "cni-config/10-tunesmith.conflist": json.dumps(cni_config(node), indent=1),
        "containerd.toml": containerd_config(spec_path),
        # Pods that do not use the cluster's DNS get this one: it names no server, as there is none.
        "resolv.conf": "options ndots:1\n",
    }
    if default_spec is not None:
        files["base-spec.json"] = json.dumps(base_runtime_spec(default_spec, binds), indent=1)
    return files
