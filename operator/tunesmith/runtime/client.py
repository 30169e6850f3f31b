"""The few calls that the operator makes to the API server, and what their failures mean.

On `kubernetes.aio`'s transport (its authentication, TLS and connection pool) with plain JSON: the generated models would cost
memory and drop fields that they do not know, and the dynamic client would need discovery and a cache file.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from tunesmith import __version__, metrics
from tunesmith.core.objects import FIELD_MANAGER, Object
from tunesmith.runtime.cache import owner_uid, version_of
from tunesmith.runtime.resources import RESOURCES, Resource, trim
from tunesmith.workload import unmade

REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=30)
PAGE = 100
"""A page is in memory as it came, `managedFields` and all: with 1000 FineTuneJobs, pages of 500 were 32 MiB more at the peak."""

JSON = "application/json"
APPLY = "application/apply-patch+yaml"

Query = Sequence[tuple[str, str]]


class ApiError(Exception):
    """The API server said no; unless a subclass says more, trying again later may help."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class NotFound(ApiError):
    """404: the object is not there, or no longer."""


class Conflict(ApiError):
    """409: what the write was computed from is no longer so."""


class Refused(ApiError):
    """The same write would be refused again: a person must change something."""


class Unseen(Exception):
    """What was to be made is there already: it has lost the label that we watch by."""

    def __init__(self, live: Object) -> None:
        super().__init__(f"{live['kind']} {live['metadata']['name']} is there unseen")
        self.live = live


def _error(status: int, body: bytes) -> ApiError:
    """The error that a `Status` answer tells."""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = {}
    reason, message = answer.get("reason") or "Unknown", answer.get("message") or body[:200].decode(errors="replace")
    causes = {cause.get("reason") for cause in (answer.get("details") or {}).get("causes") or ()}
    if status == 404:
        return NotFound(status, reason, message)
    if status == 409:
        return Conflict(status, reason, message)
    # In a namespace that is being deleted there is nothing to mend: our object goes with it.
    if status in (400, 403, 422) and "NamespaceTerminating" not in causes:
        return Refused(status, reason, message)
    return ApiError(status, reason, message)


async def configure() -> Configuration:
    """Where the cluster is that the environment names, and who we are there: the pod's own, else the kubeconfig's."""
    configuration = Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        await config.load_kube_config(client_configuration=configuration)
    return configuration


async def connect(identity: str) -> ApiClient:
    """A client for that cluster; `identity` tells its requests from other replicas' in the audit log."""
    configuration = await configure()
    # Otherwise aiohttp looks for a .netrc, in a thread, before each request. kopf does not trust the environment either.
    configuration.client_session_kwargs = {"trust_env": False}
    client = ApiClient(configuration)
    client.user_agent = f"tunesmith/{__version__} ({identity})"
    return client


