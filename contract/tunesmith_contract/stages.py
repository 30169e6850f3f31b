"""What each stage is given (docs/contract.md).

An object keeps the image that it was first given, and images refuse fields that they do not know. So the status records the contract
version of that image beside it (absent: 1), and `stage_json` writes an input in that version: a field that is newer is left out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar, cast

from pydantic import Field, model_validator

from tunesmith_contract.adapters import Adapter, BaseQuantization
from tunesmith_contract.base import Block, Digest, Natural, Positive, json_name, left_out, mark, since, written
from tunesmith_contract.data import Dataset, Preparation, Validation
from tunesmith_contract.evaluation import Criterion, Suite
from tunesmith_contract.methods import Method
from tunesmith_contract.quantization import Variant
from tunesmith_contract.serving import Engine
from tunesmith_contract.training import ArtifactName, Checkpoints, Output, Parallelism, Precision, Training

CONTRACT_VERSION: Literal[2] = 2
"""The version of the present images."""

Device = Literal["CPU", "GPU"]
GivenInput = TypeVar("GivenInput", bound=Block)
Port = Annotated[int, Field(ge=1, le=65535)]


class ObjectRef(Block):
    """The Kubernetes object that a stage works for."""

    kind: str
    namespace: str
    name: str
    uid: str


class SourceModel(Block):
    """A model that the stage itself has to find."""

    uri: str


class UnpinnedModel(SourceModel):
    """A model's folder; without a digest the stage takes it as it is, and says what it was."""

    digest: Digest | None = None


class Model(SourceModel):
    """A model's folder, pinned."""

    digest: Digest


class NamedModel(UnpinnedModel):
    """A model under test: `tested`, or the name of a baseline."""

    name: str


class EvaluatedModel(Model):
    """A model that was measured, with the digest that was verified."""

    name: str


class Checkpoint(Block):
    """A complete checkpoint folder."""

    uri: str
    step: Natural
    """Optimizer steps that it holds."""


class Input(Block):
    """What every stage is given."""

    schema_version: Literal[1, 2] = CONTRACT_VERSION
    stage: str
    device: Device
    gpus: Positive | None = since(2)
    """GPUs of each pod."""
    object: ObjectRef

    @model_validator(mode="after")
    def _whole(self) -> Self:
        """Defaults are the operator's: an image of another version may have others."""
        names = [json_name(name) for name in ("schema_version", "stage") if name not in self.model_fields_set]
        blocks = {field.alias or name: getattr(self, name) for name, field in type(self).model_fields.items()}
        if absent := [*names, *(path for name, block in blocks.items() for path in left_out(block, name))]:
            raise ValueError(f"{', '.join(absent)} must be given")
        return self


class JobInput(Input):
    """What every stage that is a Job is given."""

    attempt: Positive


class Images(Block):
    """The images that determine a run's result."""

    trainer: str


class Run(Block):
    """All that determines the result of a FineTuneJob; `runDigest` is taken over it."""

    images: Images
    model: SourceModel
    datasets: list[Dataset] = Field(min_length=1)
    validation: Validation | None = None
    preparation: Preparation | None = None
    method: Method
    adapter: Adapter | None = None
    base_quantization: BaseQuantization | None = None
    training: Training
    parallelism: Parallelism
    output: Output
    variants: list[Variant] | None = None


class Room(Block):
    """What a pod may use, in bytes: of its host (its limit), and of each of its GPUs where the spec says how much these have."""

    device: Device
    memory: Positive
    gpu_memory: Positive | None = None


class Pods(Block):
    """The pods of the stages that follow Prepare."""

    train: Room
    finalize: Room
    quantize: Room


class PrepareInput(JobInput):
    """Prepare's stage.json: the whole run, and no `runURI` yet."""

    stage: Literal["Prepare"] = "Prepare"
    output_uri: str
    run: Run
    pods: Pods | None = since(2)
    """No part of the run: what its memory is compared with. Absent: nothing is refused for want of memory."""


class RunInput(JobInput):
    """What every stage that works in a run's folder is given."""

    run_uri: str


class Rendezvous(Block):
    """Where torchrun's agents meet: the first pod's name and port."""

    endpoint: str
    nodes: Positive
    processes_per_node: Positive


class TrainInput(RunInput):
    """Train's stage.json."""

    stage: Literal["Train"] = "Train"
    model: Model
    method: Method
    adapter: Adapter | None = None
    base_quantization: BaseQuantization | None = None
    training: Training
    checkpoints: Checkpoints
    parallelism: Parallelism
    rendezvous: Rendezvous


class FinalizeInput(RunInput):
    """Finalize's stage.json."""

    stage: Literal["Finalize"] = "Finalize"
    model: Model
    adapter: Adapter | None = None
    checkpoint: Checkpoint
    artifacts: list[ArtifactName] = Field(min_length=1)


class QuantizeTraining(Block):
    """The training setting that calibration shares: rows are cut at the length that training cut them at."""

    max_length: Positive


class QuantizeInput(RunInput):
    """Quantize's stage.json: the merged model and one variant of it."""

    stage: Literal["Quantize"] = "Quantize"
    model: Model
    variant: Variant
    training: QuantizeTraining


class EvaluateInput(RunInput):
    """Evaluate's stage.json: one model and all suites."""

    stage: Literal["Evaluate"] = "Evaluate"
    output_uri: str
    model: NamedModel
    suites: list[Suite] = Field(min_length=1)
    precision: Precision
    gate: list[Criterion] | None = since(2)
    """What Compare will judge: names and directions are checked before anything is measured."""


class StageTime(Block):
    """When a stage of the FineTuneJob ran."""

    name: str
    start_time: str
    completion_time: str


class Lineage(Block):
    """The run of the FineTuneJob that the model under test comes from."""

    run_uri: str
    stages: list[StageTime]


class CompareInput(RunInput):
    """Compare's stage.json: where each model's figures lie, and the gate."""

    stage: Literal["Compare"] = "Compare"
    tested: EvaluatedModel
    baselines: list[EvaluatedModel]
    evaluations: dict[str, str]
    """URIs of Evaluate's result files, by the models' names."""
    suites: list[Suite]
    gate: list[Criterion]
    lineage: Lineage | None = None


class ServeInput(Input):
    """Serve's stage.json."""

    stage: Literal["Serve"] = "Serve"
    model: UnpinnedModel
    engine: Engine
    served_model_name: Annotated[str, Field(min_length=1)]
    port: Port = 8000
    ready_port: Port = 8001
    grace_period_seconds: Positive
    """From SIGTERM to SIGKILL: the pod's own."""
    pause_seconds: Natural
    """How long new connections may still come after SIGTERM."""


def unchecked(input_type: type[GivenInput], /, **fields: Any) -> GivenInput:
    """An input whose blocks of a spec are JSON, as the API server has let them in.

    They are checked by the stage, not here: an object that a release before let in can still be worked on.
    """
    return cast(GivenInput, input_type.model_construct(**fields))


def stage_json(stage_input: Input, version: int) -> dict[str, Any]:
    """The content of a stage's stage.json in a contract version."""
    content: dict[str, Any] = written(stage_input, lambda field: (mark(field, "since") or 1) <= version)
    return content | {"schemaVersion": version}
