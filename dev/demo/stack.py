"""A Kubernetes with the operator on it: the development cluster, or the one that $KUBECONFIG names."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dev import images as built_images
from dev.cluster import environments, images, paths, preflight, tools
from dev.cluster.cluster import Cluster

from .kube import DemoError, Kube

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "tunesmith-demo"
SYSTEM = "tunesmith-system"
REAL_IMAGES = "TUNESMITH_REAL_IMAGES"
"""Set: the images of the Containerfiles (`make images`) instead of thin ones with the environments bound into them."""
SPACE_FOR_ALL, SPACE_FOR_THE_REST = 35 << 30, 15 << 30
"""Bytes. With nothing cached 18 GiB of Go's caches, binaries and the tests' environments come first; when Kubernetes is built, the images'
environments (8 GiB where uv cannot link them to its cache) and volumes are yet to come."""
MEMORY = 14 << 30
"""Bytes. The largest pod of the examples asks for 12 GiB, and its node has others; what is sold as 16 GiB shows somewhat less."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Images:
    """References of the three images as the cluster's nodes know them."""

    operator: str
    trainer: str
    serving: str


@dataclass(frozen=True)
class Stack:
    """A cluster with the operator installed."""

    kube: Kube
    images: Images
    ours: bool
    """Whether it is the development cluster (its Service addresses are reachable from here)."""


def given_images() -> Images:
    """The images of a cluster that is not ours, from the environment."""
    names = {part: os.environ.get(f"TUNESMITH_IMAGE_{part.upper()}", "") for part in environments.FOLDERS}
    missing = [f"TUNESMITH_IMAGE_{part.upper()}" for part, name in names.items() if not name]
    if missing:
        raise DemoError(f"KUBECONFIG is set, so set {', '.join(missing)} to images that its nodes can run (README, 'On a cluster of your own')")
    return Images(**names)


def install_chart(helm: str, kubeconfig: Path, built: Images) -> None:
    """helm upgrade --install, waiting until the operator is available."""
    values = {"image": built.operator, "images.trainer": built.trainer, "images.serving": built.serving}
    settings = [argument for key, value in values.items() for argument in ("--set-string", f"{key}={value}")]
    command = [
        helm,
        "upgrade",
        "--install",
        "tunesmith",
        str(ROOT / "helm/tunesmith"),
        f"--kubeconfig={kubeconfig}",
        f"--namespace={SYSTEM}",
        "--create-namespace",
    ]
    done = subprocess.run([*command, *settings, "--wait", "--timeout=90s"], capture_output=True, text=True)
    if done.returncode:
        raise DemoError(f"helm could not install the operator: {done.stderr.strip()}")


def check_machine() -> None:
    """See whether the development cluster and what is to run on it can be here; ClusterError says what is missing."""
    preflight.check_root()
    tools.go_version()
    preflight.require_memory(MEMORY)
    if not all(environments.place(name).exists() for name in environments.FOLDERS):
        preflight.require_space(SPACE_FOR_ALL if tools.missing(tools.CLUSTER) else SPACE_FOR_THE_REST)


def start_cluster(say: Say) -> tuple[Path, Images]:
    """Have the development cluster running with our images on its nodes."""
    check_machine()
    cluster = Cluster()
    if not cluster.is_running():
        preflight.check_network()
    cluster.build(say)
    real = bool(os.environ.get(REAL_IMAGES))
    binds = {} if real else {name: environments.environment(name, report=say) for name in environments.FOLDERS}
    bound = paths.state_root() / "binds.json"
    wanted = json.dumps({name: str(folder) for name, folder in binds.items()})
    if not cluster.is_running():
        say("starting a two-node Kubernetes")
        cluster.up(2, binds, say)
        bound.write_text(wanted)
    elif not bound.exists() or bound.read_text() != wanted:
        raise DemoError("the cluster that runs was not started for this version's environments; run `make down` first")
    built = [built_images.build(name, say) for name in environments.FOLDERS] if real else images.build_thin_images(report=say)
    cluster.load([image.archive for image in built], say)
    return cluster.kubeconfig, Images(*(image.name for image in built))


def bring_up(say: Say) -> Stack:
    """A cluster with the operator installed from its chart."""
    kubeconfig = os.environ.get("KUBECONFIG")
    if kubeconfig:
        path, built = Path(kubeconfig), given_images()
    else:
        path, built = start_cluster(say)
    install_chart(str(tools.binary("helm")), path, built)
    say("operator installed from helm/tunesmith")
    return Stack(Kube(str(tools.binary("kubectl")), path, NAMESPACE), built, not kubeconfig)


def endpoint(cluster: Stack, service: str) -> tuple[str, str]:
    """Base URL of a Service from here, and the command that opens the way first (empty where none is needed)."""
    if cluster.ours:
        return "http://" + cluster.kube.get("service", service)["spec"]["clusterIP"], ""
    return "http://localhost:8080", " ".join(cluster.kube.command("port-forward", f"svc/{service}", "8080:80")) + " &"
