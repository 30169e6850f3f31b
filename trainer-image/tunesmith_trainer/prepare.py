"""Prepare: resolve every input to a digest, refuse what cannot work, and write the rows to train on."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from tunesmith_contract.data import DataSource, Preparation
from tunesmith_contract.results import DataFile, PrepareAnswer, ResolvedDataset, ResolvedModel
from tunesmith_contract.stages import JobInput, PrepareInput, Run
from tunesmith_trainer import quantize, result, stage_input, store
from tunesmith_trainer.data import dataset
from tunesmith_trainer.data.chat import Encoder
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.model import base, generation, loading
from tunesmith_trainer.quantization import calibration, compression, variant_trial
from tunesmith_trainer.training import arguments, memory, rehearsal, strategy, trial

INPUT: type[JobInput] = PrepareInput
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "safetensors")
SAMPLE_TOKENS = 400


# What of a dataset a result names at most; its counts are whole.
FILES_NAMED = 20
COLUMNS_NAMED = 20
NAME_LENGTH = 128
MEMORY_LENGTH = 400
WARNINGS = 16


@dataclass(frozen=True)
class Data:
    """The rows to train on and to validate on, and what they were made of."""

    datasets: list[ResolvedDataset]
    validation_digest: str | None
    train: list[dataset.Row]
    validation: list[dataset.Row]
    validation_dataset: ResolvedDataset | None = None
    ends: dict[str, list[int]] = field(default_factory=dict)
    """By dataset: the tokens at which a model stops that learns its rows."""
    longest: int = 0
    """Tokens of the longest sequence to train on."""
    calibration: dict[str, dataset.Loaded] = field(default_factory=dict)
    """By variant: rows of its own that it is calibrated on."""


def run(stage: PrepareInput) -> PrepareAnswer:
    """Do Prepare's work; see docs/contract.md for what it checks and writes, and raises as StageError."""
    wanted = stage.run
    check_outputs(wanted)
    source = store.existing(wanted.model.uri)
    for item in [*_sources(wanted), *_calibrations(wanted).values()]:
        store.existing(item.uri)
    base.refuse_unsafe(source, wanted.model.uri)
    loading.refuse_quantized(source, wanted.model.uri)
    embeddings = loading.check(source, wanted.model.uri)
    facts = base.inspect(source)
    base.check_length(facts, wanted.training.max_length)
    strategy.check(wanted)
    arguments.check(wanted.training, wanted.method, wanted.adapter)
    rehearsal.check(source, facts.architecture, wanted)
    generation.check(source)
    widest = check_variants(source, facts.architecture, wanted)
    tokenizer = base.load_tokenizer(source)
    loading.check_tokens(tokenizer, embeddings, wanted.model.uri)
    encoder = _encoder(wanted, tokenizer)
    trial.check(source, wanted, tokenizer)
    data = read_data(wanted, encoder)
    arguments.check_batches(wanted, len(data.train), sum(item.sequences or 0 for item in data.datasets))
    device = stage.pods.train.device if stage.pods else "GPU"
    need = memory.device_need(source, wanted, device, data.longest)
    hosts = memory.hosts(source, wanted, device, need)
    memory.check(wanted, stage.pods, need, hosts)
    thin = check_calibration(wanted, data, tokenizer, widest)
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
        validation_dataset=data.validation_dataset,
        warnings=[*warnings(wanted, data), *thin][:WARNINGS],
        train_rows=len(data.train),
        validation_rows=len(data.validation),
        memory_estimate_bytes=need.total if isinstance(need, memory.Need) else None,
        memory_need=result.shorten(memory.describe(need), MEMORY_LENGTH),
        host_memory_bytes=memory.shown(hosts),
    )
    write_run(stage, answer, data, encoder)
    return answer


def check_outputs(wanted: Run) -> None:
    """Refuse what Finalize and Quantize would refuse to make: StageError(InvalidSettings)."""
    if wanted.adapter is None and "Adapter" in wanted.output.artifacts:
        raise StageError("InvalidSettings", "output.artifacts: full fine-tuning makes no Adapter; ask for Merged alone")
    for variant in wanted.variants or ():
        try:
            quantize.check_settings(variant.quantization)
        except StageError as error:
            raise StageError(error.reason, f"variant {variant.name!r}: {error.message}") from None


def check_variants(source: Path, architecture: str, wanted: Run) -> int:
    """Refuse variants that cannot be made of the model: StageError(GroupSizeMismatch, InvalidSettings).

    Returns the widest input of a layer that is quantized; 0 without variants.
    """
    if not wanted.variants:
        return 0
    built = compression.meta_model(source)
    compression.check_group_sizes(built, wanted.variants)
    variant_trial.check(source, architecture, wanted.variants)
    return compression.widths(built)[-1]


