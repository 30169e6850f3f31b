"""EvalRun's spec. docs/DESIGN.md section 1 tells what each block is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from tunesmith.api.blocks import (
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
    when_made,
)
from tunesmith.workload.podspec import claims

TESTED = "tested"
PERPLEXITY_METRICS = {"perplexity": False, "bits_per_byte": False, "stopped": True}
"""What a perplexity suite measures, and whether more of it is better."""
OVERLAP = "overlap"
"""Measured of every suite: the share of its items that the tested model was trained on."""


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
    limit: int | None = Field(
        None, ge=1, le=1_000_000, description="Documents of each task: the first ones, or with `sampleSeed` some of all. Default: all."
    )
    sample_seed: int | None = Field(None, ge=0, le=2147483647, description="Draws the `limit` documents from all of the task's.")
    apply_chat_template: bool | None = Field(
        None, description="True: prompts are conversations in the model's chat template, few-shot examples turns of theirs. Default: false."
    )
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


CONFIDENCE = r"^0\.[0-9]{1,6}$"


class Criterion(Block):
    """One condition of the gate: exactly one of min, max, maxDrop, maxRatio, minRatio.

    It has Passed where a one-sided confidence bound of what it limits lies within the limit, Failed where the bound on the other side
    lies beyond it, and is Inconclusive in between. docs/gate.md says how many items it takes.
    """

    model_config = ConfigDict(
        json_schema_extra=rules(
            union("min", "max", "maxDrop", "maxRatio", "minRatio"),
            rule(
                "has(self.baseline) == (has(self.maxDrop) || has(self.maxRatio) || has(self.minRatio))",
                "maxDrop, maxRatio and minRatio need `baseline`; min and max must not have it",
            ),
        )
    )

    metric: str = Field(
        min_length=1,
        max_length=256,
        pattern=r"^[A-Za-z0-9_.,/-]+$",
        description="suite/task/metric[,filter], suite/perplexity, suite/bits_per_byte, suite/stopped, "
        "or suite/overlap: the share of its items trained on.",
    )
    baseline: Name | None = Field(None, description="The baseline that maxDrop, maxRatio and minRatio compare with, item by item.")
    min: Decimal | None = Field(None, description="value >= min, for metrics of which more is better.")
    max: Decimal | None = Field(None, description="value <= max, for metrics of which less is better.")
    max_drop: Decimal | None = Field(None, description="Worse than the baseline by at most this much (lower for scores, higher for perplexity).")
    max_ratio: Decimal | None = Field(None, description="value / baseline <= maxRatio, for metrics of which less is better.")
    min_ratio: Decimal | None = Field(None, description="value / baseline >= minRatio, for metrics of which more is better.")
    higher_is_better: bool | None = Field(None, description="Needed where the metric does not say so itself; must not contradict it.")
    min_samples: int | None = Field(None, ge=1, le=100_000_000, description="With fewer items it is Inconclusive.")
    confidence: Annotated[str, Field(pattern=CONFIDENCE, min_length=3, max_length=8)] | None = Field(
        None,
        description="Of each bound: a figure that is at its limit passes at a rate of at most 1 - confidence. Default: 0.95.",
        json_schema_extra=rules(rule("double(self) >= 0.5", "must be at least 0.5")),
    )


def _on_perplexity(condition: str) -> str:
    """CEL: `condition` on each criterion g whose metric is one of a perplexity suite s."""
    return f"!has(self.gate) || self.gate.all(g, self.suites.all(s, !has(s.perplexity) || !g.metric.startsWith(s.name + '/') || ({condition})))"


def _is_one_of(*metrics: str) -> str:
    return "g.metric in [" + ", ".join(f"s.name + '/{metric}'" for metric in metrics) + "]"


def _metrics(higher: bool) -> list[str]:
    return [name for name, more in PERPLEXITY_METRICS.items() if more == higher]


GATE_RULES = (
    when_made(
        "!has(self.gate) || self.gate.all(g, self.suites.exists(s, g.metric.startsWith(s.name + '/')))",
        "the first part of a metric must be the name of one of `suites`",
        ".gate",
    ),
    when_made(
        _on_perplexity(_is_one_of(*PERPLEXITY_METRICS, OVERLAP)),
        f"a perplexity suite measures {', '.join((*PERPLEXITY_METRICS, OVERLAP))}, and nothing else",
        ".gate",
    ),
    when_made(
        "!has(self.gate) || self.gate.all(g, self.suites.all(s, !has(s.harness) || !g.metric.startsWith(s.name + '/') || "
        f"g.metric == s.name + '/{OVERLAP}' || g.metric.split('/').size() == 3))",
        f"a metric of a harness suite is suite/task/metric[,filter], or suite/{OVERLAP}",
        ".gate",
    ),
    # One rule for both directions: the server adds up what all rules may cost.
    when_made(
        _on_perplexity(
            f"(!({_is_one_of(*_metrics(False))}) || (!has(g.min) && !has(g.minRatio) && !(has(g.higherIsBetter) && g.higherIsBetter))) && "
            f"(!({_is_one_of(*_metrics(True))}) || (!has(g.max) && !has(g.maxRatio) && !(has(g.higherIsBetter) && !g.higherIsBetter)))"
        ),
        f"of {' and '.join(_metrics(False))} less is better, of {' and '.join(_metrics(True))} more: "
        "`min` and `minRatio` of the former, `max` and `maxRatio` of the latter would ask for a worse model",
        ".gate",
    ),
    when_made(
        f"!has(self.gate) || self.gate.all(g, !g.metric.endsWith('/{OVERLAP}') || g.metric.split('/').size() != 2 || "
        "(has(g.max) && !(has(g.higherIsBetter) && g.higherIsBetter)))",
        f"{OVERLAP} is counted on the model under test alone, and less is better: use `max`",
        ".gate",
    ),
)


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
            *GATE_RULES,
        )
    )

    model: JudgedModel = Field(description="The model under test.")
    baselines: Annotated[list[Baseline], Field(max_length=8)] | None = Field(None, description="Models to compare with.")
    suites: Annotated[list[Suite], Field(min_length=1, max_length=16)] = Field(description="What to measure.")
    gate: Annotated[list[Criterion], Field(max_length=16)] | None = Field(
        None, description="All must pass for the verdict Passed. Absent: the verdict is NoCriteria, by which no ModelDeployment serves."
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
