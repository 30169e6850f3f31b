"""The first process of a node, run as `python3 -m dev.cluster.nodeinit CONFIG`.

It is process 1 of the node's PID namespace: when it is killed, the kernel kills everything in
the node at once, as a power failure would. It takes private views of the folders that kubelet
and containerd insist on, starts the daemons, and then collects orphans for ever.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .processes import wait_until

KUBELET_SOCKET = Path("/var/lib/kubelet/device-plugins/kubelet.sock")
CONTAINERD_SOCKET = Path("/run/containerd/containerd.sock")
IMPORT_FLAGS = ("--local", "--discard-unpacked-layers", "--label=io.cri-containerd.pinned=pinned")


def import_command(ctr: str, archive: str) -> list[str]:
    """Import an OCI archive for Kubernetes, pinned: it could not be pulled again."""
    return [ctr, "--namespace", "k8s.io", "images", "import", *IMPORT_FLAGS, archive]


def say(message: str) -> None:
    """A line with the time in the node's own log."""
    print(time.strftime("%H:%M:%S"), message, flush=True)


def isolate(config: dict[str, Any]) -> None:
    """Give the node a name, a /proc and folders of its own."""
    socket.sethostname(config["hostname"])
    _run("mount", "--make-rprivate", "/")
    _run("mount", "-t", "proc", "proc", "/proc")
    for source, target in config["binds"].items():
        _run("mount", "--bind", source, target)
    for target in config["tmpfs"]:
        _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", target)
    # Kubernetes wants mounts that a pod makes to be seen by others: shared, but in here only.
    _run("mount", "--make-rshared", "/")


def connect(config: dict[str, Any]) -> None:
    """Set up the network as soon as the host has put the cable in."""
    wait_until(lambda: any(name == "eth0" for _, name in socket.if_nameindex()), "the cable (eth0)", 60)
    for command in config["network"]:
        _run(*command)
    for name, value in config["sysctls"].items():
        path = Path("/proc/sys") / name
        if path.exists():
            path.write_text(value)


def import_images(config: dict[str, Any]) -> None:
    """Import the images that containerd lacks; after a restart it has them all."""
    listing = [config["ctr"], "--namespace", "k8s.io", "images", "list", "--quiet"]
    present = set(subprocess.run(listing, capture_output=True, text=True).stdout.split())
    for image in config["images"]:
        if image["name"] not in present:
            started = time.monotonic()
            _run(*import_command(config["ctr"], image["archive"]))
            say(f"imported {image['name']} in {time.monotonic() - started:.1f} s")


def start(config: dict[str, Any], name: str) -> None:
    """Start one of the daemons with a log of its own."""
    log = Path(config["logs"]) / f"{config['hostname']}-{name}.log"
    with log.open("ab") as output:
        subprocess.Popen(config[name], stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    say(f"started {name}")


def raise_open_files_limit() -> None:
    """Allow the daemons, and through them the pods, as many open files as we may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(path: str) -> None:
    """Bring the node up and stay."""
    config = json.loads(Path(path).read_text())
    os.environ["PATH"] = ":".join([*config["path"], os.environ["PATH"]])
    raise_open_files_limit()
    isolate(config)
    start(config, "containerd")
    connect(config)
    wait_until(CONTAINERD_SOCKET.exists, "containerd", 60)
    import_images(config)
    KUBELET_SOCKET.unlink(missing_ok=True)  # a stopped node's socket is not a kubelet
    start(config, "kubelet")
    start(config, "kube-proxy")
    wait_until(KUBELET_SOCKET.exists, "kubelet's device plugin socket", 300)
    start(config, "fakegpu")
    while True:
        pid, status = os.wait()
        say(f"process {pid} ended with {os.waitstatus_to_exitcode(status)}")


def _run(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr.strip()}")


if __name__ == "__main__":
    main(sys.argv[1])
