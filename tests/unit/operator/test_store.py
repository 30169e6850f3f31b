"""The store: never back to an older version, ghosts swept, referrers woken."""

from __future__ import annotations

import itertools

import pytest

from tests.unit.operator.edge import KINDS, changed, child, key, owner
from tunesmith.core.objects import Key, Object
from tunesmith.runtime.cache import Store
from tunesmith.runtime.resources import RESOURCES, trim
from tunesmith.stages import gpu_seconds
from tunesmith.workload.podstatus import INDEX_ANNOTATION

TUNE = owner()


@pytest.fixture
def store() -> Store:
    return Store({name: kind.references for name, kind in KINDS.items()})


def test_an_older_version_changes_nothing_and_wakes_nobody(store: Store) -> None:
    newer = changed(TUNE, 7)
    assert store.put(newer) == {key(TUNE)}
    assert store.put(changed(TUNE, 6)) == frozenset()
    assert store.put(newer) == frozenset()
    assert store.get(key(TUNE)) is newer


def test_a_new_version_without_a_change_is_kept_and_wakes_nobody(store: Store) -> None:
    store.put(TUNE)
    newer = {**TUNE, "metadata": {**TUNE["metadata"], "resourceVersion": "7"}}
    assert store.put(newer) == frozenset()
    assert store.get(key(TUNE)) is newer


def test_counters_of_a_job_are_no_change(store: Store) -> None:
    job = child("Job", "job", TUNE, status={"active": 1, "startTime": "now"})
    store.put(TUNE)
    store.put(trim(job, RESOURCES["Job"]))
    counted = {**job, "metadata": {**job["metadata"], "resourceVersion": "9"}, "status": {"active": 0, "startTime": "now"}}
    assert store.put(trim(counted, RESOURCES["Job"])) == frozenset()


def test_of_a_pod_no_spec_is_kept_but_its_node() -> None:
    annotations = {INDEX_ANNOTATION: "1", "cni.example.com/networks": "[]"}
    spec = {"containers": [{"name": "stage"}], "nodeName": "gpu-1"}
    pod = child("Pod", "pod", TUNE, spec=spec, status={"phase": "Running"})
    pod["metadata"] |= {"annotations": annotations, "finalizers": ["batch.kubernetes.io/job-tracking"]}
    kept = trim(pod, RESOURCES["Pod"])
    assert kept["spec"] == {"nodeName": "gpu-1"} and kept["status"] == {"phase": "Running"}
    assert kept["metadata"]["annotations"] == {INDEX_ANNOTATION: "1"} and "finalizers" not in kept["metadata"]
    assert "spec" not in trim({**pod, "spec": {"containers": []}}, RESOURCES["Pod"])


def test_of_a_job_no_template_is_kept_but_its_image_and_what_its_containers_may_take() -> None:
    resources = {"limits": {"nvidia.com/gpu": "2"}}
    template = {"metadata": {"labels": {}}, "spec": {"volumes": [], "containers": [{"name": "stage", "image": "i", "resources": resources}]}}
    kept = trim(child("Job", "job", TUNE, spec={"parallelism": 2, "template": template}), RESOURCES["Job"])
    assert kept["spec"] == {"parallelism": 2, "template": {"spec": {"containers": [{"name": "stage", "image": "i", "resources": resources}]}}}
    assert gpu_seconds.asked(kept) == {"gpus": 4}


def test_versions_compare_as_numbers(store: Store) -> None:
    store.put(changed(TUNE, 9))
    assert store.put(changed(TUNE, 10))


def test_a_late_event_does_not_bring_back_what_was_deleted(store: Store) -> None:
    store.put(TUNE)
    store.remove(changed(TUNE, 3))
    assert store.put(changed(TUNE, 2)) == frozenset()
    assert store.get(key(TUNE)) is None


def test_what_only_left_the_watch_may_come_back(store: Store) -> None:
    """Losing the label that the watch selects on is told as a deletion, at the version at which the object then stands."""
    job = child("Job", "job", TUNE, version=5)
    store.put(TUNE)
    store.put(job)
    assert store.remove(changed(job, 7), 7) == {key(TUNE)}
    assert store.put(changed(job, 6)) == frozenset(), "an event that was on its way"
    assert store.put(changed(job, 7)) == {key(TUNE)}
    assert store.get(key(job)) == changed(job, 7)


