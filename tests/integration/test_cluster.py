"""What the API server's answers are taken for."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator

import pytest
from kubernetes.aio import config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from dev.cluster.controlplane import ControlPlane
from tests.integration.operators import FINE_TUNE_JOB, Namespace
from tunesmith.core.drift import differences, stamp
from tunesmith.core.objects import Object
from tunesmith.runtime.client import Cluster, Conflict, Refused, Unseen
from tunesmith.runtime.resources import RESOURCES, trim
from tunesmith.workload.podspec import child_metadata


@pytest.fixture
async def cluster(control_plane: ControlPlane) -> AsyncIterator[Cluster]:
    configuration = Configuration()
    await config.load_kube_config(str(control_plane.kubeconfig), client_configuration=configuration)
    async with ApiClient(configuration) as client:
        yield Cluster(client)


@pytest.fixture
def tune(space: Namespace) -> Object:
    """A FineTuneJob with no children of its own: should the session's operator run, it has nothing to make for it."""
    return space.create("FineTuneJob", "tune", {**FINE_TUNE_JOB, "suspend": True})


def service(owner: Object, name: str = "child", **ports: int) -> Object:
    entries = [{"name": name, "port": port, "protocol": "TCP", "targetPort": port} for name, port in ports.items()]
    spec = {"ports": entries, "clusterIP": "None"}
    return {"apiVersion": "v1", "kind": "Service", "metadata": child_metadata(owner, name, {}), "spec": spec}


async def test_creating_twice_gives_the_same_object(cluster: Cluster, tune: Object) -> None:
    first = await cluster.create(service(tune, a=1001))
    assert await cluster.create(service(tune, b=1002)) == first


async def test_anothers_object_is_a_name_conflict_for_create_and_apply(cluster: Cluster, space: Namespace, tune: Object) -> None:
    other = space.create("FineTuneJob", "other", {**FINE_TUNE_JOB, "suspend": True})
    await cluster.create(service(other))
    for write in (cluster.create(service(tune)), cluster.apply(service(tune), None)):
        with pytest.raises(Refused) as refused:
            await write
        assert refused.value.reason == "NameConflict"


async def test_an_apply_makes_changes_and_takes_away_and_leaves_no_drift(cluster: Cluster, tune: Object) -> None:
    live = await cluster.apply(stamp(service(tune, a=1001, b=1002)), None)
    less = stamp(service(tune, a=1001))
    assert differences(less, live)
    live = await cluster.apply(less, live)
    assert [port["name"] for port in live["spec"]["ports"]] == ["a"]
    assert not differences(less, live)


async def test_an_apply_of_what_is_there_unseen_shows_it_first_and_then_puts_it_right(cluster: Cluster, space: Namespace, tune: Object) -> None:
    wanted = stamp(service(tune, a=1001))
    made = await cluster.apply(wanted, None)
    space.patch(wanted["kind"], "child", {"metadata": {"labels": {"app.kubernetes.io/managed-by": None, "tunesmith.dev/kind": "Other"}}})
    with pytest.raises(Unseen) as unseen:
        await cluster.apply(wanted, None)
    live = unseen.value.live
    assert live["metadata"]["labels"]["tunesmith.dev/kind"] == "Other"
    answer = await cluster.apply(wanted, live)
    assert not differences(wanted, answer)
    assert answer["metadata"]["uid"] == made["metadata"]["uid"]


async def test_an_apply_over_what_is_gone_does_not_bring_it_back(cluster: Cluster, space: Namespace, tune: Object) -> None:
    live = await cluster.apply(service(tune), None)
    space.delete("Service", "child")
    with pytest.raises(Conflict):
        await cluster.apply(service(tune, a=1001), live)
    assert space.get("Service", "child") is None


async def test_a_deletion_means_this_very_object(cluster: Cluster, space: Namespace, tune: Object) -> None:
    old = await cluster.create(service(tune))
    space.delete("Service", "child")
    new = await cluster.create(service(tune))
    assert await cluster.delete(old) is None
    assert (space.get("Service", "child") or {})["metadata"]["uid"] == new["metadata"]["uid"]
    assert await cluster.delete(new) is None
    assert await cluster.delete(new) is None
    assert space.get("Service", "child") is None


async def test_a_status_computed_from_an_old_version_is_a_conflict(cluster: Cluster, space: Namespace, tune: Object) -> None:
    old = copy.deepcopy(tune)
    space.patch("FineTuneJob", "tune", {"metadata": {"labels": {"team": "red"}}})
    with pytest.raises(Conflict):
        await cluster.write_status(old, {"observedGeneration": 1})


async def test_what_the_server_finds_invalid_is_for_a_person_to_mend(cluster: Cluster, tune: Object) -> None:
    with pytest.raises(Refused) as refused:
        await cluster.create(service(tune, "Not A Name"))
    assert refused.value.reason == "Invalid"


async def test_a_list_comes_in_pages_and_only_what_is_ours(cluster: Cluster, space: Namespace, tune: Object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.runtime.client.PAGE", 2)
    for number in range(5):
        await cluster.create(service(tune, f"child-{number}"))
    pages = [page async for page in cluster.pages("Service", space.name)]
    assert [len(listed) for listed, _ in pages] == [2, 2, 1]
    items = [item for listed, _ in pages for item in listed]
    assert [item["metadata"]["name"] for item in items] == [f"child-{number}" for number in range(5)]
    (version,) = {version for _, version in pages}
    assert version >= max(int(item["metadata"]["resourceVersion"]) for item in items)
    assert items[0] == trim(space.get("Service", "child-0") or {}, RESOURCES["Service"])
