"""Lives of a FineTuneJob for the state tables."""

from __future__ import annotations

from typing import Any

from tests.unit.operator.makers import World, finetunejob
from tunesmith.core.objects import Object
from tunesmith.finetunejob.build import build
from tunesmith.finetunejob.status import status
from tunesmith.finetunejob.status_schema import FineTuneJobStatus

WORKING = {"Ready": "False", "Reconciling": "True", "Stalled": "False", "Succeeded": "Unknown", "Finished": "False", "Suspended": "False"}
SUCCEEDED = {"Ready": "True", "Reconciling": "False", "Stalled": "False", "Succeeded": "True", "Finished": "True", "Suspended": "False"}
FAILED = {"Ready": "False", "Reconciling": "False", "Stalled": "True", "Succeeded": "False", "Finished": "True", "Suspended": "False"}
STALLED = {"Ready": "False", "Reconciling": "False", "Stalled": "True", "Succeeded": "Unknown", "Finished": "False", "Suspended": "False"}
SUSPENDED = {"Ready": "False", "Reconciling": "False", "Stalled": "False", "Succeeded": "Unknown", "Finished": "False", "Suspended": "True"}
FAILING = WORKING | {"FailureTarget": "True"}
TWO_NODES = {"nodes": 2, "ddp": {}}


class Life(World):
    """A World of a FineTuneJob that checks what must hold in every state."""

    def __init__(self, *references: Object, **spec: Any) -> None:
        super().__init__(status, build, finetunejob(**spec), *references)

    def step(self) -> Object:
        """Reconcile, and check that a second reconcile would write nothing."""
        written = super().step()
        FineTuneJobStatus.model_validate(written)
        assert self.truths() in (WORKING, SUCCEEDED, FAILED, STALLED, SUSPENDED, FAILING)
        assert all(entry["observedGeneration"] == self.owner["metadata"]["generation"] for entry in written["conditions"])
        again = self.observed()
        assert build(again, status(again)) == build(again, status(again))
        return written


def trained(**spec: Any) -> Life:
    """A life in which Train has just begun to run."""
    life = Life(**spec)
    life.step()
    life.succeed("Prepare").run("Train").step()
    return life


def placed(life: Life, *nodes: str) -> Life:
    """The pods of Train's newest attempt are on these nodes."""
    for pod, node in zip(life.pods("Train"), nodes, strict=True):
        pod["spec"] = {"nodeName": node}
    return life


def avoided(life: World, stage: str = "Train", part: str = "") -> list[str]:
    """The nodes that the stage's newest Job avoids."""
    return avoided_by(life.job(stage, part))


def avoided_by(job: Object) -> list[str]:
    """The nodes that a Job avoids, by one term of a preference as strong as can be."""
    affinity = job["spec"]["template"]["spec"].get("affinity", {}).get("nodeAffinity")
    if affinity is None:
        return []
    assert affinity.keys() == {"preferredDuringSchedulingIgnoredDuringExecution"}
    (term,) = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    assert (term["weight"], term["preference"].keys()) == (100, {"matchFields"})
    fields = term["preference"]["matchFields"]
    assert all((field["key"], field["operator"], len(field["values"])) == ("metadata.name", "NotIn", 1) for field in fields)
    return [field["values"][0] for field in fields]


def last(life: World) -> Object:
    """The last attempt on record."""
    attempt: Object = life.status["attempts"][-1]
    return attempt
