"""A small volume on one node, which a test may fill."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from dev.cluster import nodes
from dev.cluster.cluster import Cluster
from dev.cluster.errors import ClusterError
from dev.demo.kube import Kube, Object

MIB = 64
FOLDER = "/var/lib/cni/small-volume"
"""On the node, below a folder of which each node has its own."""
NAME = "small"


class SmallVolume:
    """A tmpfs on a node, behind a PersistentVolume and a claim."""

    claim = NAME

    def __init__(self, kube: Kube, cluster: Cluster, number: int) -> None:
        self._kube, self._cluster, self._node = kube, cluster, cluster.node(number)

    def __enter__(self) -> Self:
        self._run("mkdir", "-p", FOLDER)
        self._run("mount", "-t", "tmpfs", "-o", f"size={MIB}m,mode=0777", "tmpfs", FOLDER)
        with ExitStack() as undo:
            undo.callback(self._run, "umount", "--lazy", FOLDER)
            self._kube.apply(self._volume())
            undo.callback(self._kube.run, "delete", f"pv/{NAME}", "--wait=false")
            self._kube.apply(self._claim())
            undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._kube.run("delete", f"pvc/{NAME}", f"pv/{NAME}", "--wait=false")
        self._run("umount", "--lazy", FOLDER)

    @property
    def seen(self) -> Path:
        """Where its files are seen from here."""
        return Path(f"/proc/{nodes.init_pid(self._cluster.processes, self._node)}/root{FOLDER}")

    def fill(self) -> None:
        """Leave no byte."""
        # It ends with an error, when there is no more room.
        with suppress(ClusterError):
            self._run("dd", "if=/dev/zero", f"of={FOLDER}/filler", "bs=64k")

    def make_room(self) -> None:
        """As before."""
        self._run("rm", f"{FOLDER}/filler")

    def _volume(self) -> Object:
        here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [self._node.name]}
        spec = {
            "capacity": {"storage": f"{MIB}Mi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": FOLDER},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        }
        return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": NAME}, "spec": spec}

    def _claim(self) -> Object:
        spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": NAME, "resources": {"requests": {"storage": f"{MIB}Mi"}}}
        return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": NAME}, "spec": spec}

    def _run(self, *command: str) -> None:
        nodes.inside(self._cluster.processes, self._node, *command)
