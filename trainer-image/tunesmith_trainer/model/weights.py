"""Whether a model folder holds the model that its config.json describes, found from the headers of its files: no weight is read.

A library that loads a model fills what is missing with random numbers, leaves out what it does not know, and says so in its log alone.
Here all of it is an error. What belongs to a model is reckoned by transformers itself: its loader is given the headers' tensors without
memory for them (the device meta), with its renamings, its conversions, its tied weights and its lists of what it does not miss.

The trainer image and the serving image hold this file alike.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
POINTER = b"version https://git-lfs"
# Files that a Git repository of a model may hold as a pointer, and that loading reads.
LOADED_SUFFIXES = {".safetensors", ".json", ".jinja", ".model", ".txt", ".tiktoken"}
SHORT = 1024
NAMED = 3
TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
TORCH_NAMES |= {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
# By what is in the names of tensors that a model does not know: what was saved, and what to do.
ADVICE = (
    (r"^(v_head|score|classifier|regression_head)\.", "the model was saved with a head of another task: save the causal language model without it"),
    (r"^(module|_forward_module)\.", "the model was saved from within DDP or DeepSpeed: save the unwrapped model (accelerate's unwrap_model)"),
    (r"_orig_mod\.", "the model was saved compiled: save the model that torch.compile was given"),
    (r"\blora_[AB]\b|\.base_layer\.", "an adapter lies in the model: merge it (PEFT's merge_and_unload) and save the model then"),
    (
        r"\.(qweight|qzeros|weight_packed|weight_scale(_inv)?|input_scale|absmax|quant_map|SCB)$",
        "the weights are quantized, and config.json does not say how: take the config.json that belongs to them, or the model before quantization",
    ),
)
# Masks and angles that old versions of transformers saved with a model, and that it computes today; of some architectures it knows
# that they are not to be missed.
COMPUTED = re.compile(r"\.attn(\.attention)?\.(bias|masked_bias|causal_mask)$|\.(maybe_)?rotary(_emb)?\.(inv_freq|cos_cached|sin_cached)$")
COPY_AGAIN = "copy the model again, with all its files and its own config.json"
# Settings by which a tokenizer names tokens of images and sounds, of which a model of text has no embedding.
MODALITIES = re.compile(r"(image|video|audio|vision|boi|eoi|boa|eoa|bov|eov)\w*_token$")


class Unfit(ValueError):
    """What is wrong with a model's files, and what to do, for people."""


@dataclass(frozen=True)
class Tensor:
    """A tensor as a header describes it."""

    kind: str
    shape: tuple[int, ...]
    file: Path


