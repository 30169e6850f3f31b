"""The Jobs and pods of each stage, by attempt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tunesmith.core.objects import LABEL_STAGE, Object
from tunesmith.stages.attempt import StageKey, attempt_of
from tunesmith.workload import observation, podstatus


@dataclass(frozen=True)
class View:
    """The children of one stage."""

    jobs: dict[int, Object] = field(default_factory=dict)
    pods: dict[int, list[Object]] = field(default_factory=dict)

    def busy(self, but: int | None = None) -> int:
        """Unfinished Jobs and live pods of all attempts (but one)."""
        jobs = sum(not observation.is_finished(job) for number, job in self.jobs.items() if number != but)
        return jobs + sum(podstatus.is_live(pod) for number, found in self.pods.items() if number != but for pod in found)

    def underway(self, after: int) -> int | None:
        """The later attempt whose Job runs although it is not on record: the status was lost."""
        return min((number for number, job in self.jobs.items() if number > after and not observation.is_finished(job)), default=None)


def views_of(children: Iterable[Object]) -> dict[StageKey, View]:
    """The children that belong to stages, by stage."""
    views: dict[StageKey, View] = {}
    for child in children:
        if LABEL_STAGE not in child["metadata"].get("labels", {}) or child["kind"] not in ("Job", "Pod"):
            continue
        key, number = attempt_of(child)
        view = views.setdefault(key, View())
        if child["kind"] == "Job":
            view.jobs[number] = child
        else:
            view.pods.setdefault(number, []).append(child)
    return views