def _sources(wanted: Run) -> list[DataSource]:
    own = [wanted.validation.dataset] if wanted.validation and wanted.validation.dataset else []
    return [*wanted.datasets, *own]


def _calibrations(wanted: Run) -> dict[str, DataSource]:
    """Return the datasets that variants are calibrated on and nothing is trained on, by variant."""
    given = {variant.name: variant.quantization.calibration for variant in wanted.variants or ()}
    return {name: item.dataset for name, item in given.items() if item and item.dataset}


def _encoder(wanted: Run, tokenizer: Any) -> Encoder:
    """Return what encodes the run's rows; raises StageError for a tokenizer whose template or end token they need and it has not."""
    formats = {item.format for item in _sources(wanted)}
    only_assistant = wanted.method.sft is not None and wanted.method.sft.assistant_only_loss
    if tokenizer.eos_token_id is None and (tokenizer.pad_token_id is None or formats != {"Messages"}):
        raise StageError(
            "InvalidModel",
            "the model's tokenizer names no end token, so texts would be trained without an end and the model would never learn to stop: "
            "name its token as eos_token in tokenizer_config.json",
        )
    if only_assistant and "Messages" not in formats:
        raise StageError("InvalidSettings", "method.sft.assistantOnlyLoss needs data of the format Messages")
    encoder = Encoder(tokenizer, only_assistant)
    if "Messages" in formats:
        encoder.check_template()
    return encoder


def read_data(wanted: Run, encoder: Encoder) -> Data:
    """Read all datasets and split off the validation rows."""
    cut = dataset.Cut(wanted.training.max_length, arguments.kept_part(wanted.training, wanted.method))
    rule = dataset.Filter(wanted.preparation, encoder, cut)
    resolved, rows, ends, longest = [], [], {}, 0
    for item in wanted.datasets:
        loaded = dataset.load(dataset.Source(item.name, item.uri, item.format), rule)
        resolved.append(resolve(loaded, encoder))
        ends[item.name] = generation.trained_ends(item.name, loaded.rows, loaded.counts.ends, encoder)
        rows += loaded.rows
        longest = max(longest, loaded.counts.longest)
    calibrating = read_calibration(wanted, encoder)
    if wanted.validation is None:
        return Data(resolved, None, rows, [], ends=ends, longest=longest, calibration=calibrating)
    if wanted.validation.dataset:
        own = wanted.validation.dataset
        loaded = dataset.load(dataset.Source("validation", own.uri, own.format), rule)
        return Data(resolved, loaded.digest, rows, loaded.rows, resolve(loaded, encoder), ends, longest, calibrating)
    train, validation = dataset.split(rows, float(wanted.validation.fraction or 0), wanted.training.seed)
    return Data(resolved, None, train, validation, ends=ends, longest=longest, calibration=calibrating)


def read_calibration(wanted: Run, encoder: Encoder) -> dict[str, dataset.Loaded]:
    """Read the rows of variants that are calibrated on a dataset of their own; they are used whole, so no row is dropped for its answers."""
    rule = dataset.Filter(Preparation(), Encoder(encoder.tokenizer, answers=False), dataset.Cut(wanted.training.max_length))
    return {
        name: dataset.load(dataset.Source(f"calibration of variant {name}", item.uri, item.format), rule)
        for name, item in _calibrations(wanted).items()
    }


def check_calibration(wanted: Run, data: Data, tokenizer: Any, widest: int) -> list[str]:
    """Return warnings of variants with few tokens to calibrate on; raises StageError (InvalidSettings, InvalidDataset) for too few."""
    found = []
    for variant in wanted.variants or ():
        rows = data.calibration[variant.name].rows if variant.name in data.calibration else data.train
        placed = [dataset.Placed(row, f"row {number} of those that are kept") for number, row in enumerate(rows, start=1)]
        encoded = calibration.tokens(placed, variant.quantization, tokenizer, wanted.training.max_length)
        found.append(calibration.check(variant, sum(map(len, encoded)), widest))
    return [warning for warning in found if warning]


def resolve(loaded: dataset.Loaded, encoder: Encoder) -> ResolvedDataset:
    """Return what a result says of a dataset: what was read, what became of it, and what of it was left out."""
    counts, source = loaded.counts, loaded.source
    switch, switched = counts.switches.most_common(1)[0] if counts.switches else (None, None)
    return ResolvedDataset(
        name=source.name,
        digest=loaded.digest,
        rows=len(loaded.rows),
        dropped=loaded.dropped.total(),
        sequences=counts.sequences,
        loss="AllTokens" if source.format == "Text" or (source.format == "Messages" and not encoder.answers) else "Answers",
        cut_rows=counts.cut_rows,
        cut_tokens=counts.cut_tokens,
        endless_rows=counts.endless_rows,
        stripped_rows=counts.stripped_rows,
        template_setting=switch,
        template_setting_rows=switched,
        file_count=len(source.files),
        files=[DataFile(name=result.shorten(name, NAME_LENGTH), rows=rows) for name, rows in list(source.files.items())[:FILES_NAMED]],
        ignored_columns=[result.shorten(name, NAME_LENGTH) for name in sorted(source.ignored)[:COLUMNS_NAMED]],
    )


