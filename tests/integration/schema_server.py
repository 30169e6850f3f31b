"""The API server, spoken to without a client library, so that nothing between hides a warning or mends a body."""

from __future__ import annotations

import base64
import copy
import http.client
import itertools
import json
import select
import ssl
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dev.cluster import tools
from dev.cluster.controlplane import ControlPlane
from dev.cluster.processes import wait_until
from tunesmith import crd
from tunesmith.api.kind import Kind
from tunesmith.core.objects import API_VERSION
from tunesmith.kinds import KINDS

Object = dict[str, Any]

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
PLURALS = {kind.name: kind.plural for kind in KINDS.values()}
_numbers = itertools.count()


def manifest(kind: str, spec: Object, name: str | None = None) -> Object:
    """An object of that kind, under a new name unless one is given."""
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name or f"object-{next(_numbers)}"}, "spec": spec}


@dataclass
class Answer:
    """What the API server said."""

    code: int
    body: Object
    warnings: list[str]

    @property
    def refused(self) -> dict[str, str]:
        """The messages by the path that each names; paths are empty in a success."""
        causes = self.body.get("details", {}).get("causes", ()) if self.code >= 400 else ()
        messages: dict[str, list[str]] = {}
        for cause in causes:
            messages.setdefault(cause.get("field", ""), []).append(cause["message"])
        return {field: "; ".join(told) for field, told in messages.items()}


class Connections:
    """Connections to one server that are kept: a new one for each look would be a TLS handshake. Threads never share one at a time."""

    def __init__(self, url: str, context: ssl.SSLContext) -> None:
        self._address, self._context = urlsplit(url).netloc, context
        self._idle: deque[http.client.HTTPSConnection] = deque()

    @contextmanager
    def one(self) -> Iterator[http.client.HTTPSConnection]:
        """A connection for one request; one on which that fails is not kept."""
        connection = self._take()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)

    def _take(self) -> http.client.HTTPSConnection:
        while self._idle:
            connection = self._idle.pop()
            # What can be read before anything was asked is its end.
            if connection.sock is not None and not select.select([connection.sock], [], [], 0)[0]:
                return connection
            connection.close()
        return http.client.HTTPSConnection(self._address, timeout=30, context=self._context)

    def __del__(self) -> None:
        for connection in self._idle:
            connection.close()


@dataclass
class Server:
    """A control plane's API server with our CRDs."""

    url: str
    context: ssl.SSLContext
    kubeconfig: Path
    connections: Connections = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.connections = Connections(self.url, self.context)

    @classmethod
    def of(cls, control_plane: ControlPlane) -> Server:
        """The API server of `control_plane`, as its administrator."""
        return cls(control_plane.server, control_plane.pki.context("admin"), control_plane.kubeconfig)

    def context_without_identity(self) -> ssl.SSLContext:
        """Trusts the server, and brings no certificate."""
        authority = json.loads(self.kubeconfig.read_text())["clusters"][0]["cluster"]["certificate-authority-data"]
        return ssl.create_default_context(cadata=base64.b64decode(authority).decode())

    @classmethod
    def with_kinds(cls, control_plane: ControlPlane) -> Server:
        """The same, with our CRDs."""
        server = cls.of(control_plane)
        for kind in KINDS.values():
            server.install(kind)
        return server

    def send(self, method: str, path: str, body: Object | list[Object] | None = None, content_type: str = "application/json") -> Answer:
        """Send one request; a refusal is an answer too."""
        data = None if body is None else json.dumps(body).encode()
        with self.connections.one() as connection:
            connection.request(method, path, data, {"Content-Type": content_type})
            response = connection.getresponse()
            text = response.read().decode()
        # Of a group that is not served (yet) the server says so in plain words.
        said = json.loads(text) if response.status < 400 or text.startswith("{") else {"message": text}
        return Answer(response.status, said, response.headers.get_all("Warning") or [])

    def path(self, kind: str, name: str = "") -> str:
        """The path of an object of ours in `default`, or of all of its kind."""
        return f"/apis/{API_VERSION}/namespaces/default/{PLURALS[kind]}" + (f"/{name}" if name else "")

    def create(self, kind: str, spec: Object, name: str | None = None, query: str = "?fieldValidation=Strict") -> Answer:
        """POST an object."""
        return self.send("POST", self.path(kind) + query, manifest(kind, spec, name))

    def update(self, created: Answer, change: Callable[[Object], object]) -> Answer:
        """PUT what was created with a changed spec."""
        body = copy.deepcopy(created.body)
        change(body["spec"])
        return self.send("PUT", self.path(body["kind"], body["metadata"]["name"]), body)

    def write_status(self, created: Answer, status: Object) -> Answer:
        """PUT the status of what was created."""
        body = created.body | {"status": status}
        return self.send("PUT", self.path(body["kind"], body["metadata"]["name"]) + "/status", body)

    def kubectl(self, *arguments: str, body: Object | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl, with `body` on its standard input."""
        command = [str(tools.binary("kubectl")), f"--kubeconfig={self.kubeconfig}", *arguments]
        return subprocess.run(command, input=json.dumps(body), capture_output=True, text=True, timeout=60)

    def install(self, kind: Kind) -> None:
        """Apply a kind's CRD and wait until the server serves it."""
        body = crd.manifest(kind)
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{body['metadata']['name']}"
        answer = self.send("PATCH", f"{path}?fieldManager=test&force=true", body, APPLY)
        assert answer.code in (200, 201), answer.body

        def established() -> bool:
            conditions = self.send("GET", path).body.get("status", {}).get("conditions") or []
            holding = {entry["type"] for entry in conditions if entry["status"] == "True"}
            assert "NonStructuralSchema" not in holding, conditions
            return "Established" in holding and self.send("GET", self.path(kind.name)).code == 200

        wait_until(established, f"{path} to be established", 30, interval=0.1)
