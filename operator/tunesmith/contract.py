"""The operator's side of the stage contract (docs/contract.md): stage inputs, which we build. `results.py` has what we parse.

Blocks that come from a spec are `SpecBlock` here: their models are the kinds' `api.py`, which this module must not import; a test
parses the golden files' blocks with those.

An object keeps the image that it was first given, and images refuse fields that they do not know. So the status records the contract
version of that image beside it (absent: 1), and `stage_json` writes an input in that version: a field that is newer is left out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints
from pydantic.fields import FieldInfo

from tunesmith.api.blocks import Block

CONTRACT_VERSION: Literal[2] = 2
"""The version of the present images."""

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
SpecBlock = dict[str, Any]


def since(version: int) -> Any:
    """An optional field of an input that contract versions before `version` do not have."""
    return Field(None, json_schema_extra={"since": version})


class ObjectRef(Block):
    """The object that a stage belongs to."""

    kind: str
    namespace: str
    name: str
    uid: str


class Model(Block):
    """A model at its place, pinned."""

    uri: str
    digest: Digest


class UnpinnedModel(Block):
    """A model whose digest the stage may have to find itself."""

    uri: str
    digest: Digest | None = None


class NamedModel(UnpinnedModel):
    """A model under test: `tested`, or the name of a baseline."""

    name: str


class Checkpoint(Block):
    """A complete checkpoint."""

    uri: str
    step: int


class Input(Block):
    """What every stage is told."""

    schema_version: Literal[1, 2] = CONTRACT_VERSION
    stage: str
    device: Literal["CPU", "GPU"]
    gpus: int | None = since(2)
    """GPUs of each pod."""
    object: ObjectRef


class JobInput(Input):
    """What every stage that is a Job is told."""

    attempt: int


class TrainerImage(Block):
    """The images that determine a run's result."""

    trainer: str


class SourceModel(Block):
    """A model that Prepare resolves."""

    uri: str


class Run(Block):
    """All that determines the result of a FineTuneJob; `runDigest` is taken over it."""

    images: TrainerImage
    model: SourceModel
    datasets: list[SpecBlock]
    validation: SpecBlock | None = None
    preparation: SpecBlock | None = None
    method: SpecBlock
    adapter: SpecBlock | None = None
    base_quantization: Literal["NF4"] | None = None
    training: SpecBlock
    parallelism: SpecBlock
    output: SpecBlock
    variants: list[SpecBlock] | None = None


class Room(Block):
    """What a pod may use, in bytes: of its host, and of each of its GPUs where that is known."""

    device: Literal["CPU", "GPU"]
    memory: int
    gpu_memory: int | None = None


class Pods(Block):
    """The pods of the stages that follow Prepare."""

    train: Room
    finalize: Room
    quantize: Room


class PrepareInput(JobInput):
    """Prepare's stage.json."""

    stage: Literal["Prepare"] = "Prepare"
    output_uri: str = Field(alias="outputURI")
    run: Run
    pods: Pods | None = since(2)
    """No part of the run: what its memory is compared with."""


class RunInput(JobInput):
    """What every stage that works in a run's folder is told."""

    run_uri: str = Field(alias="runURI")


class Rendezvous(Block):
    """Where torchrun's agents meet."""

    endpoint: str
    nodes: int
    processes_per_node: int


class TrainInput(RunInput):
    """Train's stage.json."""

    stage: Literal["Train"] = "Train"
    model: Model
    method: SpecBlock
    adapter: SpecBlock | None = None
    base_quantization: Literal["NF4"] | None = None
    training: SpecBlock
    checkpoints: SpecBlock
    parallelism: SpecBlock
    rendezvous: Rendezvous


class FinalizeInput(RunInput):
    """Finalize's stage.json."""

    stage: Literal["Finalize"] = "Finalize"
    model: Model
    adapter: SpecBlock | None = None
    checkpoint: Checkpoint
    artifacts: list[Literal["Adapter", "Merged"]]


class QuantizeTraining(Block):
    """The one training setting that calibration needs."""

    max_length: int


class QuantizeInput(RunInput):
    """Quantize's stage.json."""

    stage: Literal["Quantize"] = "Quantize"
    model: Model
    variant: SpecBlock
    training: QuantizeTraining


class EvaluateInput(RunInput):
    """Evaluate's stage.json."""

    stage: Literal["Evaluate"] = "Evaluate"
    output_uri: str = Field(alias="outputURI")
    model: NamedModel
    suites: list[SpecBlock]
    precision: Literal["BF16", "FP32"]
    gate: list[SpecBlock] | None = since(2)
    """Checked before anything is measured: names and directions."""


class LineageStage(Block):
    """When a stage of the FineTuneJob ran."""

    name: str
    start_time: str
    completion_time: str


class Lineage(Block):
    """Where the model under test comes from."""

    run_uri: str = Field(alias="runURI")
    stages: list[LineageStage]


class CompareInput(RunInput):
    """Compare's stage.json."""

    stage: Literal["Compare"] = "Compare"
    tested: NamedModel
    baselines: list[NamedModel]
    evaluations: dict[str, str]
    suites: list[SpecBlock]
    gate: list[SpecBlock]
    lineage: Lineage | None = None


class ServeInput(Input):
    """Serve's stage.json."""

    stage: Literal["Serve"] = "Serve"
    model: UnpinnedModel
    engine: SpecBlock
    served_model_name: str
    port: int = 8000
    ready_port: int = 8001
    grace_period_seconds: int
    pause_seconds: int


def stage_json(stage_input: Input, version: int) -> dict[str, Any]:
    """The content of a stage's stage.json in a contract version."""
    content: dict[str, Any] = _in_version(stage_input, version)
    return content | {"schemaVersion": version}


def _in_version(value: Any, version: int) -> Any:
    """`value` as JSON, without absent fields and those that the version does not have."""
    if isinstance(value, list):
        return [_in_version(item, version) for item in value]
    if not isinstance(value, Block):
        return value
    known = {name: field for name, field in type(value).model_fields.items() if _since(field) <= version and getattr(value, name) is not None}
    return {field.alias or name: _in_version(getattr(value, name), version) for name, field in known.items()}


def _since(field: FieldInfo) -> int:
    extra = field.json_schema_extra
    return int(str(extra["since"])) if isinstance(extra, dict) and "since" in extra else 1
