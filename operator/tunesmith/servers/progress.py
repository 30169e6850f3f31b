"""The endpoint that training pods report their progress to (KEP-2779's protocol).

`POST /apis/tunesmith.dev/v1alpha1/namespaces/<namespace>/finetunejobs/<name>/status` with `{"trainerStatus": {...}}` and a bearer
token. The token is the pod's own ServiceAccount token for our audience; the API server says which pod it belongs to, and that
pod must be one of that very FineTuneJob's. Reports stay in memory: the status is what keeps them.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import aiohttp
from aiohttp import web
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from tunesmith import metrics
from tunesmith.core.objects import API_VERSION, GROUP, Key, Object, controller_uid
from tunesmith.runtime.cache import Store, owner_uid
from tunesmith.runtime.client import ApiError, Cluster
from tunesmith.settings import ProgressSettings
from tunesmith.workload.podstatus import is_live

logger = logging.getLogger(__name__)

BODY_LIMIT = 64 * 1024
CACHE_SECONDS = 60.0
CACHE_SIZE = 1000
REVIEWS_AT_ONCE = 4
REVIEW_SECONDS, READ_SECONDS = 10.0, 5.0
"""For the API server to say whose a token is, and for a client to say what it has to say: the trainer waits 3 s for both."""
PRINTABLE = r"^\P{C}*$"
PATH = f"/apis/{API_VERSION}/namespaces/{{namespace}}/finetunejobs/{{name}}/status"
_EXTRA = "authentication.kubernetes.io/pod-"


class _Report(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, frozen=True)


class Metric(_Report):
    """One measured value. No control characters: whoever reads the status in a terminal would have them carried out."""

    name: str = Field(max_length=128, pattern=PRINTABLE)
    value: str = Field(max_length=64, pattern=PRINTABLE)


class TrainerStatus(_Report):
    """KEP-2779's fields, bounded; what else is sent is dropped."""

    progress_percentage: int | None = Field(None, ge=0, le=100)
    estimated_remaining_seconds: int | None = Field(None, ge=0, le=2**31 - 1)
    metrics: Annotated[list[Metric], Field(max_length=64)] | None = None
    last_updated_time: AwareDatetime | None = None


class Body(_Report):
    """What is posted."""

    trainer_status: TrainerStatus


@dataclass(frozen=True)
class Caller:
    """The pod that a token belongs to."""

    namespace: str
    pod: str
    uid: str


class Progress:
    """Checks reports and hands them to the store."""

    def __init__(self, cluster: Cluster, store: Store, wake: Callable[[frozenset[Key]], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster = cluster
        self._store = store
        self._wake = wake
        self._clock = clock
        self._callers: OrderedDict[str, tuple[float, Caller | None]] = OrderedDict()
        # Wrong tokens cost a review each; so many at once and no more, whoever floods us.
        self._reviews = asyncio.Semaphore(REVIEWS_AT_ONCE)

    def application(self) -> web.Application:
        """The HTTP application."""
        app = web.Application(client_max_size=BODY_LIMIT)
        app.router.add_post(PATH, self._post)
        return app

    async def _post(self, request: web.Request) -> web.Response:
        try:
            await self._take(request)
        except web.HTTPException as refusal:
            metrics.REPORTS.labels(str(refusal.status)).inc()
            raise
        metrics.REPORTS.labels("200").inc()
        return web.json_response({})

    async def _take(self, request: web.Request) -> None:
        """Take one report in, or raise what is wrong with it. Who asks is checked before what is said is read."""
        try:
            async with asyncio.timeout(REVIEW_SECONDS):
                caller = await self._identify(request.headers.get("Authorization", ""))
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            logger.warning("a token cannot be reviewed: %r", error)
            raise web.HTTPServiceUnavailable(text="the API server does not say now whose token it is\n") from None
        if caller is None:
            raise web.HTTPUnauthorized(text="the token is not a pod's token for this audience\n")
        owner = self._store.get(Key("FineTuneJob", request.match_info["namespace"], request.match_info["name"]))
        if owner is None or not self._belongs(caller, owner):
            raise web.HTTPForbidden(text="the pod is not one of this FineTuneJob's\n")
        report = await _read(request) | {"podUID": caller.uid}
        uid = owner["metadata"]["uid"]
        if not _is_older(report, self._store.progress(uid)):
            self._wake(self._store.report(uid, report))

    def _belongs(self, caller: Caller, owner: Object) -> bool:
        """Whether the caller's pod is live, and is of a Job of `owner`. Labels alone would not do: users can set them."""
        pod = self._store.pod(caller.namespace, caller.pod) if caller.namespace == owner["metadata"]["namespace"] else None
        if pod is None or not is_live(pod) or pod["metadata"]["uid"] != caller.uid or owner_uid(pod) != owner["metadata"]["uid"]:
            return False
        jobs = {child["metadata"]["uid"] for child in self._store.children(owner["metadata"]["uid"]) if child["kind"] == "Job"}
        return controller_uid(pod) in jobs

    async def _identify(self, header: str) -> Caller | None:
        """The pod whose token the header brings; answers of the API server are kept for a minute, under the token's hash."""
        scheme, _, token = header.partition(" ")
        if scheme != "Bearer" or not token:
            return None
        digest = hashlib.sha256(token.encode()).hexdigest()
        known = self._callers.get(digest)
        if known and self._clock() < known[0]:
            return known[1]
        async with self._reviews:
            caller = _caller(await self._cluster.review_token(token, GROUP))
        self._callers[digest] = (self._clock() + CACHE_SECONDS, caller)
        self._callers.move_to_end(digest)
        if len(self._callers) > CACHE_SIZE:
            self._callers.popitem(last=False)
        return caller


async def _read(request: web.Request) -> dict[str, Any]:
    """The report that a request brings."""
    try:
        async with asyncio.timeout(READ_SECONDS):
            body = Body.model_validate_json(await request.read())
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="the report did not come to its end\n") from None
    except ValidationError as error:
        raise web.HTTPBadRequest(text=f"{error.error_count()} fields are wrong\n") from None
    return body.trainer_status.model_dump(by_alias=True, exclude_none=True)


def _is_older(report: Mapping[str, Any], known: Mapping[str, Any] | None) -> bool:
    """Whether `report` was made before the `known` one, by the same pod: the clocks of two need not agree."""
    if known is None or known["podUID"] != report["podUID"] or not {"lastUpdatedTime"} <= report.keys() & known.keys():
        return False
    return bool(report["lastUpdatedTime"] < known["lastUpdatedTime"])


def _caller(review: Object) -> Caller | None:
    """The pod that a TokenReview's status names, if the token is valid, for us, and bound to a pod."""
    if not review.get("authenticated") or GROUP not in review.get("audiences", ()):
        return None
    user = review["user"]
    names, uids = (user.get("extra", {}).get(f"{_EXTRA}{part}") for part in ("name", "uid"))
    prefix, _, account = user.get("username", "").partition("system:serviceaccount:")
    if not names or not uids or prefix:
        return None
    return Caller(account.partition(":")[0], names[0], uids[0])


def tls(settings: ProgressSettings) -> ssl.SSLContext:
    """The endpoint's certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(settings.certificate, settings.key or None)
    return context
