"""Starting, finding and ending background processes."""

import os
import subprocess

import pytest

from dev.cluster.errors import ClusterError
from dev.cluster.processes import ProcessTable, child_of, is_running, stat_fields, wait_until


@pytest.fixture
def table(tmp_path):
    made = ProcessTable(tmp_path)
    yield made
    for name in made.names():
        made.stop(name)


def test_a_second_table_sees_and_ends_the_process(table, tmp_path):
    pid = table.start("sleeper", ["sleep", "60"])
    other = ProcessTable(tmp_path)
    assert other.pid("sleeper") == pid
    other.stop("sleeper")
    assert not is_running(pid)
    assert table.names() == []


def test_output_goes_to_the_log(table):
    table.start("talker", ["echo", "hello"])
    wait_until(lambda: table.pid("talker") is None, "echo to end", 5)
    assert table.tail("talker") == "hello"


def test_a_reused_process_id_is_not_ours(table):
    table.start("sleeper", ["sleep", "60"])
    pid_file = table.pids / "sleeper"
    pid = pid_file.read_text().split()[0]
    pid_file.write_text(f"{pid} 1\n")
    assert table.pid("sleeper") is None
    os.kill(int(pid), 9)


def test_a_zombie_counts_as_gone():
    with subprocess.Popen(["true"]) as process:
        wait_until(lambda: stat_fields(process.pid)[0] == "Z", "a zombie", 5)
        assert not is_running(process.pid)


def test_grace_lets_a_process_finish(table):
    table.start("trapper", ["sh", "-c", "trap 'echo bye; exit' TERM; echo ready; while :; do sleep 0.05; done"])
    wait_until(lambda: "ready" in table.tail("trapper"), "its trap", 30)
    table.stop("trapper", grace=30)
    assert "bye" in table.tail("trapper")


def test_child_of(table):
    pid = table.start("parent", ["sh", "-c", "sleep 60 & wait"])
    wait_until(lambda: child_of(pid) is not None, "a child", 5)
    child = child_of(pid)
    assert stat_fields(child)[1] == pid
    os.kill(child, 9)


def test_wait_until_says_what_it_waited_for():
    with pytest.raises(ClusterError, match="waiting for godot"):
        wait_until(lambda: False, "godot", 0.1)