def warnings(wanted: Run, data: Data) -> list[str]:
    """Return what a user should know of the data, in words."""
    mixed = len({item.format for item in wanted.datasets}) > 1
    chats = {item.name for item in wanted.datasets if item.format == "Messages"}
    found = []
    for item in [*data.datasets, *([data.validation_dataset] if data.validation_dataset else [])]:
        if mixed and item.name in chats and item.loss == "AllTokens":
            found.append(
                f"dataset {item.name!r}: the loss is taken on questions too, for assistantOnlyLoss is false (its default where not all "
                "datasets are Messages); set it to true to train on answers alone"
            )
        found += [f"dataset {item.name!r}: {words}" for words in _losses(item, wanted.training.max_length)]
        if data.ends.get(item.name) == []:
            found.append(f"dataset {item.name!r}: no special token ends its answers, so a model trained on them does not stop by itself")
    return found[:WARNINGS]


def _losses(item: ResolvedDataset, max_length: int) -> Iterator[str]:
    of_rows = f"of {item.rows} rows"
    if item.cut_rows:
        ends = f", and {item.endless_rows} rows lose the end of an answer" if item.endless_rows else ""
        yield f"{item.cut_rows} {of_rows} are longer than maxLength ({max_length}): {item.cut_tokens} trained tokens are cut off{ends}"
    if item.stripped_rows:
        yield f"the model's chat template leaves out a text of {item.stripped_rows} {of_rows}"
    if item.template_setting:
        yield f"{item.template_setting_rows} {of_rows} are rendered with {item.template_setting}: serve the model so"


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


def recorded(wanted: Run) -> dict[str, Any]:
    """Return a run's settings as they are recorded: with the two that a spec may leave out, as in the first version, so that digests stay."""
    value = wanted.dump()
    preparation = {"minTokens": 0, "dropPatterns": []} | value.get("preparation", {})
    return value | {"preparation": preparation, "variants": value.get("variants", [])}


def digest_run(wanted: Run, model_digest: str, data: Data) -> str:
    """Return the digest of all that determines the run: its settings, with URIs replaced by what lies there."""
    value = recorded(wanted)
    value["model"]["uri"] = model_digest
    for item, resolved in zip(value["datasets"], data.datasets, strict=True):
        item["uri"] = resolved.digest
    if data.validation_digest:
        value["validation"]["dataset"]["uri"] = data.validation_digest
    for item in value["variants"]:
        if item["name"] in data.calibration:
            item["quantization"]["calibration"]["dataset"]["uri"] = data.calibration[item["name"]].digest
    return store.digest_of(value)


def render_sample(row: dataset.Row, encoder: Encoder) -> dict[str, Any]:
    """Return a row's sequences, one after the other, as the texts of their tokens, each with whether the loss is taken on it."""
    sequences = encoder.encode(row).sequences
    pairs = [pair for sequence in sequences for pair in zip(sequence.ids, sequence.trained, strict=True)][:SAMPLE_TOKENS]
    return {
        "sequences": [len(sequence.ids) for sequence in sequences],
        "tokens": [{"text": encoder.tokenizer.decode([token]), "trained": trained} for token, trained in pairs],
    }


def write_run(stage: PrepareInput, answer: PrepareAnswer, data: Data, encoder: Encoder) -> None:
    """Write the run's data, its sample, its owner and its settings; a run that was prepared before only changes owner."""
    folder = store.path_of(answer.run_uri)
    store.write_json(folder / "owner.json", stage.object.dump())
    if result.read_finished(answer.run_uri, stage_input.result_name(stage)):
        return
    dataset.write(folder / "data" / "train.jsonl", data.train)
    if data.validation:
        dataset.write(folder / "data" / "validation.jsonl", data.validation)
    for variant in stage.run.variants or ():
        if variant.name in data.calibration:
            dataset.write(calibration.path(folder, variant), data.calibration[variant.name].rows)
    store.write_json(folder / "data" / "sample.json", render_sample(data.train[0], encoder))
    settled = {
        "runDigest": answer.run_digest,
        "run": recorded(stage.run),
        "model": answer.model.dump(),
        "datasets": [item.dump() for item in answer.datasets],
        generation.KEY: list(dict.fromkeys(token for ends in data.ends.values() for token in ends)),
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
    }
    store.write_json(folder / "run.json", settled)