def test_a_late_deletion_does_not_take_the_namesake_made_after_it(store: Store) -> None:
    store.put(TUNE)
    again = owner(version=5, uid="second")
    store.put(again)
    assert store.remove(changed(TUNE, 4)) == frozenset()
    assert store.get(key(TUNE)) is again
    assert (store.owner("second"), store.owner("uid-tune")) == (key(TUNE), None)


def test_a_child_wakes_its_owner_and_is_found_by_its_uid(store: Store) -> None:
    store.put(TUNE)
    job, pod = child("Job", "job", TUNE), child("Pod", "pod", TUNE)
    assert store.put(job) == store.put(pod) == {key(TUNE)}
    assert store.children("uid-tune") == (job, pod)
    assert store.remove(pod) == {key(TUNE)}
    assert store.children("uid-tune") == (job,)


def test_a_child_seen_before_its_owner_is_there_when_the_owner_comes(store: Store) -> None:
    job = child("Job", "job", TUNE)
    assert store.put(job) == frozenset()
    store.put(TUNE)
    assert store.children("uid-tune") == (job,)


def test_a_child_belongs_to_the_uid_not_to_the_name(store: Store) -> None:
    store.put(child("Job", "job", TUNE))
    store.put(owner(uid="second"))
    assert store.children("second") == ()


def elsewhere(obj: Object) -> Object:
    """The same in another namespace, where anybody may write whatever uid they like."""
    return {**obj, "metadata": {**obj["metadata"], "namespace": "victims-neighbour"}}


def test_what_another_namespace_says_of_a_uid_is_no_child_and_wakes_nobody(store: Store) -> None:
    forged = [elsewhere(child("Job", "job", TUNE)), elsewhere(child("Pod", "pod", TUNE)), elsewhere(workload("job"))]
    store.put(TUNE)
    assert [store.put(obj) for obj in forged] == [frozenset()] * 3
    store.put(child("Job", "job", TUNE))
    assert [store.put(changed(obj, 9)) for obj in forged] == [frozenset()] * 3
    assert [obj["metadata"]["namespace"] for obj in store.children("uid-tune")] == ["team"]
    assert store.sweep("Pod", [], 20, "team", "uid-tune") == frozenset()
    assert [store.remove(changed(obj, 10)) for obj in forged] == [frozenset()] * 3


def test_a_change_wakes_those_that_name_the_object_before_and_after_it_exists(store: Store) -> None:
    run = owner("run", kind="EvalRun", names={"FineTuneJob": "tune"})
    store.put(run)
    assert store.put(TUNE) == {key(TUNE), key(run)}
    assert store.put(changed(TUNE, 2)) == {key(TUNE), key(run)}
    assert store.remove(changed(TUNE, 3)) == {key(TUNE), key(run)}


def test_a_name_no_longer_named_wakes_nobody(store: Store) -> None:
    run = owner("run", kind="EvalRun", names={"FineTuneJob": "tune"})
    store.put(run)
    store.put({**changed(run, 2), "spec": {}})
    assert store.put(TUNE) == {key(TUNE)}


def test_references_reach_to_the_ends_of_the_chains_and_wake_only_who_names_directly(store: Store) -> None:
    claim = child("PersistentVolumeClaim", "models")
    tune = owner(names={"PersistentVolumeClaim": "models"})
    run = owner("run", kind="EvalRun", names={"FineTuneJob": "tune", "PersistentVolumeClaim": "missing"})
    serve = owner("serve", kind="ModelDeployment", names={"EvalRun": "run"})
    for obj in (serve, run, tune, claim):
        store.put(obj)
    assert store.references(key(run)) == {key(tune): tune, key(claim): claim}
    assert store.references(key(serve)) == {key(run): run, key(tune): tune, key(claim): claim}
    assert store.put(changed(claim, 9)) == {key(tune)}


def test_a_name_means_an_object_of_the_same_namespace(store: Store) -> None:
    run = owner("run", kind="EvalRun", names={"FineTuneJob": "tune"})
    store.put(run)
    assert key(run) not in store.put(elsewhere(TUNE))
    assert store.references(key(run)) == {}


def test_objects_that_name_each_other_are_no_trouble(store: Store) -> None:
    first, second = owner("a", names={"FineTuneJob": "b"}), owner("b", names={"FineTuneJob": "a"})
    for obj in (first, second):
        store.put(obj)
    assert set(store.references(key(first))) == {key(first), key(second)}


