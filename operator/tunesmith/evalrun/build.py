"""What must exist for an EvalRun: a Job for each model under test, then one that compares."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from tunesmith.core.objects import Object, Observed, Plan
from tunesmith.evalrun.api import PRECISION, TESTED
from tunesmith.evalrun.resolve import COMPARE, EVALUATE
from tunesmith.stages.attempt import Attempt, StageKey
from tunesmith.stages.job import Stage, contract_version, plan, result_of
from tunesmith_contract.base import filled
from tunesmith_contract.evaluation import Suite
from tunesmith_contract.stages import CompareInput, EvaluatedModel, EvaluateInput, JobInput, Lineage, NamedModel, unchecked


def build(observed: Observed, status: Mapping[str, Any]) -> Plan:
    """The children that the stages in `status` need."""
    return plan(observed, status, partial(_stage, observed, status))


def _stage(observed: Observed, status: Mapping[str, Any], attempt: Attempt) -> Stage:
    key = attempt.key
    given = dict(observed.spec.get("resources") or {})
    # Comparing reads a few JSON files: a GPU would stand idle for it.
    resources = {name: value for name, value in given.items() if name != "gpus"} if key.name == COMPARE else given
    common = attempt.common_input(resources) | {"run_uri": status["resolved"]["runURI"]}
    make = _compare if key.name == COMPARE else _evaluate
    return Stage(
        input=make(observed.spec, status, key, common),
        image=status["resolved"]["images"]["trainer"],
        contract_version=contract_version(status["resolved"]),
        resources=resources,
        scheduling=observed.spec.get("scheduling") or {},
    )


def _evaluate(spec: Mapping[str, Any], status: Mapping[str, Any], key: StageKey, common: Mapping[str, Any]) -> JobInput:
    return unchecked(
        EvaluateInput,
        **common,
        output_uri=status["resolved"]["outputURI"],
        model=NamedModel(**_models(status)[key.part]),
        suites=[filled(Suite, suite) for suite in spec["suites"]],
        precision=spec.get("precision", PRECISION),
        gate=spec.get("gate") or None,
    )


def _compare(spec: Mapping[str, Any], status: Mapping[str, Any], key: StageKey, common: Mapping[str, Any]) -> JobInput:
    """Compare reads what each Evaluate wrote, about the very models that these found."""
    tested, *baselines = [EvaluatedModel(**model) for model in _models(status).values()]
    told = {name: result_of(status, EVALUATE, name) or {} for name in _models(status)}
    lineage = status["resolved"].get("lineage")
    return unchecked(
        CompareInput,
        **common,
        tested=tested,
        baselines=baselines,
        evaluations={name: result["resultURI"] for name, result in told.items()},
        suites=[filled(Suite, suite) for suite in spec["suites"]],
        gate=spec.get("gate", []),
        lineage=Lineage.model_validate(lineage) if lineage else None,
    )


def _models(status: Mapping[str, Any]) -> dict[str, Object]:
    """All models by name, the one under test first."""
    return {TESTED: {"name": TESTED, **status["evaluated"]}} | {each["name"]: each for each in status["resolved"]["baselines"]}
