"""EvalRun's spec. docs/DESIGN.md section 1 tells what each block is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from tunesmith.api.blocks import (
    RETRIES,
    Limited,
    ModelSource,
    Reference,
    Resources,
    StageScheduling,
    immutable,
    only_while_suspended,
    unique_names,
    when_made,
)
from tunesmith.workload.podspec import claims
from tunesmith_contract.base import URI, Block, Name, rule, rules
from tunesmith_contract.evaluation import OVERLAP, PERPLEXITY_METRICS, Criterion, Suite
from tunesmith_contract.training import Precision

TESTED = "tested"
PRECISION: Precision = "BF16"


class JudgedModel(ModelSource):
    """A model to measure: also one that is served already."""

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
    precision: Precision = Field(PRECISION, description="Of weights that are not quantized.")
    output: Output | None = Field(None, description="Default: the FineTuneJob's.")
    resources: Resources | None = Field(None, description="Of each evaluation pod.")
    scheduling: StageScheduling | None = Field(None, description="Where pods may run.")
    retries: int = Field(RETRIES, ge=0, le=100, description="Attempts after the first that failures of the program may spend, over all stages.")
    suspend: bool = Field(False, description="True: no pod runs.")


def references(spec: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """Kind and name of every object that `spec` names, in its own namespace."""
    models = [spec["model"], *(baseline["model"] for baseline in spec.get("baselines", ()) if "model" in baseline)]
    kinds = {"fineTuneJobRef": "FineTuneJob", "modelDeploymentRef": "ModelDeployment"}
    named = {(kind, model[member]["name"]) for model in models for member, kind in kinds.items() if member in model}
    return frozenset(named | {("PersistentVolumeClaim", name) for name in claims(spec)})
