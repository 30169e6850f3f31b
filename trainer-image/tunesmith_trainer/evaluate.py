"""The Evaluate stage: measures one model with every suite of an EvalRun, through a cache."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunesmith_trainer import answers, generation, harness, perplexity, result, store
from tunesmith_trainer.contract import Device
from tunesmith_trainer.contract_eval import EvaluateAnswer, EvaluatedModel, EvaluateInput, Metric, Precision, Suite
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.failure import ADVICE
from tunesmith_trainer.harness_tasks import TaskFolder
from tunesmith_trainer.model import load_tokenizer, refuse_unsafe

INPUT = EvaluateInput
DTYPES = {"BF16": "bfloat16", "FP32": "float32"}
LIBRARIES = ("torch", "transformers", "tokenizers", "compressed-tensors", "lm_eval", "datasets")
"""The libraries whose versions may change a figure."""


def run(stage: EvaluateInput) -> EvaluateAnswer:
    """Measure the model and return all its metrics.

    Raises StageError: SourceNotFound, DigestMismatch, UnsafeWeights, RemoteCodeRefused and InvalidModel for the model;
    InvalidSettings, InvalidDataset and EmptyDataset for a suite.
    """
    folder, digest = store.verify(stage.model.uri, stage.model.digest)
    refuse_unsafe(folder, stage.model.uri)
    generation.check(folder)
    tokenizer = load_tokenizer(folder)
    # Loaded by the first suite that is not in the cache, if any.
    model = cache(partial(load_model, folder, stage.precision, stage.device))
    metrics: list[Metric] = []
    with tempfile.TemporaryDirectory() as workspace:
        for suite in stage.suites:
            tasks = harness.prepare(suite.harness, Path(workspace) / suite.name) if suite.harness else None
            key = ingredients(suite, tasks, digest, stage, tokenizer)
            metrics += measured(stage.output_uri, key, partial(measure, suite, tasks, model, tokenizer, folder))
    return EvaluateAnswer(
        model=EvaluatedModel(name=stage.model.name, uri=stage.model.uri, digest=digest),
        result_uri=store.uri_of(result.result_path(stage.run_uri, stage.result_name)),
        versions=versions(),
        metrics=metrics,
        warnings=(any(map(is_conversational, stage.suites)) and answers.warnings(tokenizer, folder)) or None,
    )


def is_conversational(suite: Suite) -> bool:
    """Return whether a suite's rows are conversations."""
    return suite.perplexity is not None and suite.perplexity.dataset.format == "Messages"


def load_model(folder: Path, precision: Precision, device: Device) -> Any:
    """Return the model at `folder`, with the weights that are not quantized in `precision`."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, DTYPES[precision]),
        local_files_only=True,
        trust_remote_code=False,
        device_map=device_map(torch.cuda.device_count()) if device == "GPU" else "cpu",
    )
    if device == "GPU":
        require_on_gpus(parameter.device.type for parameter in model.parameters())
    return model.eval()


def device_map(gpus: int) -> str | dict[str, int]:
    """Return transformers' device map: a single GPU gets all, or runs out of memory; several share the layers."""
    return "auto" if gpus > 1 else {"": 0}


def require_on_gpus(kinds: Iterable[str]) -> None:
    """Refuse a model of which transformers left weights on the host or on disk (`meta`): StageError(OutOfMemory).

    It would be measured all the same, a layer at a time, for days.
    """
    elsewhere = Counter(kind for kind in kinds if kind != "cuda")
    if elsewhere:
        message = f"{elsewhere.total()} weights of the model do not fit the memory of the GPUs"
        raise StageError("OutOfMemory", f"{message}: {ADVICE['Device', 'Evaluate']}", {"memory": "Device"})


def measure(suite: Suite, tasks: TaskFolder | None, model: Callable[[], Any], tokenizer: Any, folder: Path) -> list[Metric]:
    """Return one suite's metrics of the model that `model()` loads from a folder."""
    if suite.harness:
        return harness.measure(suite.name, suite.harness, tasks, model(), tokenizer)
    assert suite.perplexity is not None
    likelihoods = perplexity.measure(suite.name, suite.perplexity, model(), tokenizer)
    return likelihoods + answers.measure(suite.name, suite.perplexity, model(), tokenizer, folder)


def versions() -> dict[str, str]:
    """Return the versions of the libraries that make the figures."""
    return {name: version(name) for name in LIBRARIES}


def ingredients(suite: Suite, tasks: TaskFolder | None, digest: str, stage: EvaluateInput, tokenizer: Any) -> dict[str, Any]:
    """Return all that a suite's figures depend on. Where the data lies is left out: its digest says what it is."""
    settings = suite.dump()
    if suite.harness:
        settings["harness"].pop("includePath", None)
        data, template = harness.data_digests(tasks), None
    else:
        assert suite.perplexity is not None
        settings["perplexity"]["dataset"].pop("uri")
        data = {"rows": perplexity.data_digest(suite.perplexity)}
        template = perplexity.template_of(suite.perplexity, tokenizer)
    return {
        "model": digest,
        "suite": settings,
        "data": data,
        "versions": versions(),
        "dtype": stage.precision,
        "device": stage.device,
        "template": template,
        "method": perplexity.METHOD,
    }


def measured(output_uri: str, key: dict[str, Any], compute: Callable[[], list[Metric]]) -> list[Metric]:
    """Return the metrics cached under `key`, computing and writing them where there are none.

    A cache file holds its key: one that was cut off, or written by another version of this code, is computed anew.
    """
    name = store.digest_of(key).removeprefix("sha256:")
    path = store.path_of(output_uri) / "eval-cache" / f"{name}.json"
    found = store.read_json(path)
    if isinstance(found, dict) and found.get("key") == key:
        try:
            return [Metric.model_validate(metric) for metric in found["metrics"]]
        except (ValidationError, KeyError, TypeError):
            print(f"{path.name} in the evaluation cache is damaged: measuring again", flush=True)
    metrics = compute()
    store.write_json(path, {"key": key, "metrics": [metric.dump() for metric in metrics]})
    return metrics
