"""kubectl, bound to one cluster and one namespace."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Object = dict[str, Any]


def ours(kind: str, name: str, spec: Object) -> Object:
    """An object of one of our kinds."""
    return {"apiVersion": "tunesmith.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


class DemoError(Exception):
    """Ends the demo with one message for the person at the terminal."""


@dataclass(frozen=True)
class Kube:
    """One cluster, by its kubeconfig."""

    kubectl: str
    kubeconfig: Path
    namespace: str

    def command(self, *arguments: str) -> list[str]:
        """The argument list of a kubectl call."""
        return [self.kubectl, f"--kubeconfig={self.kubeconfig}", f"--namespace={self.namespace}", *arguments]

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        """kubectl's output; raises DemoError with its error text."""
        done = subprocess.run(self.command(*arguments), input=stdin, capture_output=True, text=True)
        if done.returncode:
            raise DemoError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, *arguments: str) -> Object:
        """`kubectl get … -o json`, parsed; of several objects a List."""
        answer: Object = json.loads(self.run("get", *arguments, "--output=json"))
        return answer

    def apply(self, manifest: Object) -> None:
        """Server-side apply of one object."""
        self.run("apply", "--server-side", "--force-conflicts", "--field-manager=demo", "--filename=-", stdin=json.dumps(manifest))

    @contextmanager
    def port_forward(self, target: str, port: int) -> Iterator[str]:
        """Base URL on localhost that reaches `port` of `target` (such as svc/name) while the context lasts."""
        with subprocess.Popen(self.command("port-forward", target, f":{port}"), stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()  # "Forwarding from 127.0.0.1:40123 -> 80"
                if "->" not in line:
                    raise DemoError(f"kubectl port-forward {target} did not start")
                yield "http://" + line.split("from ")[1].split(" ->")[0]
            finally:
                process.terminate()
