"""The blocks that the specs of the three kinds share, and the scalar types they are made of.

The models are the single source of the CRDs (`crd.py`). Field names are the libraries' own in camelCase. A default that is only
a Python default is applied by the operator and told in the description; only defaults without which absence would be ambiguous
are marked `crd_default` and become part of the schema (`/scale` needs one, docs/DESIGN.md section 1).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DECIMAL = r"^[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,3})?$"
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
PVC_URI = r"^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[A-Za-z0-9._@+=-]+)*$"
SNAKE_CASE = r"^[a-z][a-z0-9_]*$"
LABEL_KEY = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
ARTIFACT = r"^(Adapter|Merged|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$"


Rule = dict[str, str | bool]


def rule(expression: str, message: str, field_path: str = "", reason: str = "FieldValueInvalid") -> Rule:
    """One `x-kubernetes-validations` entry (KEP-2876). `field_path` (".a.b") is where the server reports the error."""
    entry: Rule = {"rule": expression, "message": message, "reason": reason}
    return entry | ({"fieldPath": field_path} if field_path else {})


def when_made(expression: str, message: str, field_path: str = "") -> Rule:
    """A rule for the creation alone, about immutable fields: objects that a release before let in can still be worked on and deleted."""
    return rule(f"oldSelf.hasValue() || ({expression})", message, field_path) | {"optionalOldSelf": True}


def immutable(*fields: str) -> list[Rule]:
    """Rules for the parent of `fields`. They stand on the parent because a rule on an optional field itself is bypassed by removing it first."""
    return [
        rule(
            f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})",
            f"`{field}` is immutable: make a new object with another name",
            f".{field}",
            "FieldValueForbidden",
        )
        for field in fields
    ]


def only_while_suspended(field: str) -> Rule:
    """The rule for the parent of `field` and `suspend`: a change counts only while no pod runs, or in the change that resumes."""
    return rule(
        f"(has(self.suspend) && self.suspend) || (has(oldSelf.suspend) && oldSelf.suspend) || "
        f"(has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field}))",
        f"`{field}` can be changed only while suspended",
        f".{field}",
        "FieldValueForbidden",
    )


def unique_names(field: str, optional: bool = True) -> Rule:
    """The rule for the parent of `field`: no two items have one name. Not `listType: map`, which would make the order of items nobody's."""
    unique = f"self.{field}.all(a, self.{field}.exists_one(b, b.name == a.name))"
    return rule(f"!has(self.{field}) || {unique}" if optional else unique, f"names in `{field}` must be unique", f".{field}")


def union(*members: str) -> Rule:
    """Exactly one of `members` is present."""
    present = " + ".join(f"(has(self.{member}) ? 1 : 0)" for member in members)
    return rule(f"{present} == 1", "must have exactly one of " + ", ".join(f"`{member}`" for member in members))


def rules(*entries: Rule) -> dict[str, Any]:
    """The `json_schema_extra` of a model that carries CEL rules."""
    return {"x-kubernetes-validations": list(entries)}


