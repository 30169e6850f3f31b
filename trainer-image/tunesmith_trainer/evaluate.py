"""The Evaluate stage: measures one model with every suite of an EvalRun, through a cache."""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunesmith_contract.evaluation import Suite
from tunesmith_contract.results import EvaluateAnswer, ItemsFile, Metric
from tunesmith_contract.stages import Device, EvaluatedModel, EvaluateInput
from tunesmith_contract.training import Precision
from tunesmith_trainer import result, stage_input, store
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.failure import ADVICE
from tunesmith_trainer.gate import checks
from tunesmith_trainer.model import generation, loading
from tunesmith_trainer.model.base import load_tokenizer, refuse_unsafe
from tunesmith_trainer.suites import answers, harness, items, perplexity
from tunesmith_trainer.suites.harness import Tasks
from tunesmith_trainer.suites.items import Measured

INPUT = EvaluateInput
DTYPES = {"BF16": "bfloat16", "FP32": "float32"}
LIBRARIES = ("torch", "transformers", "tokenizers", "compressed-tensors", "accelerate", "lm_eval", "datasets")
"""The libraries whose versions may change a figure."""
DAY = datetime(2024, 7, 26)
"""What a chat template that writes the day takes for today: the figures of two models must not be of two days."""


def run(stage: EvaluateInput) -> EvaluateAnswer:
    """Measure the model and return all its metrics.

    Raises StageError: SourceNotFound, DigestMismatch, UnsafeWeights, RemoteCodeRefused and InvalidModel for the model;
    InvalidSettings, InvalidDataset and EmptyDataset for a suite; InvalidSettings for a criterion of the gate that could not be judged.
    """
    metrics: list[Metric] = []
    files: list[ItemsFile] = []
    with tempfile.TemporaryDirectory() as workspace, one_day():
        # First of all: a model's digest alone may take an hour.
        tasks = {suite.name: harness.load(suite.harness, Path(workspace) / suite.name) for suite in stage.suites if suite.harness}
        checks.check(stage.gate or [], stage.suites, tasks)
        folder, digest = store.verify(stage.model.uri, stage.model.digest)
        refuse_unsafe(folder, stage.model.uri)
        embeddings = loading.check(folder, stage.model.uri)
        generation.check(folder)
        tokenizer = load_tokenizer(folder)
        loading.check_tokens(tokenizer, embeddings, stage.model.uri)
        for suite in stage.suites:
            if suite.harness:
                harness.check_template(suite.name, suite.harness, tokenizer)
        # Loaded by the first suite that is not in the cache, if any.
        model = cache(partial(load_model, folder, stage.precision, stage.device))
        for suite in stage.suites:
            own = tasks.get(suite.name)
            key = ingredients(suite, own, digest, stage, tokenizer)
            found, file = measured(stage.output_uri, suite, key, partial(measure, suite, own, model, tokenizer, folder))
            metrics += found
            files.append(file)
        warnings = (any(map(is_conversational, stage.suites)) and answers.warnings(tokenizer, folder)) or None
    return EvaluateAnswer(
        model=EvaluatedModel(name=stage.model.name, uri=stage.model.uri, digest=digest),
        result_uri=store.uri_of(result.result_path(stage.run_uri, stage_input.result_name(stage))),
        versions=versions(),
        metrics=metrics,
        items=files,
        environment=environment(stage.device),
        tokenizer=vocabulary_digest(tokenizer),
        warnings=warnings,
    )


def is_conversational(suite: Suite) -> bool:
    """Return whether a suite's rows are conversations."""
    return suite.perplexity is not None and suite.perplexity.dataset.format == "Messages"


def load_model(folder: Path, precision: Precision, device: Device) -> Any:
    """Return the model at `folder`, with the weights that are not quantized in `precision`."""
    import torch

    where = device_map(torch.cuda.device_count()) if device == "GPU" else "cpu"
    dtype = getattr(torch, DTYPES[precision])
    model = loading.load(folder, dtype=dtype, device_map=where)
    if device == "GPU":
        require_on_gpus(parameter.device.type for parameter in model.parameters())
    _widen(model, dtype)
    return model.eval()


def _widen(model: Any, dtype: Any) -> None:
    """Give weights that are not quantized the precision asked for, where that is the wider one.

    transformers leaves those of a quantized model that it renames while it loads them in the precision of their file.
    """
    plain = (module for module in model.modules() if getattr(module, "quantization_scheme", None) is None)
    for parameter in (parameter for module in plain for parameter in module.parameters(recurse=False)):
        if parameter.is_floating_point() and parameter.itemsize < dtype.itemsize:
            parameter.data = parameter.data.to(dtype)


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


