"""EvalRun's spec. docs/DESIGN.md section 1 tells what each block is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from tunesmith.pods import claims
from tunesmith.spec import (
    ARTIFACT_RULES,
    URI,
    Block,
    DataSource,
    Decimal,
    Limited,
    ModelSource,
    Name,
    Reference,
    Resources,
    StageScheduling,
    immutable,
    only_while_suspended,
    rule,
    rules,
    union,
    unique_names,
)

KIND = "EvalRun"
PLURAL = "evalruns"
TESTED = "tested"


SuiteName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9-]*$", min_length=1, max_length=40)]


class JudgedModel(ModelSource):
    """A model to measure: also one that is served already."""

    model_config = ConfigDict(json_schema_extra=rules(union("uri", "fineTuneJobRef", "modelDeploymentRef"), *ARTIFACT_RULES))

    model_deployment_ref: Reference | None = Field(
        None, description="A ModelDeployment: the model of its active revision is meant, pinned when it is first seen; it is waited for."
    )


class Baseline(Block):
    """A model to compare with. `base` (the FineTuneJob's base model) and `unquantized` (its Merged artefact) need no `model`."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("has(self.model) || self.name in ['base', 'unquantized']", "a baseline other than base and unquantized needs `model`", ".model"),
            rule("self.name != 'tested'", "`tested` is the name of the model under test", ".name"),
        )
    )

    name: Name = Field(description="base, unquantized, or a name of your own.")
    model: JudgedModel | None = Field(None, description="Needed for a name of your own.")


class Harness(Block):
    """EleutherAI lm-evaluation-harness."""

    tasks: Annotated[list[Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.-]+$")]], Field(min_length=1, max_length=32)] = (
        Field(description="Task names, from includePath or lm-eval's own. No stage reaches a hub: data that a task needs must be on a volume.")
    )
    num_fewshot: int | None = Field(None, ge=0, le=64, description="Default: the task's own.")
    limit: int | None = Field(None, ge=1, le=1_000_000, description="Examples of each task. Default: all.")
    include_path: URI | None = Field(None, description="`pvc://<claim>/<path>`: a folder with further task definitions (YAML).")


class Perplexity(Block):
    """Token-level perplexity over the tokens a training loss would be taken on."""

    dataset: DataSource = Field(description="Held-out rows.")
    max_length: int | None = Field(None, ge=8, le=1048576, description="Longer rows are cut. Default: 1024.")


class Suite(Block):
    """One set of measurements: exactly one member beside the name."""

    model_config = ConfigDict(json_schema_extra=rules(union("harness", "perplexity")))

    name: SuiteName = Field(description="First part of its metrics' paths.")
    harness: Harness | None = Field(None, description="lm-evaluation-harness tasks.")
    perplexity: Perplexity | None = Field(
        None, description="Perplexity on a dataset; over Messages also stopped, the share of a few answers that end by themselves."
    )


class Criterion(Block):
    """One condition of the gate: exactly one of min, max, maxDrop, maxRatio."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            union("min", "max", "maxDrop", "maxRatio"),
            rule(
                "has(self.baseline) == (has(self.maxDrop) || has(self.maxRatio))",
                "maxDrop and maxRatio need `baseline`; min and max must not have it",
            ),
        )
    )

    metric: str = Field(
        min_length=1,
        max_length=256,
        pattern=r"^[A-Za-z0-9_.,/-]+$",
        description="suite/task/metric[,filter], suite/perplexity, suite/bits_per_byte or suite/stopped.",
    )
    baseline: Name | None = Field(None, description="The baseline that maxDrop and maxRatio compare with.")
    min: Decimal | None = Field(None, description="value >= min.")
    max: Decimal | None = Field(None, description="value <= max.")
    max_drop: Decimal | None = Field(None, description="Worse than the baseline by at most this much (lower for scores, higher for perplexity).")
    max_ratio: Decimal | None = Field(None, description="value / baseline <= maxRatio.")


class Output(Block):
    """Where results and the report go."""

    uri: URI = Field(description="`pvc://<claim>/<path>`: results go to `<namespace>/<name>/<run>` below it.")


IMMUTABLE = ("model", "baselines", "suites", "gate", "output", "precision")


class Spec(Limited):
    """What to measure and what to ask of it. Immutable but for suspend, retries, limits, resources and, while suspended, scheduling."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *immutable(*IMMUTABLE),
            rule("has(self.output) || has(self.model.fineTuneJobRef)", "`output` is needed when the model is not a FineTuneJob's", ".output"),
            rule(
                "!has(self.baselines) || self.baselines.all(b, has(b.model) || has(self.model.fineTuneJobRef))",
                "base and unquantized without `model` need a model that is a FineTuneJob's",
                ".baselines",
            ),
            only_while_suspended("scheduling"),
            unique_names("suites", optional=False),
            unique_names("baselines"),
            rule(
                "!has(self.gate) || self.gate.all(g, !has(g.baseline) || (has(self.baselines) && self.baselines.exists(b, b.name == g.baseline)))",
                "a gate's baseline must be one of `baselines`",
                ".gate",
            ),
        )
    )

    model: JudgedModel = Field(description="The model under test.")
    baselines: Annotated[list[Baseline], Field(max_length=8)] | None = Field(None, description="Models to compare with.")
    suites: Annotated[list[Suite], Field(min_length=1, max_length=16)] = Field(description="What to measure.")
    gate: Annotated[list[Criterion], Field(max_length=16)] | None = Field(
        None, description="All must hold for the verdict Passed. Absent: always Passed."
    )
    precision: Literal["BF16", "FP32"] | None = Field(None, description="Of weights that are not quantized. Default: BF16.")
    output: Output | None = Field(None, description="Default: the FineTuneJob's.")
    resources: Resources | None = Field(None, description="Of each evaluation pod.")
    scheduling: StageScheduling | None = Field(None, description="Where pods may run.")
    retries: int | None = Field(
        None, ge=0, le=100, description="Attempts after the first that failures of the program may spend, over all stages. Default: 3."
    )
    suspend: bool | None = Field(None, description="True: no pod runs. Default: false.")


def references(spec: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """Kind and name of every object that `spec` names, in its own namespace."""
    models = [spec["model"], *(baseline["model"] for baseline in spec.get("baselines", ()) if "model" in baseline)]
    kinds = {"fineTuneJobRef": "FineTuneJob", "modelDeploymentRef": "ModelDeployment"}
    named = {(kind, model[member]["name"]) for model in models for member, kind in kinds.items() if member in model}
    return frozenset(named | {("PersistentVolumeClaim", name) for name in claims(spec)})
