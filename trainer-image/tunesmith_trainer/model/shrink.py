"""A tiny model of an architecture, out of the configuration of a large one: narrow, with few layers of each kind and few words.

Attention, positions, routing and state are as the configuration says; only numbers that are widths are divided, all of them by the
same, so that what has to fit together still does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

# Windows are narrowed to this, so that rows of a few tokens meet them.
WINDOW = 8
VOCABULARY = 256
# Weights of a tiny model, at most: with more it is none, and Prepare's pod would need memory for it.
MOST_PARAMETERS = 200_000_000
HEADS = ("num_attention_heads", "decoder_attention_heads", "num_heads", "n_heads", "n_head", "mamba_n_heads", "mamba_num_heads")
WIDTHS = frozenset(
    "attention_hidden_dim attention_hidden_size d_ff d_model decoder_attention_heads decoder_ffn_dim dff embedding_size "
    "encoder_attention_heads encoder_ffn_dim expert_ffn_hidden_size ffn_dim ffn_hidden_size hidden_size intermediate_size "
    "intermediate_size_mlp kv_n_heads linear_attn_num_heads linear_num_key_heads linear_num_value_heads lru_width mamba_d_ssm "
    "mamba_dt_rank mamba_n_groups mamba_n_heads mamba_ngroups mamba_num_heads moe_intermediate_size moe_shared_expert_intermediate_size "
    "n_embd n_groups n_head n_head_kv n_heads n_inner n_mamba_heads num_attention_groups num_attention_heads num_global_key_value_heads "
    "num_heads num_key_value_heads num_kv_heads project_dim shared_expert_intermediate_size shared_intermediate_size "
    "swa_num_attention_heads swa_num_key_value_heads time_step_rank word_embed_proj_dim".split()
)
WINDOWS = (
    "sliding_window",
    "attention_chunk_size",
    "window_size",
    "attention_window_size",
    "local_attention",
    # Recurrent layers pad rows to this length.
    "chunk_size",
    "mamba_chunk_size",
)
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "encoder_layers")


def candidates(config: Any) -> Iterator[Any]:
    """Yield smaller configurations of a model, those that are most likely to do first: narrow and shallow, narrow, shallow."""
    for narrow, shallow in ((True, True), (True, False), (False, True)):
        with suppress(Exception):  # a rule that an architecture does not know of: the next candidate may do
            yield from _made(config, narrow, shallow)


def tiny(config: Any) -> Iterator[Any]:
    """Yield the candidates whose models have few enough weights to be built."""
    for small in candidates(config):
        with suppress(Exception):  # as for candidates
            if is_tiny(small):
                yield small


def _made(config: Any, narrow: bool, shallow: bool) -> Iterator[Any]:
    small = copy.deepcopy(config)
    for part in _parts(small):
        _forget_words(part)
        if narrow:
            _narrow(part)
    text = small.get_text_config()
    name = _first(text, LAYERS)
    depth = getattr(text, name) if name else 0
    count = _fewest(text, depth)
    if not shallow:
        yield small
    elif count < depth:
        yield from _first_layers(small, depth, count)


def _first_layers(config: Any, depth: int, count: int) -> Iterator[Any]:
    """Yield a configuration with the first `count` layers, or with so many more that all classes of modules are there."""
    kinds = _kinds(config)
    while count < depth:
        with suppress(Exception):  # as for candidates
            cut = copy.deepcopy(config)
            _cut(cut.get_text_config(), depth, count)
            if _kinds(cut) == kinds:
                yield cut
                return
        count *= 2


def _kinds(config: Any) -> set[str]:
    """Return the classes of a model's modules."""
    return {type(module).__name__ for module in build(config, "meta").modules()}


def build(config: Any, device: str) -> Any:
    """Return a model of a configuration, with random weights in 32 bits or, on the device meta, without memory for them.

    The weights are the same every time: what is tried on them must not come out well at one time and badly at another.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)  # type: ignore[no-untyped-call]


def is_tiny(config: Any) -> bool:
    """Return whether a configuration's model has few enough weights to be built."""
    return sum(parameter.numel() for parameter in build(config, "meta").parameters()) <= MOST_PARAMETERS


def _parts(config: Any) -> Iterator[Any]:
    """Yield a configuration and those in it: of its text model, of its images, of its attention."""
    yield config
    for value in list(vars(config).values()):
        if hasattr(value, "to_dict") and hasattr(value, "__dict__"):
            yield from _parts(value)


def _forget_words(part: Any) -> None:
    for name, value in list(vars(part).items()):
        if name in ("vocab_size", "vocab_size_per_layer_input") and isinstance(value, int):
            setattr(part, name, min(value, VOCABULARY))
        elif name.endswith(("token_id", "token_index")) and isinstance(value, int):
            setattr(part, name, min(value, VOCABULARY - 1))
        elif name.endswith(("token_id", "token_ids")) and isinstance(value, list):
            setattr(part, name, [min(token, VOCABULARY - 1) for token in value])


def _narrow(part: Any) -> None:
    heads = _first(part, HEADS)
    width = _first(part, ("hidden_size", "d_model", "n_embd", "dim"))
    if heads:
        count = getattr(part, heads)
        share = count // next((divisor for divisor in (2, 3, 5, 7) if count % divisor == 0), 1)
    else:
        share = max(1, getattr(part, width) // 64) if width else 1
    names = {part.attribute_map.get(name, name) if hasattr(part, "attribute_map") else name for name in WIDTHS}
    for name in names:
        value = getattr(part, name, None)
        counted = "head" in name or "groups" in name
        if isinstance(value, list):
            setattr(part, name, [_share(each, share, counted) for each in value])
        elif isinstance(value, int) and not isinstance(value, bool):
            setattr(part, name, _share(value, share, counted))
    for name in WINDOWS:
        value = getattr(part, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > WINDOW:
            setattr(part, name, WINDOW)


def _share(value: int, share: int, counted: bool) -> int:
    """Return a width's share; a multiple of 16, as kernels for rows of weights take, but where heads are counted."""
    narrow = max(min(value, 1), value // share)
    return narrow if counted or value < 128 else 16 * math.ceil(narrow / 16)


def _cut(text: Any, depth: int, count: int) -> None:
    """Leave a text model its first `count` layers."""
    for name, value in list(vars(text).items()):
        if isinstance(value, (list, tuple, str)) and len(value) == depth and name not in ("architectures", "model_type"):
            setattr(text, name, value[:count])
    for name in LAYERS:
        if isinstance(getattr(text, name, None), int):
            setattr(text, name, count)


def _fewest(text: Any, depth: int) -> int:
    """Return how many layers from the first on hold each kind that a list of all layers names; at least two."""
    fewest = 2
    for value in vars(text).values():
        if isinstance(value, (list, tuple, str)) and depth and len(value) == depth:
            words = list(map(str, value))
            # Where all differ they are no kinds but numbers, as of the layers themselves.
            if len(set(words)) < depth:
                fewest = max(fewest, *(words.index(word) + 1 for word in set(words)))
    return fewest


def _first(part: Any, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if isinstance(getattr(part, name, None), int) and getattr(part, name) > 0), None)
