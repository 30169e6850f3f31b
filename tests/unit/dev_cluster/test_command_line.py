"""The command line: what is accepted, and errors as one sentence."""

from pathlib import Path

import pytest

from dev.cluster import __main__ as command_line
from dev.cluster import addons
from dev.cluster.errors import ClusterError


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize(
    "line",
    [
        "build",
        "up",
        "up --nodes 3 --bind trainer=/tmp --bind serving",
        "down --purge",
        "status",
        "load a.tar b.tar",
        "node stop 2",
        "node start n2",
        "images",
        "environment trainer",
        "tool helm",
    ],
)
def test_commands_parse(line):
    command_line.parser().parse_args(line.split())


def test_binds():
    binds = command_line.parse_binds(["trainer=/tmp", "serving"])
    assert binds == {"trainer": Path("/tmp"), "serving": None}


@pytest.mark.parametrize("value", ["=x", "a/b=/tmp", "nothing"])
def test_binds_that_make_no_sense(value):
    with pytest.raises(ClusterError, match="--bind"):
        command_line.parse_binds([value])


@pytest.mark.parametrize("line", ["node stop 1", "load x.tar", "kubectl get pods"])
def test_commands_that_need_a_cluster_say_so(line, capsys):
    assert command_line.main(line.split()) == 1
    assert "not running" in capsys.readouterr().err


def test_status_without_a_cluster(capsys):
    assert command_line.main(["status"]) == 1
    assert "not running" in capsys.readouterr().out


def test_manifests_are_filled_in_and_keep_the_shells_variables():
    text = addons.manifests(Path("/state/volumes"), 2)
    assert '"sharedFileSystemPath": "/state/volumes"' in text
    assert "replicas: 2" in text
    assert 'chmod 0777 "$VOL_DIR"' in text
    assert "${" not in text
