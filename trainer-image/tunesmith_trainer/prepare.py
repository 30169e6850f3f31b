"""Prepare: resolve every input to a digest, refuse what cannot work, and write the rows to train on."""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tunesmith_trainer import chat, dataset, generation, model, rehearsal, result, settings, store, strategy
from tunesmith_trainer.contract import PrepareAnswer, PrepareInput, ResolvedDataset, ResolvedModel, Run, StageInput
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.spec import DataSource

INPUT: type[StageInput] = PrepareInput
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "safetensors")
SAMPLE_TOKENS = 400


@dataclass(frozen=True)
class Data:
    """The rows to train on and to validate on, and what they were made of."""

    datasets: list[ResolvedDataset]
    validation_digest: str | None
    train: list[dataset.Row]
    validation: list[dataset.Row]


def run(stage: PrepareInput) -> PrepareAnswer:
    """Do Prepare's work; see docs/contract.md for what it checks and writes, and raises as StageError."""
    wanted = stage.run
    source = store.existing(wanted.model.uri)
    for item in _sources(wanted):
        store.existing(item.uri)
    model.refuse_unsafe(source, wanted.model.uri)
    facts = model.inspect(source)
    model.check_length(facts, wanted.training.max_length)
    model.check_group_sizes(facts, wanted.variants)
    model.check_target_modules(facts, wanted.adapter)
    strategy.check(wanted)
    settings.check(wanted.training, wanted.method, wanted.adapter)
    rehearsal.check(source, facts.architecture, wanted)
    generation.check(source)
    tokenizer = model.load_tokenizer(source)
    template = _template(wanted, tokenizer)
    ends = generation.trained_ends(tokenizer, (item.format for item in wanted.datasets))
    data = read_data(wanted, tokenizer, template)
    model_uri, model_digest = bring_model(wanted.model.uri, stage.output_uri)
    run_digest = digest_run(wanted, model_digest, data)
    run_uri = store.join(stage.output_uri, stage.object.namespace, stage.object.name, store.short(run_digest))
    answer = PrepareAnswer(
        run_digest=run_digest,
        run_uri=run_uri,
        model=ResolvedModel(
            uri=model_uri,
            digest=model_digest,
            parameters=facts.parameters,
            context_length=facts.context_length,
            architecture=facts.architecture,
        ),
        datasets=data.datasets,
        train_rows=len(data.train),
        validation_rows=len(data.validation),
        memory_estimate_bytes=model.estimate_memory(facts, wanted),
    )
    write_run(stage, answer, data, tokenizer, template, ends)
    return answer


def _sources(wanted: Run) -> list[DataSource]:
    own = [wanted.validation.dataset] if wanted.validation and wanted.validation.dataset else []
    return [*wanted.datasets, *own]


def _template(wanted: Run, tokenizer: Any) -> str | None:
    """Return the template that marks the assistant's tokens, where the loss is taken on these alone."""
    conversational = any(item.format == "Messages" for item in _sources(wanted))
    if conversational and not isinstance(tokenizer.chat_template, str):
        raise StageError("UnsupportedTemplate", "Messages data needs a chat template, and the model's tokenizer has none")
    only_assistant = wanted.method.sft is not None and wanted.method.sft.assistant_only_loss
    if only_assistant and not conversational:
        raise StageError("InvalidSettings", "method.sft.assistantOnlyLoss needs data of the format Messages")
    return chat.training_template(tokenizer) if only_assistant else None


def read_data(wanted: Run, tokenizer: Any, template: str | None) -> Data:
    """Read all datasets and split off the validation rows."""
    rule = dataset.Filter(wanted.preparation, tokenizer, template, wanted.training.max_length)
    resolved, rows = [], []
    for item in wanted.datasets:
        loaded = dataset.load(item.name, item.uri, item.format, rule)
        dropped = loaded.dropped.total()
        resolved.append(ResolvedDataset(name=item.name, digest=loaded.digest, rows=len(loaded.rows), dropped=dropped))
        rows += loaded.rows
    if wanted.validation is None:
        return Data(resolved, None, rows, [])
    if wanted.validation.dataset:
        own = wanted.validation.dataset
        loaded = dataset.load("validation", own.uri, own.format, rule)
        return Data(resolved, loaded.digest, rows, loaded.rows)
    train, validation = dataset.split(rows, float(wanted.validation.fraction or 0), wanted.training.seed)
    return Data(resolved, None, train, validation)


def bring_model(uri: str, output_uri: str) -> tuple[str, str]:
    """Return the URI and digest of a complete copy of the model, copying it into the cache if need be.

    A folder with a manifest is used where it lies, once every file of it was checked. Raises StageError(DigestMismatch)
    for a damaged folder or one that changes while it is read.
    """
    source, digest = store.verify(uri, None)
    if store.read_manifest(source) is not None:
        return uri, digest
    cached_uri = store.join(output_uri, "cache", store.short(digest))
    cached = store.path_of(cached_uri)
    if not store.is_intact(cached):
        copy_model(source, cached, uri, digest)
    return cached_uri, digest


def copy_model(source: Path, cached: Path, uri: str, digest: str) -> None:
    """Copy a model into the cache; another Prepare may be doing the same, so the copy grows beside its place."""
    incoming = cached.with_name(f".{cached.name}.{uuid.uuid4().hex[:8]}")
    try:
        for path in store.listed_files(source):
            target = incoming / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        # The copy is hashed, not the source again: this finds a bad copy as well as a source that changed meanwhile.
        if store.write_manifest(incoming).digest != digest:
            raise StageError("DigestMismatch", f"{uri} changed while it was copied; try again when nobody writes to it")
        if not store.is_intact(cached):
            shutil.rmtree(cached, ignore_errors=True)
            incoming.rename(cached)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def digest_run(wanted: Run, model_digest: str, data: Data) -> str:
    """Return the digest of all that determines the run: its settings, with URIs replaced by what lies there."""
    value = wanted.dump()
    value["model"]["uri"] = model_digest
    for item, resolved in zip(value["datasets"], data.datasets, strict=True):
        item["uri"] = resolved.digest
    if data.validation_digest:
        value["validation"]["dataset"]["uri"] = data.validation_digest
    return store.digest_of(value)


def render_sample(row: dataset.Row, tokenizer: Any, template: str | None) -> dict[str, Any]:
    """Return a row's tokens as texts, each with whether the loss is taken on it."""
    encoded = chat.encode(tokenizer, row, template)
    pairs = list(zip(encoded.ids, encoded.trained, strict=True))[:SAMPLE_TOKENS]
    return {"tokens": [{"text": tokenizer.decode([token]), "trained": trained} for token, trained in pairs]}


def write_run(stage: PrepareInput, answer: PrepareAnswer, data: Data, tokenizer: Any, template: str | None, ends: list[int]) -> None:
    """Write the run's data, its sample, its owner and its settings; a run that was prepared before only changes owner."""
    folder = store.path_of(answer.run_uri)
    store.write_json(folder / "owner.json", stage.object.dump())
    if result.read_finished(answer.run_uri, stage.result_name):
        return
    dataset.write(folder / "data" / "train.jsonl", data.train)
    if data.validation:
        dataset.write(folder / "data" / "validation.jsonl", data.validation)
    store.write_json(folder / "data" / "sample.json", render_sample(data.train[0], tokenizer, template))
    settled = {
        "runDigest": answer.run_digest,
        "run": stage.run.dump(),
        "model": answer.model.dump(),
        "datasets": [item.dump() for item in answer.datasets],
        generation.KEY: ends,
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
    }
    store.write_json(folder / "run.json", settled)