def measure(suite: Suite, tasks: Tasks | None, model: Callable[[], Any], tokenizer: Any, folder: Path) -> Measured:
    """Return one suite's metrics of the model that `model()` loads from a folder, with their items."""
    if suite.harness:
        assert tasks is not None
        return harness.measure(suite.name, suite.harness, tasks, model(), tokenizer)
    assert suite.perplexity is not None
    likelihoods = perplexity.measure(suite.name, suite.perplexity, model(), tokenizer)
    return likelihoods.beside(answers.measure(suite.name, suite.perplexity, model(), tokenizer, folder))


@contextmanager
def one_day() -> Iterator[None]:
    """Have chat templates that write the day (`strftime_now`) write the same one always."""
    from transformers.utils import chat_template_utils as library

    class Day(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Day:
            return cls(DAY.year, DAY.month, DAY.day, tzinfo=tz)

    own = library.datetime
    library.datetime = Day
    try:
        yield
    finally:
        library.datetime = own


def versions() -> dict[str, str]:
    """Return the versions of the libraries that make the figures."""
    return {name: version(name) for name in LIBRARIES}


def environment(device: Device) -> dict[str, str]:
    """Return what the figures are computed on: other kernels, and sums over other numbers of parts, round otherwise."""
    import torch

    if device == "GPU":
        names = Counter(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
        found = ", ".join(f"{count} x {name}" for name, count in sorted(names.items()))
        return {"device": found or "no GPU", "cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    kind = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"device": f"CPU {kind}", "threads": str(torch.get_num_threads())}


def vocabulary_digest(tokenizer: Any) -> str:
    """Return the digest of a tokenizer's vocabulary."""
    return "sha256:" + hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def ingredients(suite: Suite, tasks: Tasks | None, digest: str, stage: EvaluateInput, tokenizer: Any) -> dict[str, Any]:
    """Return all that a suite's figures depend on. Where the data lies is left out: its digest says what it is."""
    settings = suite.dump()
    if suite.harness:
        assert tasks is not None
        settings["harness"].pop("includePath", None)
        data, template = harness.data_digests(tasks.folder), None
        method = {"harness": harness.METHOD, "batch": harness.BATCH_SIZE, "seeds": harness.SEEDS}
    else:
        assert suite.perplexity is not None
        settings["perplexity"]["dataset"].pop("uri")
        data = {"rows": perplexity.data_digest(suite.perplexity)}
        template = perplexity.template_of(suite.perplexity, tokenizer)
        method = {"perplexity": perplexity.METHOD, "batch": perplexity.BATCH_TOKENS, "logits": perplexity.LOGITS}
        method |= {"prompts": answers.PROMPTS, "newTokens": answers.NEW_TOKENS}
    return {
        "model": digest,
        "suite": settings,
        "data": data,
        "versions": versions(),
        "dtype": stage.precision,
        "device": stage.device,
        "environment": environment(stage.device),
        "template": template,
        "day": DAY.date().isoformat(),
        "method": method,
    }


def measured(output_uri: str, suite: Suite, key: dict[str, Any], compute: Callable[[], Measured]) -> tuple[list[Metric], ItemsFile]:
    """Return the metrics cached under `key` and the file of their items, computing and writing them where there are none.

    A cache file holds its key: one that was cut off, or written by another version of this code, or whose items are gone, is
    computed again.
    """
    name = store.digest_of(key).removeprefix("sha256:")
    folder = store.path_of(output_uri) / "eval-cache"
    path, kept = folder / f"{name}.json", folder / "items"
    found = store.read_json(path)
    if isinstance(found, dict) and found.get("key") == key:
        try:
            metrics = [Metric.model_validate(metric) for metric in found["metrics"]]
            file = _file(suite, kept, found["items"])
            items.read([file])
        except (ValidationError, KeyError, TypeError, ValueError, StageError):
            print(f"{path.name} in the evaluation cache is damaged, or its items are: measuring again", flush=True)
        else:
            return metrics, file
    new = compute()
    digest = items.write(kept, new)
    store.write_json(path, {"key": key, "metrics": [metric.dump() for metric in new.metrics], "items": digest})
    return new.metrics, _file(suite, kept, digest)


def _file(suite: Suite, folder: Path, digest: str) -> ItemsFile:
    return ItemsFile(suite=suite.name, uri=store.uri_of(items.place(folder, digest)), digest=digest)
