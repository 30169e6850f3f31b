"""What the pods of a revision are made from, kept as it was when the revision was made.

An operator with other code or other settings would render the same revision otherwise, and a Deployment whose template changes restarts
its pods. So the Deployment carries its rendering in an annotation. (A ControllerRevision, as a StatefulSet has, would be one more kind to
watch and to be granted, and could be there without its Deployment or miss beside it; an annotation comes and goes with what it rolls.)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property

from tunesmith.core import drift
from tunesmith.core.objects import GROUP, Object

ANNOTATION = f"{GROUP}/rendered"


@dataclass(frozen=True)
class Rendering:
    """The rendered inputs of a revision."""

    template: Object
    """The Deployment's pod template, the pods' orders among its annotations."""

    @cached_property
    def annotation(self) -> str:
        """As the Deployment carries it: with a digest, by which an edit is noticed."""
        content = {"template": self.template, "digest": drift.checksum(self.template)}
        return json.dumps(content, sort_keys=True, separators=(",", ":"))


def recorded(deployment: Object) -> Rendering | None:
    """The rendering that a Deployment carries; None if it carries none, or an edited one."""
    text = (deployment["metadata"].get("annotations") or {}).get(ANNOTATION, "")
    try:
        rendering = Rendering(json.loads(text)["template"])
    except (ValueError, TypeError, KeyError):
        return None
    return rendering if rendering.annotation == text else None