def check_files(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of the files that transformers and vLLM load, by name; raises Unfit where these are not whole or not the same."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in LOADED_SUFFIXES and path.stat().st_size < SHORT and path.read_bytes().startswith(POINTER):
            raise Unfit(f"{path.name} is a Git LFS pointer, not the file itself: run git lfs pull where the model was cloned, and copy it again")
    _check_beside(folder)
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        for name, tensor in _header(path):
            if name in tensors:
                raise Unfit(f"{name} is in {tensors[name].file.name} and in {path.name}: {COPY_AGAIN}")
            tensors[name] = tensor
    return tensors


def _check_beside(folder: Path) -> None:
    """Refuse files and settings beside the weights by which one library loads something else than another."""
    if (folder / "adapter_config.json").is_file():
        raise Unfit(
            "adapter_config.json lies beside the model, so transformers would add an adapter to it, and vLLM would not: merge the adapter "
            "(PEFT's merge_and_unload) and save the model then, or delete the file"
        )
    config = read_object(folder / "config.json")
    named = config.get("transformers_weights")
    if named not in (None, SINGLE, INDEX):
        raise Unfit(f"config.json has transformers_weights ({named}), by which transformers loads another file than vLLM: remove the key")
    if (folder / "hf_quant_config.json").is_file() and not quantization(folder):
        raise Unfit(
            "hf_quant_config.json lies beside a config.json without quantization_config, so vLLM would take the model for quantized, and "
            "transformers would not: delete the file, or put what it says into config.json"
        )


def quantization(folder: Path) -> str | None:
    """Return the name of the method by which a model's config.json says that it is quantized; None for one that is not."""
    config = read_object(folder / "config.json")
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in parts:
        for key in ("quantization_config", "compression_config"):
            if isinstance(part.get(key), dict):
                return str(part[key].get("quant_method", "an unnamed method"))
    return None


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one where there is none; raises Unfit for what is no JSON object."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise Unfit(f"{path.name} is not JSON ({error}): copy it again") from None
    if not isinstance(value, dict):
        raise Unfit(f"{path.name} is no JSON object: copy it again")
    return value


def _weight_files(folder: Path) -> list[Path]:
    """Return the files of which the model consists; raises Unfit where one is missing, or another one would be loaded with them."""
    present = {path.name for path in folder.glob("*.safetensors")}
    if (folder / INDEX).is_file():
        names = _shards(folder / INDEX)
        if lacking := sorted(names - present):
            raise Unfit(f"{INDEX} names {len(names)} files, and {len(lacking)} of them cannot be found ({_some(lacking)}): copy all of them")
        if SINGLE in present - names:
            raise Unfit(f"{SINGLE} and {INDEX} are two models: transformers loads the former, vLLM the latter; delete the one that is not meant")
        why = f"{INDEX} does not name it"
    elif SINGLE in present:
        names, why = {SINGLE}, f"vLLM would load it with {SINGLE}, and transformers would not"
    else:
        raise Unfit(f"there is neither {SINGLE} nor {INDEX}, only {_some(sorted(present)) or 'no weights at all'}: {COPY_AGAIN}")
    if stray := sorted(present - names):
        if (folder / INDEX).is_file() and any(name.startswith("consolidated") for name in stray):
            why = "vLLM would load it (Mistral's own format) and transformers would not"
        raise Unfit(f"{_some(stray)} lies beside the model's weights, and {why}: delete it, or copy the model again with its own {INDEX}")
    return [folder / name for name in sorted(names)]


def _shards(index: Path) -> set[str]:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
        raise Unfit(f"{index.name} has no weight_map that names files: copy it again")
    if outside := sorted(name for name in set(weight_map.values()) if "/" in name):
        raise Unfit(f"{index.name} names files outside of the model's folder ({_some(outside)}): lay them beside it")
    return set(weight_map.values())


def _header(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that a safetensors file describes; raises Unfit for one that is none, or is cut."""
    from safetensors import SafetensorError, safe_open

    try:
        # Without torch, which whoever looks at files alone need not import.
        with safe_open(path, "np") as file:
            names = list(file.keys())
            slices = [file.get_slice(name) for name in names]
            found = [Tensor(part.get_dtype(), tuple(part.get_shape()), path) for part in slices]
    except SafetensorError as error:
        size, wanted = path.stat().st_size, _wanted_size(path)
        why = f"has {size} bytes of {wanted}" if wanted and size < wanted else f"is no whole safetensors file ({error})"
        raise Unfit(f"{path.name} {why}: copy it again") from error
    yield from zip(names, found, strict=True)


def _wanted_size(path: Path) -> int | None:
    """Return the size that a safetensors file's own header says it has; None where that cannot be read."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length < path.stat().st_size else {}
        return int(8 + length + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"))
    except (ValueError, TypeError, KeyError, AttributeError, struct.error):
        return None


def check_tensors(folder: Path, tensors: dict[str, Tensor]) -> int | None:
    """Compare a folder's tensors with those of its config's model, and return how many tokens that has embeddings for, if it says.

    Raises Unfit where tensors are missing, unknown, of another shape or kind, or two where config.json says that they are one; and
    what transformers raises where it does not know the model or its quantization.
    """
    import torch
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    model, quantizer, mapping = _model_on_meta(folder)
    expected = dict(model.state_dict())
    rows = _embedding_rows(model)
    if unknown := sorted({tensor.kind for tensor in tensors.values()} - TORCH_NAMES.keys()):
        raise Unfit(f"the weights are of a kind that is not known here ({_some(unknown)}): convert them to BF16")
    given = {name: torch.empty(tensor.shape, dtype=getattr(torch, TORCH_NAMES[tensor.kind]), device="meta") for name, tensor in tensors.items()}
    settings = LoadStateDictConfig(
        device_map={"": "meta"}, dtype=torch.bfloat16, hf_quantizer=quantizer, weight_mapping=mapping, ignore_mismatched_sizes=True
    )
    info, _ = convert_and_load_state_dict_in_model(model, given, settings)
    twice = [pair for pair in model.all_tied_weights_keys.items() if not info.missing_keys & set(pair)]
    model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
    model._adjust_missing_and_unexpected_keys(info)
    refuse(type(model).__name__, len(expected), info.missing_keys, info.unexpected_keys, info.mismatched_keys, tensors)
    if info.conversion_errors:
        raise Unfit(f"the tensors for {_some(sorted(info.conversion_errors))} cannot be put together as {type(model).__name__} does: {COPY_AGAIN}")
    names = _names_in_file(model, mapping, tensors, expected)
    if quantizer is None:
        for name, original in names.items():
            if expected[name].is_floating_point() and not tensors[original].kind.startswith(("F", "BF")):
                raise Unfit(f"{original} holds whole numbers ({tensors[original].kind}), and config.json has no quantization_config: {ADVICE[-1][1]}")
    for one, other in twice:
        if one in names and other in names and not _equal(names[one], names[other], tensors):
            raise Unfit(
                f"{names[one]} and {names[other]} differ, and config.json says that they are one (tie_word_embeddings): transformers would "
                "keep both, vLLM one; set tie_word_embeddings to false, or delete the tensor that is not the model's"
            )
    return rows


def _model_on_meta(folder: Path) -> tuple[Any, Any, Any]:
    """Return a folder's model without memory for its weights, what knows its quantization, and transformers' conversions of its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.quantizers.auto import get_hf_quantizer

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    quantizer, _, device_map = get_hf_quantizer(model.config, None, {"": "cpu"}, True, {})
    if quantizer is None and (method := quantization(folder)):
        raise ValueError(
            f"config.json says that it is quantized by {method}, which transformers does not know: its weights would be taken as they are"
        )
    if quantizer is not None:
        with torch.device("meta"):
            quantizer.preprocess_model(model=model, dtype=torch.bfloat16, device_map=device_map, checkpoint_files=[], use_kernels=False)
    return model, quantizer, get_model_conversion_mapping(model, None, quantizer)


def _embedding_rows(model: Any) -> int | None:
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):
        return None


def _names_in_file(model: Any, mapping: Iterable[Any], tensors: Iterable[str], expected: dict[str, Any]) -> dict[str, str]:
    """Return what each of a model's tensors is called in its files, of those that are one tensor there."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    found = {}
    for original in tensors:
        name, converted = rename_source_key(original, renamings, converters, model.base_model_prefix, expected)
        if name in expected and converted is None:
            found[name] = original
    return found


def _equal(one: str, other: str, tensors: dict[str, Tensor]) -> bool:
    import torch
    from safetensors import safe_open

    with safe_open(tensors[one].file, "pt") as first, safe_open(tensors[other].file, "pt") as second:
        return torch.equal(first.get_tensor(one), second.get_tensor(other))


def refuse(
    architecture: str, count: int, missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[tuple[Any, ...]], given: Iterable[str] = ()
) -> None:
    """Raise Unfit for what a loader of transformers reports: of `count` tensors some missing, some unknown, some of another shape."""
    lacking, shapes = sorted(missing), sorted(mismatched)
    unknown = sorted(name for name in unexpected if not COMPUTED.search(name))
    problems = []
    if lacking:
        problems.append(f"it lacks {len(lacking)} of its {count} tensors ({_some(lacking)}), which loading would fill with random numbers")
    if unknown:
        problems.append(f"its files hold tensors that {architecture} does not have: {len(unknown)} ({_some(unknown)})")
    problems += [f"{name} is {_shape(found)} in the files and {_shape(wanted)} by config.json" for name, found, wanted in shapes[:NAMED]]
    if problems:
        names = [*given, *unknown]
        advice = next((words for pattern, words in ADVICE if any(re.search(pattern, name) for name in names)), COPY_AGAIN)
        raise Unfit(f"{'; '.join(problems)}. What to do: {advice}")


def check_tokens(tokenizer: Any, rows: int | None) -> None:
    """Refuse a tokenizer with a token that the model has no embedding for: Unfit."""
    settings = {**tokenizer.init_kwargs, **(getattr(tokenizer, "model_specific_special_tokens", None) or {})}
    beside = {str(token) for name, token in settings.items() if MODALITIES.search(name)}
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if rows is not None and number >= rows and token not in beside)
    if beyond:
        tokens = _some([f"{token!r} is {number}" for number, token in beyond])
        raise Unfit(
            f"the model has embeddings for {rows} tokens, and the tokenizer more ({tokens}): take the tokenizer that belongs to the "
            "model, or enlarge the model by resize_token_embeddings and save it"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _shape(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "a number"