class Block(BaseModel):
    """Base of every spec block: camelCase outside, snake_case inside, unknown fields refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


Name = Annotated[str, Field(pattern=DNS_LABEL, min_length=1, max_length=40)]
ObjectName = Annotated[str, Field(pattern=DNS_LABEL, min_length=1, max_length=63)]
Decimal = Annotated[str, Field(pattern=DECIMAL, min_length=1, max_length=32)]
Quantity = Annotated[str, Field(pattern=QUANTITY, min_length=1, max_length=32)]
URI = Annotated[
    str,
    Field(
        pattern=PVC_URI,
        max_length=512,
        description="`pvc://<claim>/<path>`: a path on a PersistentVolumeClaim of this namespace.",
        json_schema_extra=rules(rule("!self.contains('..')", "must not contain `..`")),
    ),
]
Overrides = Annotated[
    dict[Annotated[str, Field(max_length=64, pattern=SNAKE_CASE)], Annotated[str, Field(max_length=512)]],
    Field(max_length=32),
]
LabelKey = Annotated[str, Field(max_length=317, pattern=LABEL_KEY)]
LabelValue = Annotated[str, Field(max_length=63, pattern=LABEL_VALUE)]


class Reference(Block):
    """A bare name: the object is in the same namespace, always."""

    name: Name = Field(description="Name of the object, in this namespace.")


ARTIFACT_RULES = (
    rule("has(self.artifact) == has(self.fineTuneJobRef)", "`artifact` goes with `fineTuneJobRef`, and must be set with it"),
    rule("!has(self.artifact) || self.artifact != 'Adapter'", "an Adapter is no model by itself: name Merged or a variant", ".artifact"),
)


class ModelSource(Block):
    """The one way to name a model."""

    model_config = ConfigDict(json_schema_extra=rules(union("uri", "fineTuneJobRef"), *ARTIFACT_RULES))

    uri: URI | None = Field(None, description="`pvc://<claim>/<path>`: a folder of safetensors on a PersistentVolumeClaim of this namespace.")
    fine_tune_job_ref: Reference | None = Field(None, description="A FineTuneJob whose artifact is meant; it is waited for.")
    artifact: Annotated[str, Field(pattern=ARTIFACT, min_length=1, max_length=40)] | None = Field(
        None, description="`Merged`, or the name of one of the FineTuneJob's variants."
    )


class Resources(Block):
    """Resources of each pod. Requests equal limits for memory and GPUs; `cpu` is a request only."""

    gpus: int | None = Field(None, ge=0, le=64, description="GPUs of each pod. Absent or 0: the stage runs on CPU.")
    gpu_resource: str | None = Field(
        None, max_length=63, pattern=r"^[a-z0-9.-]+/[a-zA-Z0-9._-]+$", description="Extended resource that counts them. Default: nvidia.com/gpu."
    )
    cpu: Quantity | None = Field(None, description="CPU request. Default: 1.")
    memory: Quantity | None = Field(None, description="Memory request and limit. Default: 4Gi.")
    shared_memory: Quantity | None = Field(None, description="Size limit of /dev/shm. Default: 1Gi.")


class Toleration(Block):
    """core/v1 Toleration, with the rules that the server has for a pod's."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "(has(self.key) && self.key != '') || (has(self.operator) && self.operator == 'Exists')",
                "`operator` must be Exists where there is no `key`: it then matches every taint",
                ".operator",
            ),
            rule(
                "!has(self.operator) || self.operator != 'Exists' || !has(self.value) || self.value == ''",
                "must be absent with `operator` Exists",
                ".value",
            ),
            rule(
                "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
                "needs `effect` NoExecute",
                ".tolerationSeconds",
            ),
        )
    )

    key: Annotated[str, Field(max_length=317, pattern=f"^$|{LABEL_KEY}")] | None = Field(
        None, description="Taint key; absent with operator Exists matches all."
    )
    operator: Literal["Exists", "Equal"] | None = Field(None, description="Default: Equal.")
    value: LabelValue | None = Field(None, description="Taint value.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(None, description="Taint effect; absent matches all.")
    toleration_seconds: int | None = Field(None, ge=0, le=604800, description="For NoExecute: how long the pod stays.")


class Scheduling(Block):
    """Where pods may run, and the Kueue queue that they wait in."""

    queue_name: ObjectName | None = Field(None, description="Kueue LocalQueue of this namespace. Needs Kueue: without it nothing would ever start.")
    workload_priority_class_name: ObjectName | None = Field(None, description="Kueue WorkloadPriorityClass: order in the queue and preemption.")
    priority_class_name: ObjectName | None = Field(
        None,
        description="PriorityClass of the pods; not one of the cluster's own.",
        json_schema_extra=rules(rule("!self.startsWith('system-')", "must not begin with `system-`: those are for the cluster's own pods")),
    )
    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] | None = Field(None, description="Labels that the nodes must have.")
    tolerations: Annotated[list[Toleration], Field(max_length=16)] | None = Field(
        None, description="Taints that the pods tolerate; those of a node that does not answer only where their keys are named."
    )


class StageScheduling(Scheduling):
    """Where the pods of stages may run, and the Kueue queues that their Jobs wait in."""

    cpu_queue_name: ObjectName | None = Field(None, description="Kueue LocalQueue of the stages without GPUs. Default: queueName.")


class Limited(Block):
    """Limits of the kinds that end. They may be changed at any time; one that is passed ends the object for good."""

    active_deadline_seconds: int | None = Field(
        None,
        ge=1,
        le=2147483647,
        description="Fails when its attempts have run for longer: waiting does not count. As in a Job, resuming restarts the clock.",
    )
    pending_deadline_seconds: int | None = Field(
        None,
        ge=1,
        le=2147483647,
        description="Fails when it waits for longer at a stretch for a queue, a node, an image: over all attempts that did not get all their pods.",
    )
    max_gpu_hours: int | None = Field(
        None, alias="maxGPUHours", ge=1, le=10_000_000, description="Fails when its pods have held GPUs for so long. What runs may save first."
    )
    ttl_seconds_after_finished: int | None = Field(
        None,
        ge=0,
        le=2147483647,
        description="Jobs, pods and Services are removed so long after the end; the object and its artefacts stay. Absent: all stay.",
    )


Format = Literal["Messages", "Alpaca", "PromptCompletion", "Text"]


class DataSource(Block):
    """A JSON Lines file or a folder of them, and the shape of their rows."""

    uri: URI = Field(description="`pvc://<claim>/<path>`: a JSON Lines file, or a folder of them, on a PersistentVolumeClaim of this namespace.")
    format: Format = Field(
        description="Messages: `messages`, `tools`. Alpaca: `instruction`, `input`, `output`. "
        "PromptCompletion: `prompt`, `completion`. Text: `text`. docs/data.md has all keys."
    )


def dump(block: BaseModel) -> dict[str, Any]:
    """`block` as the API and the stage contract spell it: camelCase, absent members left out."""
    return block.model_dump(by_alias=True, exclude_none=True, mode="json")