def test_a_sweep_removes_ghosts_and_spares_what_is_newer_than_the_list(store: Store) -> None:
    ghost, kept, young = owner("ghost", 3), owner("kept", 4), owner("young", 12)
    for obj in (ghost, kept, young):
        store.put(obj)
    assert store.sweep("FineTuneJob", [kept["metadata"]["uid"]], 10) == {key(ghost)}
    assert [store.get(key(obj)) for obj in (ghost, kept, young)] == [None, kept, young]


def test_a_sweep_of_one_namespace_leaves_the_others_alone(store: Store) -> None:
    store.put(TUNE)
    assert store.sweep("FineTuneJob", [], 10, "elsewhere") == frozenset()
    assert store.sweep("FineTuneJob", [], 10, "team") == {key(TUNE)}


def test_a_sweep_of_one_objects_pods_leaves_those_of_others_alone(store: Store) -> None:
    other = owner("other")
    pods = [child("Pod", "ours", TUNE), child("Pod", "theirs", other), child("Job", "ours", TUNE)]
    for obj in (TUNE, other, *pods):
        store.put(obj)
    assert store.sweep("Pod", [], 10, "team", "uid-tune") == {key(TUNE)}
    assert store.children("uid-tune") == (pods[2],)
    assert store.children("uid-other") == (pods[1],)


def test_what_was_found_by_its_name_is_there_though_a_newer_list_lacks_it(store: Store) -> None:
    job = child("Job", "job", TUNE)
    store.put(TUNE)
    store.put(job)
    store.sweep("Job", [], 20)
    assert store.find(changed(job, 9)) == {key(TUNE)}
    assert store.get(key(job)) == changed(job, 9)


def test_a_progress_report_is_kept_until_its_object_goes(store: Store) -> None:
    assert store.report("uid-tune", {"progressPercentage": 1}) == frozenset()
    store.put(TUNE)
    assert store.report("uid-tune", {"progressPercentage": 2}) == {key(TUNE)}
    assert store.progress("uid-tune") == {"progressPercentage": 2}
    store.remove(TUNE)
    assert store.progress("uid-tune") is None


def test_a_spec_that_cannot_be_read_names_nothing_and_harms_nobody() -> None:
    def broken(spec: object) -> frozenset[tuple[str, str]]:
        raise KeyError("model")

    store = Store({"FineTuneJob": broken})
    assert store.put(TUNE) == {key(TUNE)}


def test_whatever_the_order_of_events_the_end_is_the_same() -> None:
    """All orders of six events of one name, two lives and a child."""
    second = owner(uid="second", version=20)
    events = [(True, TUNE), (True, changed(TUNE, 5)), (False, changed(TUNE, 6)), (True, second), (True, changed(second, 21))]
    events.append((True, child("Job", "job", second, 30)))
    for order in itertools.permutations(events):
        store = Store({name: kind.references for name, kind in KINDS.items()})
        for present, obj in order:
            store.put(obj) if present else store.remove(obj)
        assert store.get(key(TUNE)) == changed(second, 21)
        assert [obj["metadata"]["name"] for obj in store.children("second")] == ["job"]
        assert store.get(Key("FineTuneJob", "team", "other")) is None


def workload(job: str, version: int = 5) -> Object:
    """Kueue's Workload of that Job."""
    reference = {"kind": "Job", "name": job, "uid": f"uid-Job-{job}", "controller": True}
    made = child("Workload", f"job-{job}", version=version)
    return {**made, "metadata": {**made["metadata"], "ownerReferences": [reference]}}


def test_the_workload_of_a_child_job_belongs_to_the_jobs_owner_in_whatever_order_they_are_seen(store: Store) -> None:
    store.put(TUNE)
    job = child("Job", "train", TUNE)
    assert store.put(workload("train")) == frozenset()
    assert store.put(job) == {key(TUNE)}
    assert [seen["kind"] for seen in store.children("uid-tune")] == ["Job", "Workload"]
    assert store.put(changed(workload("train"), 6)) == {key(TUNE)}
    assert store.remove(workload("train", 7)) == {key(TUNE)}
    assert [seen["kind"] for seen in store.children("uid-tune")] == ["Job"]


def test_the_workload_of_a_namesake_concerns_nobody(store: Store) -> None:
    store.put(TUNE)
    store.put(child("Job", "train", TUNE))
    stranger = workload("train")
    stranger["metadata"]["ownerReferences"][0]["uid"] = "uid-of-another"
    assert store.put(stranger) == frozenset()
    assert [seen["kind"] for seen in store.children("uid-tune")] == ["Job"]
