"""What the cluster changes on the host, as far as that is visible without root."""

from pathlib import Path

from dev.cluster import host

HYBRID = """\
tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0
"""
UNIFIED = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"


def test_pods_go_into_the_version_1_hierarchies_where_there_are_any():
    expected = [Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/memory")]
    assert host.cgroup_hierarchies(HYBRID) == expected
    assert host.cgroup_hierarchies(UNIFIED) == [Path("/sys/fs/cgroup")]


def test_clean_up_looks_at_the_unified_hierarchy_too():
    assert Path("/sys/fs/cgroup/unified") in host.all_hierarchies(HYBRID)


def test_missing_folders_come_parents_first_and_once(tmp_path):
    wanted = [str(tmp_path / "a" / "b"), str(tmp_path / "a" / "c")]
    expected = [str(tmp_path / part) for part in ("a", "a/b", "a/c")]
    assert host.missing_folders(wanted) == expected


def test_folders_that_exist_are_not_ours(tmp_path):
    assert host.missing_folders([str(tmp_path)]) == []


def test_settings_are_read_by_name():
    values = host.read_sysctls(["kernel.ostype", "kernel.there_is_no_such_thing"])
    assert values == {"kernel.ostype": "Linux"}
