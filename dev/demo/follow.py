"""Tells what happens to the objects of a namespace, one line a change."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from .kube import DemoError, Kube, Object

KINDS = "finetunejobs.tunesmith.dev,evalruns.tunesmith.dev,modeldeployments.tunesmith.dev"


def condition(thing: Object, kind: str) -> Object:
    """The object's condition of that type, or {}."""
    entries = thing.get("status", {}).get("conditions", [])
    return next((entry for entry in entries if entry["type"] == kind), {})


def is_true(thing: Object, kind: str) -> bool:
    """Whether the object's condition is True for its current generation."""
    entry = condition(thing, kind)
    return entry.get("status") == "True" and entry.get("observedGeneration") == thing["metadata"]["generation"]


def duration(seconds: float) -> str:
    """`seconds` for reading: 45s, 2m10s, 1h05m."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def progress(status: Object) -> str:
    """Progress of a running training: "45 %  loss 2.13  ETA 2m10s"; empty when there is none."""
    report = status.get("progress") or {}
    if "progressPercentage" not in report:
        return ""
    words = [f"{report['progressPercentage']} %"]
    metrics = {entry["name"]: entry["value"] for entry in report.get("metrics", [])}
    if "loss" in metrics:
        words.append(f"loss {float(metrics['loss']):.3f}")
    if report.get("estimatedRemainingSeconds"):
        words.append(f"ETA {duration(float(report['estimatedRemainingSeconds']))}")
    return "  ".join(words)


def describe(thing: Object) -> str:
    """One line on an object: kind/name, stage, what it does or waits for."""
    status = thing.get("status", {})
    label = f"{thing['kind']}/{thing['metadata']['name']}"
    stage = status.get("stage", "")
    for kind in ("Stalled", "Suspended", "Reconciling", "Ready"):
        entry = condition(thing, kind)
        if entry.get("status") == "True":
            text = entry["message"] or entry["reason"]
            break
    else:
        text = "not seen by the operator yet"
    shown = progress(status) if stage == "Train" else ""
    return f"{label:34} {stage:14} {shown or text}".rstrip()


def follow(kube: Kube, names: Iterable[tuple[str, str]], say: Callable[[str], None], seconds: float) -> dict[tuple[str, str], Object]:
    """Say every change until each (kind, name) is Ready; returns the objects. DemoError when one is Stalled or time is up."""
    wanted, last = set(names), dict[tuple[str, str], str]()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        things = {(thing["kind"], thing["metadata"]["name"]): thing for thing in kube.get(KINDS)["items"]}
        for key, thing in things.items():
            line = describe(thing)
            if last.get(key) != line:
                last[key] = line
                say(line)
        for key in wanted & things.keys():
            if is_true(things[key], "Stalled"):
                raise DemoError(f"{'/'.join(key)} is stalled: {condition(things[key], 'Stalled')['message']}")
        if all(key in things and is_true(things[key], "Ready") for key in wanted):
            return {key: things[key] for key in wanted}
        time.sleep(1)
    raise DemoError(f"not Ready within {duration(seconds)}: " + "; ".join(last.values()))
