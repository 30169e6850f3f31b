"""Which image the stages of an object have: that of the Job whose result came first, for all that follows rests on that result.

Until then it is the one that is configured, so that an object made while that was a wrong one needs no mending of its own. An attempt
under way keeps what it was made with, unless that cannot be pulled and another is configured by now: then it is made again with that one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.core.objects import LABEL_STAGE, Config, Object, Observed
from tunesmith.stages.attempt import StageKey, key_of
from tunesmith.stages.views import View, views_of
from tunesmith.workload.observation import Note
from tunesmith.workload.podstatus import container_in, container_of, is_live
from tunesmith_contract.stages import CONTRACT_VERSION

CHANGED = "ImageChanged"
NOTE = Note(CHANGED, "its image cannot be pulled, and another is configured by now")
"""Of an attempt that ends for that."""
_UNPULLABLE = frozenset(
    (
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "InvalidImageName",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    )
)
Entry = Mapping[str, Any]


def image_of(job: Object | None) -> str:
    """The image of our container in the pods of a Job; empty if there is no Job."""
    return str(container_in(job).get("image") or "") if job else ""


def outdated(observed: Observed, views: Mapping[StageKey, View]) -> bool:
    """Whether nothing of the object has begun, a pod of it waits for an image that cannot be pulled, and another one is configured.

    `views`: the children of its stages.
    """
    entries = observed.recorded.get("stages", ())
    if not _open(entries):
        return False
    return any(_is_outdated(views.get(key_of(entry), View()), entry["attempt"], observed.config) for entry in entries if entry["state"] == "Pending")


def _is_outdated(view: View, attempt: int, config: Config) -> bool:
    job = view.jobs.get(attempt)
    return differs(job, config) and any(_cannot_pull(pod) for pod in view.pods.get(attempt, ()))


def differs(job: Object | None, config: Config) -> bool:
    """Whether a Job has another image than is configured."""
    return image_of(job) not in ("", config.images.trainer)


def pinned(observed: Observed, resolved: Mapping[str, Any], entries: Sequence[Entry], attempts: Sequence[Entry]) -> dict[str, Any]:
    """`{images, contractVersion}` of a status' `resolved`, given what it was, and the stages and attempts of the status to be written."""
    before = observed.recorded.get("stages", ())
    recorded: dict[str, Any] = {name: resolved[name] for name in ("images", "contractVersion") if name in resolved}
    present: dict[str, Any] = {"images": {"trainer": observed.config.images.trainer}, "contractVersion": CONTRACT_VERSION}
    if not recorded:
        return present
    if not any(entry["state"] == "Succeeded" for entry in before) and (first := _first(observed, entries)):
        return next((each for each in (recorded, present) if each["images"]["trainer"] == first), {"images": {"trainer": first}})
    if not _open(entries):
        return recorded
    known = observed.recorded.get("attempts", ())
    if any(ended["reason"] == CHANGED for ended in attempts if ended not in known):
        return present
    numbers = {key_of(entry): entry["attempt"] for entry in before if entry["state"] == "Pending"}
    under_way = any(entry["state"] == "Pending" and numbers.get(key_of(entry)) == entry["attempt"] for entry in entries)
    # A release without contract versions pinned at its first look, for good.
    return recorded if under_way or "contractVersion" not in recorded else present


def _first(observed: Observed, entries: Sequence[Entry]) -> str:
    """The image of the Job of a stage that has just succeeded; empty if none has, or its Job is gone."""
    jobs = views_of(child for child in observed.children if child["kind"] == "Job" and LABEL_STAGE in child["metadata"].get("labels", {}))
    done = (jobs.get(key_of(entry), View()).jobs.get(entry["attempt"]) for entry in entries if entry["state"] == "Succeeded")
    return next((image for job in done if (image := image_of(job))), "")


def _open(entries: Sequence[Entry]) -> bool:
    return all(entry["state"] in ("Waiting", "Pending") for entry in entries)


def _cannot_pull(pod: Object) -> bool:
    waiting = (container_of(pod).get("state") or {}).get("waiting") or {}
    return is_live(pod) and waiting.get("reason") in _UNPULLABLE
