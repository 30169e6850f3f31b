"""Puts the demo's model and data on its volume, through a pod: the way that works on any cluster."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from dev.cluster.processes import wait_until

from .kube import DemoError, Kube, Object

LOADER = "loader"
CLAIMS = ("datasets", "models")


def loader_pod(image: str) -> Object:
    """A pod that sleeps with both claims mounted at `/mnt/pvc`; it passes Pod Security "restricted"."""
    mounts = [{"name": claim, "mountPath": f"/mnt/pvc/{claim}"} for claim in CLAIMS]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": LOADER},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "fsGroup": 65532,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": LOADER,
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", "infinity"],
                    "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
                    "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": mounts,
                }
            ],
            "volumes": [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in CLAIMS],
        },
    }


def fingerprint(folder: Path) -> str:
    """Hash of the names and sizes under `folder` and of the small files' bytes; tells whether the volume has it already."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        if path.stat().st_size < 10_000_000:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def start_loader(kube: Kube, image: str) -> None:
    """Have the loader pod running. One that is there is left alone: another image would restart it under our feet."""
    if not kube.run("get", "pod", LOADER, "--ignore-not-found", "--output=name"):
        kube.apply(loader_pod(image))
    wait_until(lambda: kube.get("pod", LOADER).get("status", {}).get("phase") == "Running", "the loader pod to run", 180, 1)


def upload(kube: Kube, folder: Path, claim: str) -> bool:
    """Copy the content of `folder` to the root of `claim`; False if it is there already."""
    mark = f"/mnt/pvc/{claim}/.seed-{fingerprint(folder)}"
    inside = kube.command("exec", "--stdin", LOADER, "--")
    if subprocess.run([*inside, "test", "-e", mark], capture_output=True, stdin=subprocess.DEVNULL).returncode == 0:
        return False
    # By its entries, not as ".": the volume's root is not ours to change.
    entries = sorted(path.name for path in folder.iterdir())
    target = [*inside, "tar", "--extract", "--no-same-owner", "--no-same-permissions", "--touch", f"--directory=/mnt/pvc/{claim}"]
    with subprocess.Popen(["tar", "--create", "--dereference", f"--directory={folder}", *entries], stdout=subprocess.PIPE) as packed:
        unpacked = subprocess.run(target, stdin=packed.stdout, capture_output=True, text=True)
    if packed.returncode or unpacked.returncode:
        raise DemoError(f"the copy to the volume {claim} failed: {unpacked.stderr.strip()}")
    subprocess.run([*inside, "touch", mark], check=True, stdin=subprocess.DEVNULL)
    return True


def download(kube: Kube, uri: str, target: Path) -> Path:
    """Copy a file or folder `pvc://<claim>/<path>` to `target`; returns where it lies."""
    claim, _, path = uri.removeprefix("pvc://").partition("/")
    target.mkdir(parents=True, exist_ok=True)
    parent, _, name = f"/mnt/pvc/{claim}/{path}".rpartition("/")
    with subprocess.Popen(kube.command("exec", LOADER, "--", "tar", "--create", f"--directory={parent}", name), stdout=subprocess.PIPE) as packed:
        subprocess.run(["tar", "--extract", f"--directory={target}"], stdin=packed.stdout, check=True)
    if packed.returncode:
        raise DemoError(f"{uri} could not be read")
    return target / name
