"""`make demo`: a real Kubernetes, the operator from its chart, and one apply that ends in a served model.

`--check` only says what this machine lacks for it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from dev.cluster.errors import ClusterError

from . import chain, chat, stack, table
from .kube import DemoError, Object


def narrator(start: float) -> stack.Say:
    """A printer of lines that begin with the time since `start`."""

    def say(line: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - start), 60)
        print(f"{minutes:3}:{seconds:02}  {line}", flush=True)

    return say


def close(cluster: stack.Stack, run: Object, answer: str, say: stack.Say) -> None:
    """Print what the demo has shown and how to go on."""
    say(f"the endpoint answered {chat.QUESTION!r} with {answer!r}")
    report = chain.fetch_report(cluster, run)
    print(f"\n{table.results(run)}\n\n{table.gate(run)}\n\nverdict: {run['status']['verdict']}\nreport:  {report}")
    print(f"objects: {' '.join(cluster.kube.command('get', 'tunesmith'))}")
    base, first = stack.endpoint(cluster, chain.NAME)
    print("talk to it:\n" + (f"  {first}\n" if first else "") + f"  {chat.curl(base, chain.NAME)}\n")


def main() -> int:
    """Run the demo; 0 when the endpoint answered, 1 with one message when something failed."""
    parser = argparse.ArgumentParser(prog="python3 -m dev.demo", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only see whether this machine can")
    only_check = parser.parse_args().check
    say = narrator(time.monotonic())
    try:
        if only_check:
            if not os.environ.get("KUBECONFIG"):
                stack.check_machine()
            return 0
        cluster = stack.bring_up(say)
        chain.seed_all(cluster, say)
        chain.apply(cluster, say)
        objects = chain.follow_to_the_end(cluster, say)
        answer = chat.ask_service(cluster.kube, chain.NAME)
        close(cluster, objects["EvalRun", chain.EVAL_RUN], answer, say)
    except (ClusterError, DemoError, subprocess.CalledProcessError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
