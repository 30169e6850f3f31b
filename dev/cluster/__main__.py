"""The command line: `python3 -m dev.cluster COMMAND`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import environments, images, tools
from .cluster import Cluster, Progress
from .errors import ClusterError


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="python3 -m dev.cluster", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    command("build", "build binaries and base images only")
    up = command("up", "start the cluster")
    up.add_argument("--nodes", type=int, default=2, help="how many nodes (2)")
    up.add_argument(
        "--bind",
        action="append",
        default=[],
        metavar="NAME[=HOSTPATH]",
        help="bind a folder read-only at /opt/NAME in every container; without a path, the locked environment of that name",
    )
    down = command("down", "stop the cluster, put the host back and delete the cluster's data")
    down.add_argument("--purge", action="store_true", help="delete its logs too")
    command("status", "what runs, and where the kubeconfig is")
    load = command("load", "import OCI image archives into every node")
    load.add_argument("archives", nargs="+", type=Path, metavar="IMAGE-ARCHIVE")
    node = command("node", "stop a node at once, or bring it back; pull its cable, or plug it in")
    node.add_argument("action", choices=["stop", "start", "disconnect", "connect"])
    node.add_argument("number", type=node_number, metavar="N")
    command("images", "make the thin images of our code and print their names and archives")
    environment = command("environment", "build a locked Python environment and print its path")
    environment.add_argument("name", choices=sorted(environments.FOLDERS))
    tool = command("tool", "print the path of a binary, building it when it is missing")
    tool.add_argument("name", choices=sorted(tools.GO_BINARIES))
    command("kubectl", "run kubectl against the cluster")
    return top


def node_number(text: str) -> int:
    """A node's number from `1` or `n1`."""
    return int(text.removeprefix("n"))


def parse_binds(values: Sequence[str]) -> dict[str, Path | None]:
    """Folders by name; None stands for the locked environment of that name."""
    binds: dict[str, Path | None] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not name.isidentifier():
            raise ClusterError(f"--bind {value}: the form is NAME or NAME=HOSTPATH")
        if not equals and name not in environments.FOLDERS:
            raise ClusterError(f"--bind {name}: there is no locked environment of that name")
        binds[name] = Path(path).resolve() if equals else None
    return binds


def up(cluster: Cluster, options: argparse.Namespace) -> None:
    """The `up` command."""
    report = Progress()
    binds = {name: path or environments.environment(name, report=report) for name, path in parse_binds(options.bind).items()}
    cluster.up(options.nodes, binds, report)
    report(f"up; kubeconfig: {cluster.kubeconfig}")


def kubectl(cluster: Cluster, arguments: Sequence[str]) -> None:
    """Become kubectl."""
    cluster.require_running()
    path = tools.built("kubectl", to_stderr)
    os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
    os.execv(path, ["kubectl", *arguments])


def to_stderr(message: str) -> None:
    """Progress of commands whose output is for another program."""
    print(message, file=sys.stderr, flush=True)


def build(cluster: Cluster, _: argparse.Namespace) -> None:
    """The `build` command."""
    cluster.build(Progress())


def status(cluster: Cluster) -> int:
    """The `status` command: exit status 0 only while the cluster runs."""
    print("\n".join(cluster.status()))
    return 0 if cluster.is_running() else 1


def thin_images() -> None:
    """The `images` command."""
    for image in images.build_thin_images(report=to_stderr):
        print(image.name, image.archive)


def change_node(cluster: Cluster, options: argparse.Namespace) -> None:
    """The `node` command."""
    changes = {"stop": cluster.stop_node, "start": cluster.start_node, "disconnect": cluster.disconnect_node, "connect": cluster.connect_node}
    changes[options.action](options.number, Progress())


# Each returns the exit status, or None for success.
ACTIONS: dict[str, Callable[[Cluster, argparse.Namespace], int | None]] = {
    "build": build,
    "up": up,
    "down": lambda cluster, options: cluster.down(options.purge, Progress()),
    "status": lambda cluster, _: status(cluster),
    "load": lambda cluster, options: cluster.load(options.archives, Progress()),
    "node": change_node,
    "images": lambda _, __: thin_images(),
    "environment": lambda _, options: print(environments.environment(options.name, report=to_stderr)),
    "tool": lambda _, options: print(tools.built(options.name, to_stderr)),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and turn a ClusterError into one sentence and exit status 1."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["kubectl"]:  # everything after it is kubectl's own
            kubectl(Cluster(), given[1:])
        options = parser().parse_args(given)
        return ACTIONS[options.command](Cluster(), options) or 0
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
