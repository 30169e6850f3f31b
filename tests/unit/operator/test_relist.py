"""A list on its way into the store, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.unit.operator.edge import KINDS, changed, child, key, owner
from tunesmith.core.objects import Key, Object
from tunesmith.runtime.cache import Store
from tunesmith.runtime.client import ApiError
from tunesmith.runtime.relist import relist

VERSION = 10
KEPT, GHOST, YOUNG = owner("kept", 3), owner("ghost", 4), owner("young", VERSION + 2)


class Pages:
    """An API server that lists these pages, and breaks after them if it is to."""

    def __init__(self, *pages: list[Object], broken: bool = False) -> None:
        self.pages_of, self.broken = pages, broken
        self.selector: str | None = None

    async def pages(self, kind: str, namespace: str | None, selector: str | None) -> AsyncIterator[tuple[list[Object], int]]:
        self.selector = selector
        for page in self.pages_of:
            yield page, VERSION
        if self.broken:
            raise ApiError(410, "Expired", "the list has grown too old")


@pytest.fixture
def store() -> Store:
    made = Store({name: kind.references for name, kind in KINDS.items()})
    for obj in (KEPT, GHOST, YOUNG):
        made.put(obj)
    return made


async def told(store: Store, cluster: Any, kind: str = "FineTuneJob", uid: str | None = None) -> list[frozenset[Key]]:
    return [keys async for keys in relist(cluster, store, kind, "team", uid)]


async def test_each_page_is_told_by_itself_and_what_no_page_has_is_removed_at_the_end(store: Store) -> None:
    later, new = changed(KEPT, 9), owner("new", 8)
    assert await told(store, Pages([later], [new])) == [{key(KEPT)}, {key(new)}, {key(GHOST)}]
    assert [store.get(key(obj)) for obj in (GHOST, KEPT, new, YOUNG)] == [None, later, new, YOUNG]


async def test_where_a_page_fails_to_come_those_before_it_are_told_and_nothing_is_removed(store: Store) -> None:
    later, seen = changed(KEPT, 9), []
    cluster: Any = Pages([later], broken=True)
    with pytest.raises(ApiError, match="grown too old"):
        async for keys in relist(cluster, store, "FineTuneJob", "team"):
            seen.append(keys)
    assert seen == [{key(KEPT)}]
    assert store.get(key(GHOST)) == GHOST


async def test_a_list_of_one_objects_pods_leaves_those_of_others_alone(store: Store) -> None:
    pods = [child("Pod", "ours", KEPT), child("Pod", "theirs", YOUNG)]
    for pod in pods:
        store.put(pod)
    found = child("Pod", "unseen", KEPT, 9)
    cluster = Pages([found])
    assert await told(store, cluster, "Pod", "uid-kept") == [{key(KEPT)}, {key(KEPT)}]
    assert cluster.selector == "tunesmith.dev/uid=uid-kept"
    assert store.children("uid-kept") == (found,)
    assert store.children("uid-young") == (pods[1],)
