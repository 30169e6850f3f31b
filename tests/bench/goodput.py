"""`make bench-goodput`: how much of the machines' time a long training on failing nodes turns into steps that count.

    python -m tests.bench.goodput [--days 7] [--every-steps 20] [--seed 0] …

A seeded simulation: the operator's own classification and attempt code on a simulated clock, around it a model of a cluster
(`cluster_model.py`) whose times are stated in what is printed. Beside it the control: the same faults and no checkpoints.
Goodput is the node-time of the steps that were kept, of all node-time from the Job's creation to the end.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from tests.bench.cluster_model import FAULTS, Attempt, Cluster, Setting

AIM = 0.97
DAY = 86400.0
LOSSES = ("steps redone", "saving", "detection", "rescheduling", "loading", "fewer nodes")


def account(cluster: Cluster) -> Counter[str]:
    """Seconds by what they went into, `useful` and LOSSES; their sum is the time that passed since the first attempt's Job was made."""
    spent: Counter[str] = Counter()
    attempts = cluster.attempts
    for attempt, after in zip(attempts, [*attempts[1:], None], strict=True):
        spent += _of(cluster, attempt, after.created if after else cluster.seconds, last=after is None)
    return spent


def _of(cluster: Cluster, attempt: Attempt, over: float, last: bool) -> Counter[str]:
    """One attempt's seconds, up to when the next one's Job was made."""
    setting = cluster.setting
    struck = over if attempt.struck is None else min(attempt.struck, over)
    running = struck if attempt.running is None else attempt.running
    loaded = struck if attempt.loaded is None else attempt.loaded
    done = cluster.steps(attempt)
    # What the last attempt has done since its checkpoint is not lost yet.
    kept = done.done if last and attempt.struck is None else done.saved
    slow = setting.step * (setting.nodes / attempt.nodes - 1)
    useful, slower = kept * setting.step, kept * slow
    return Counter(
        {
            "useful": useful,
            "fewer nodes": slower,
            "saving": done.saving,
            "steps redone": struck - loaded - useful - slower - done.saving,
            "rescheduling": running - attempt.created,
            "loading": loaded - running,
            "detection": over - struck,
        }
    )


@dataclass(frozen=True)
class Figures:
    """What simulations of one setting with several seeds came to, together."""

    clusters: Sequence[Cluster]

    @property
    def seconds(self) -> float:
        """All of the time."""
        return sum(cluster.seconds for cluster in self.clusters)

    @property
    def goodput(self) -> float:
        """Share of the node-time that counts."""
        return sum(account(cluster)["useful"] for cluster in self.clusters) / self.seconds

    def lines(self) -> list[str]:
        """For people: goodput, and each loss as a share and for a fault."""
        spent: Counter[str] = sum((account(cluster) for cluster in self.clusters), Counter())
        faults, each = sum(len(cluster.faults) for cluster in self.clusters), [account(one)["useful"] / one.seconds for one in self.clusters]
        lines = [f"goodput {self.goodput:7.2%}   (by seed {min(each):.2%} to {max(each):.2%}; {faults} faults struck)"]
        return lines + [f"    {name:14} {spent[name] / self.seconds:7.2%}   {spent[name] / max(faults, 1):8.1f} s a fault" for name in LOSSES]


def measure(setting: Setting, seeds: int) -> Figures:
    """Simulate a setting with so many seeds, from the setting's own on."""
    settings = [replace(setting, seed=setting.seed + number) for number in range(seeds)]
    return Figures([Cluster(each).run_until(each.days * DAY) for each in settings])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the benchmark; 0 if the aim was met."""
    parser = argparse.ArgumentParser(prog="tests.bench.goodput", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="simulations, from --seed on")
    for entry in fields(Setting):
        kind = float if entry.type == "float" else int
        parser.add_argument("--" + entry.name.replace("_", "-"), type=kind, default=entry.default)
    given = vars(parser.parse_args(arguments))
    seeds = given.pop("seeds")
    setting = Setting(**given)
    print(f"{setting.nodes} nodes, {setting.spares} spare, {seeds} times {setting.days:g} days, a fault every {setting.between_faults / 3600:g} h")
    print("  faults: " + ", ".join(f"{name} {share:.0%}" for name, share in FAULTS.items()))
    print(
        f"  seconds: step {setting.step:g}, checkpoint every {setting.every_steps} steps holds it up {setting.saving:g}, "
        f"pods placed and started {setting.scheduling:g}, loading {setting.loading:g},\n"
        f"  a silent peer given up after {setting.watchdog:g}, a node that stopped marked after 40 to 60 and back after {setting.repair:g}\n"
    )
    figures = measure(setting, seeds)
    print("\n".join(figures.lines()))
    print("\ncontrol, the same without checkpoints:\n" + "\n".join(measure(replace(setting, every_steps=0), seeds).lines()))
    good = figures.goodput >= AIM
    print(f"\naim: at least {AIM:.0%}: {'met' if good else 'MISSED'}")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
