"""What the pods of a Job or a Deployment are told, as the tests read it."""

from __future__ import annotations

import json
from typing import Any

from tunesmith.core.objects import Object
from tunesmith.workload.podspec import ANNOTATIONS, STAGE_FILE


def orders(made: Object) -> Any:
    """The content of stage.json in the pods of `made`."""
    return json.loads(made["spec"]["template"]["metadata"]["annotations"][ANNOTATIONS[STAGE_FILE]])