class Cluster:
    """The API server."""

    def __init__(self, client: ApiClient, may_write: Callable[[], bool] = lambda: True) -> None:
        """`may_write` is asked before each write, as late as can be."""
        self.client = client
        self._may_write = may_write

    async def create(self, obj: Object) -> Object:
        """POST `obj`. One of that name that belongs to the same owner is as good; another's is a NameConflict."""
        resource = RESOURCES[obj["kind"]]
        try:
            answer = await self.request("POST", resource.path(obj["metadata"]["namespace"]), obj, (("fieldManager", FIELD_MANAGER),))
        except Conflict as error:
            if error.reason != "AlreadyExists":
                raise
            return await self._ours(obj)
        return trim(answer, resource)

    async def apply(self, obj: Object, live: Object | None) -> Object:
        """Apply `obj` server-side over `live`.

        Without `live`, ask first: an apply cannot say "must not exist", and would take over another's object; ours is `Unseen`, for what
        is wanted of it may depend on it. (A POST would keep the fields that a later apply no longer names: it counts as another manager's.)
        """
        resource, metadata = RESOURCES[obj["kind"]], obj["metadata"]
        if live is None:
            with suppress(NotFound):
                raise Unseen(await self._ours(obj))
        else:
            # With its uid the apply is refused, and does not create, when the object is gone in the meantime.
            obj = {**obj, "metadata": {**metadata, "uid": live["metadata"]["uid"]}}
        path = resource.path(metadata["namespace"], metadata["name"])
        answer = await self.request("PATCH", path, obj, (("fieldManager", FIELD_MANAGER), ("force", "true")), APPLY)
        return trim(answer, resource)

    async def delete(self, obj: Object) -> Object | None:
        """Delete `obj`, this very one. Return it as it now is, None if it is gone."""
        resource, metadata = RESOURCES[obj["kind"]], obj["metadata"]
        options: dict[str, Any] = {"propagationPolicy": "Background", "preconditions": {"uid": metadata["uid"]}}
        if obj["kind"] == "Pod" and "deletionTimestamp" in metadata:
            # Its kubelet does not answer: nobody else will ever end it.
            options["gracePeriodSeconds"] = 0
        try:
            answer = await self.request("DELETE", resource.path(metadata["namespace"], metadata["name"]), options)
        except (NotFound, Conflict):
            return None
        pending = answer.get("metadata", {}).get("deletionTimestamp") and options.get("gracePeriodSeconds") != 0
        return trim(answer, resource) if pending else None

    async def write_status(self, owner: Object, status: Object) -> Object:
        """Replace the status of `owner` as it was read; Conflict if it has changed since."""
        resource, metadata = RESOURCES[owner["kind"]], owner["metadata"]
        path = resource.path(metadata["namespace"], metadata["name"], "status")
        answer = await self.request("PUT", path, {**owner, "status": status}, (("fieldManager", FIELD_MANAGER),))
        return trim(answer, resource)

    async def confirm(self, owner: Object) -> None:
        """Ask whether `owner` still is as it was read; Conflict if it is not."""
        resource, metadata = RESOURCES[owner["kind"]], owner["metadata"]
        # As a list, which the operator may ask for anyway.
        found = await self.request("GET", resource.path(metadata["namespace"]), query=(("fieldSelector", f"metadata.name={metadata['name']}"),))
        if [live["metadata"]["resourceVersion"] for live in found["items"]] != [metadata["resourceVersion"]]:
            raise Conflict(409, "Conflict", f"{owner['kind']} {metadata['name']} has changed since it was read")

    async def pages(self, kind: str, namespace: str | None, selector: str | None = None) -> AsyncIterator[tuple[list[Object], int]]:
        """All objects of `kind` that we watch, or those that `selector` takes, page by page; with each the version of the whole list."""
        resource = RESOURCES[kind]
        query = [("limit", str(PAGE)), ("labelSelector", selector or resource.selector)]
        more = ""
        while True:
            answer = await self.request("GET", resource.path(namespace), query=(*query, ("continue", more)) if more else query)
            yield [trim(item, resource) for item in answer["items"]], version_of(answer)
            more = answer["metadata"].get("continue") or ""
            if not more:
                return

    async def serves(self, resource: Resource) -> bool:
        """Whether the API server has that resource, as far as we may know."""
        try:
            answer = await self.request("GET", resource.api_path)
        except (NotFound, Refused):
            return False
        return any(found["name"] == resource.plural for found in answer["resources"])

    async def post_event(self, event: Object) -> None:
        """POST an Event (events.k8s.io/v1); Conflict if it was posted before."""
        await self.request("POST", f"/apis/events.k8s.io/v1/namespaces/{event['metadata']['namespace']}/events", event)

    async def refusal(self, job: Object) -> str:
        """Why the pods of `job` are not made, as its controller says in Events; empty if it says nothing."""
        metadata = job["metadata"]
        chosen = f"involvedObject.uid={metadata['uid']},reason=FailedCreate"
        found = await self.request("GET", f"/api/v1/namespaces/{metadata['namespace']}/events", query=(("fieldSelector", chosen),))
        return unmade.refusal(found["items"], unmade.begun(job))

    async def review_token(self, token: str, audience: str) -> Object:
        """The status of a TokenReview of `token`."""
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token, "audiences": [audience]}}
        answer = await self.request("POST", "/apis/authentication.k8s.io/v1/tokenreviews", review)
        status: Object = answer.get("status") or {}
        return status

    async def _ours(self, obj: Object) -> Object:
        """The live object of `obj`'s name, if it has the same owner."""
        resource, metadata = RESOURCES[obj["kind"]], obj["metadata"]
        live = trim(await self.request("GET", resource.path(metadata["namespace"], metadata["name"])), resource)
        if owner_uid(live) != owner_uid(obj):
            message = f"{obj['kind']} {metadata['name']} exists and belongs to another: delete it, or choose another name"
            raise Refused(409, "NameConflict", message)
        return live

    async def request(
        self, method: str, path: str, body: Object | None = None, query: Query = (), content_type: str = JSON, anew: bool = False
    ) -> Object:
        """One call; the answer as JSON, or the ApiError that it tells. `anew`: with credentials that were just read."""
        # The library's own preparation of a request copies the body, value by value, which took a third of a request's time.
        known = self.client.configuration
        headers = {**self.client.default_headers, "Accept": JSON, "Content-Type": content_type}
        if token := await known.get_api_key_with_prefix("BearerToken"):
            headers["Authorization"] = token
        url = f"{known.host}{path}?{urlencode(query)}" if query else f"{known.host}{path}"
        if method != "GET" and not self._may_write():
            raise ApiError(503, "NotLeading", f"{method} {path} was not sent: another operator may lead by now")
        response = await self.client.call_api(method, url, headers, body, _request_timeout=REQUEST_TIMEOUT)
        data = await response.read()
        metrics.REQUESTS.labels(str(response.status), method).inc()
        if response.status == 401 and not anew:
            # The library reads the token's file once a minute; a token may be replaced and revoked in between.
            fresh = await configure()
            known.api_key, known.refresh_api_key_hook = fresh.api_key, fresh.refresh_api_key_hook
            return await self.request(method, path, body, query, content_type, anew=True)
        if not 200 <= response.status <= 299:
            raise _error(response.status, data)
        answer: Object = json.loads(data)
        return answer
