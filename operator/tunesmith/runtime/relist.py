"""Lists on their way into the store, page by page: that of a large cluster is never in memory as a whole."""

from __future__ import annotations

from collections.abc import AsyncIterator

from tunesmith.core.objects import LABEL_UID, Key
from tunesmith.runtime.cache import Store
from tunesmith.runtime.client import Cluster


async def relist(cluster: Cluster, store: Store, kind: str, namespace: str | None, uid: str | None = None) -> AsyncIterator[frozenset[Key]]:
    """List the objects of `kind` in `namespace` (None: in all), or what there belongs to the object with that `uid`, and put the store right.

    Yields the keys that each page concerns, at once, for one after it may fail to come; in the end those that what is gone concerns.
    """
    present: set[str] = set()
    version = 0
    async for page, listed_at in cluster.pages(kind, namespace, None if uid is None else f"{LABEL_UID}={uid}"):
        version = listed_at
        yield frozenset[Key]().union(*map(store.put, page))
        present.update(item["metadata"]["uid"] for item in page)
    yield store.sweep(kind, present, version, namespace, uid)
