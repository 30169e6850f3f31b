"""The blocks that the specs of the three kinds share and no stage is given, and CEL rules on whole specs.

The models, with those of `tunesmith_contract`, are the single source of the CRDs (`crd.py`). Field names are the libraries' own in
camelCase. The operator fills a field's default in (`tunesmith_contract.base.filled`), and its description has it; only defaults without
which absence would be ambiguous are marked `crd_default` and become part of the schema (`/scale` needs one, docs/DESIGN.md section 1).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from tunesmith_contract.base import DNS_LABEL, URI, Block, Name, OneOf, Rule, rule, rules

GPU_RESOURCE, CPU, MEMORY, SHARED_MEMORY = "nvidia.com/gpu", "1", "4Gi", "1Gi"
RETRIES = 3
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
LABEL_KEY = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
ARTIFACT = r"^(Adapter|Merged|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$"


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


ObjectName = Annotated[str, Field(pattern=DNS_LABEL, min_length=1, max_length=63)]
Quantity = Annotated[str, Field(pattern=QUANTITY, min_length=1, max_length=32)]
LabelKey = Annotated[str, Field(max_length=317, pattern=LABEL_KEY)]
LabelValue = Annotated[str, Field(max_length=63, pattern=LABEL_VALUE)]


class Reference(Block):
    """A bare name: the object is in the same namespace, always."""

    name: Name = Field(description="Name of the object, in this namespace.")


ARTIFACT_RULES = (
    rule("has(self.artifact) == has(self.fineTuneJobRef)", "`artifact` goes with `fineTuneJobRef`, and must be set with it"),
    rule("!has(self.artifact) || self.artifact != 'Adapter'", "an Adapter is no model by itself: name Merged or a variant", ".artifact"),
)


class ModelSource(OneOf):
    """The one way to name a model."""

    model_config = ConfigDict(json_schema_extra=rules(*ARTIFACT_RULES))
    beside: ClassVar[tuple[str, ...]] = ("artifact",)

    uri: URI | None = Field(None, description="`pvc://<claim>/<path>`: a folder of safetensors on a PersistentVolumeClaim of this namespace.")
    fine_tune_job_ref: Reference | None = Field(None, description="A FineTuneJob whose artifact is meant; it is waited for.")
    artifact: Annotated[str, Field(pattern=ARTIFACT, min_length=1, max_length=40)] | None = Field(
        None, description="`Merged`, or the name of one of the FineTuneJob's variants."
    )


class Resources(Block):
    """Resources of each pod. Requests equal limits for memory and GPUs; `cpu` is a request only."""

    gpus: int | None = Field(None, ge=0, le=64, description="GPUs of each pod. Absent or 0: the stage runs on CPU.")
    gpu_resource: str = Field(
        GPU_RESOURCE, max_length=63, pattern=r"^[a-z0-9.-]+/[a-zA-Z0-9._-]+$", description="Extended resource that counts them."
    )
    cpu: Quantity = Field(CPU, description="CPU request.")
    memory: Quantity = Field(MEMORY, description="Memory request and limit.")
    shared_memory: Quantity = Field(SHARED_MEMORY, description="Size limit of /dev/shm.")


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
