"""llmcompressor on a loaded model: which of its layers are quantized, smoothing, quantization, and writing it.

Smoothing and quantization are two passes over the rows, as llmcompressor's own default is, and two calls, so that the smoothed model can be
looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith_contract.quantization import GROUP_SIZE, Quantization, Variant
from tunesmith_contract.training import Precision
from tunesmith_trainer import evaluate, store
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.model import generation, shrink
from tunesmith_trainer.model.base import load_config

# The W4A16 preset's group size (compressed-tensors), which holds where a variant names none.
# As in llmcompressor's own W8A8 recipes: most of the difficulty of outlying activations moves into the weights.
SMOOTHING_STRENGTH = 0.8


def smooth(model: Any, batches: list[Any]) -> None:
    """Move outliers of activations into the weights of the layers that read them; the model's logits stay."""
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    _oneshot(model, SmoothQuantModifier(smoothing_strength=SMOOTHING_STRENGTH), batches)


def quantize(model: Any, settings: Quantization, batches: list[Any]) -> None:
    """Quantize the weights of a model by GPTQ, and with W8A8 what its layers read."""
    from compressed_tensors.quantization import preset_name_to_scheme
    from llmcompressor.modifiers.gptq import GPTQModifier

    scheme = preset_name_to_scheme(settings.scheme, ["Linear"])
    if settings.scheme == "W4A16":
        scheme.weights.group_size = settings.group_size or GROUP_SIZE
    _oneshot(model, GPTQModifier(config_groups={"group_0": scheme}, ignore=left_alone(model)), batches)


def _oneshot(model: Any, modifier: Any, batches: list[Any]) -> None:
    from llmcompressor.entrypoints.oneshot import oneshot
    from torch.utils.data import DataLoader

    # Rows are tokens already: a tokenizer, which it would look for beside the model, is not needed.
    oneshot(model=model, recipe=[modifier], dataset=DataLoader(batches, batch_size=None), processor=False)


def save(model: Any, target: Path) -> None:
    """Write a quantized model's weights and config."""
    alone = left_alone(model)
    generation.make_savable(model).save_pretrained(target, save_compressed=True)
    config = store.read_json(target / "config.json")
    # llmcompressor names them as the files do, transformers looks for them as the model does, and takes those it does not find for quantized.
    ignored = config["quantization_config"]["ignore"]
    config["quantization_config"]["ignore"] = [*ignored, *(name for name in alone if name not in ignored)]
    store.write_json(target / "config.json", config)
    # It names Python objects by YAML tag, which a careless reader would run; config.json has all that loading needs.
    (target / "recipe.yaml").unlink(missing_ok=True)
    for path in target.iterdir():
        path.chmod(0o644)  # llmcompressor's writer leaves weights readable by their owner alone


def read_again(target: Path, precision: Precision) -> Any:
    """Return a variant as Evaluate reads it.

    Raises what transformers raises, and ValueError where tensors are not found or not known, or a layer is taken for quantized that is not.
    """
    lost = None
    try:
        model = evaluate.load_model(target, precision, "CPU")
    except StageError as error:
        if error.reason != "InvalidModel":
            raise
        # No word on the user's model: raised as another error, so that its reason is not taken for the stage's.
        lost = error.message
    if lost is not None:
        raise ValueError(lost)
    alone = set(left_alone(model))
    wrong = [name for name, module in model.named_modules() if name in alone and getattr(module, "quantization_scheme", None)]
    if wrong:
        raise ValueError(f"layers that are not quantized are read as if they were: {', '.join(wrong[:3])}")
    return model


def meta_model(folder: Path) -> Any:
    """Return a folder's model without memory for its weights."""
    return shrink.build(load_config(folder), "meta")


def widths(model: Any) -> list[int]:
    """Return the input widths of the layers that are quantized, the least first; raises StageError(InvalidSettings) where there is none."""
    import torch

    alone = set(left_alone(model))
    found = {module.in_features for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name not in alone}
    hidden = model.config.get_text_config().hidden_size
    for layer in _decoder_layers(model):
        for module in layer.modules():
            if _experts(module) and not isinstance(module, torch.nn.ModuleList):
                # Tensors of all experts: from the hidden size to their own, for two layers at once or one, and back.
                sides = {side for tensor in module.parameters(recurse=False) if tensor.dim() == 3 for side in tensor.shape[1:]}
                found |= {hidden, min(sides - {hidden}, default=hidden)}
    if not found:
        raise StageError("InvalidSettings", f"{type(model).__name__} has no linear layer that can be quantized: leave its variants out")
    return sorted(found)


def check_group_sizes(model: Any, variants: list[Variant]) -> None:
    """Refuse a W4A16 variant whose group size does not divide the input width of every layer that it quantizes: StageError(GroupSizeMismatch)."""
    for variant in variants:
        if variant.quantization.scheme != "W4A16":
            continue
        size = variant.quantization.group_size or GROUP_SIZE
        odd = [width for width in widths(model) if width % size]
        if odd:
            fitting = [str(choice) for choice in (256, 128, 64, 32, 16) if not any(width % choice for width in odd)]
            advice = f"; {' or '.join(fitting)} would do" if fitting else ""
            raise StageError(
                "GroupSizeMismatch",
                f"variant {variant.name!r}: groupSize {size} does not divide the input width of every linear layer of this "
                f"model ({', '.join(map(str, odd))}){advice}",
            )


def left_alone(model: Any) -> list[str]:
    """Return the names of the linear layers that are not quantized.

    These are all outside of the text model's decoder layers (the head, towers of images, heads for further tokens), and in these
    the routers of experts: a small error there sends tokens to other experts.
    """
    import torch

    layers = list(_decoder_layers(model))
    inside = {id(module) for layer in layers for module in layer.modules()}
    routers = {id(router) for layer in layers for router in _routers(layer)}
    return [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and (id(module) not in inside or id(module) in routers)
    ]


def decoder_layers(model: Any) -> list[Any]:
    """Return the decoder layers in their order; none where they cannot be found."""
    import torch

    return [layer for part in _decoder_layers(model) if isinstance(part, torch.nn.ModuleList) for layer in part]


def _decoder_layers(model: Any) -> Iterator[Any]:
    """Yield what holds the decoder layers; where they cannot be found, the whole model without its head."""
    import torch

    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    text = model.get_decoder() or model.base_model
    found = [part for part in text.children() if isinstance(part, torch.nn.ModuleList) and len(part) == depth]
    yield from found or [model.base_model]


def _routers(layer: Any) -> Iterator[Any]:
    """Yield the linear layers that choose experts: beside experts, with an output for each of them or a single one."""
    import torch

    for block in layer.modules():
        for experts in block.children():
            count = _experts(experts)
            own = {id(module) for module in experts.modules()} if count else set()
            yield from (
                module
                for module in (block.modules() if count else ())
                if isinstance(module, torch.nn.Linear) and id(module) not in own and module.out_features in (1, count)
            )


def _experts(module: Any) -> int:
    """Return how many experts a module is: a list of like modules, or tensors with a first dimension for them; 0: it is none."""
    import torch

    if isinstance(module, torch.nn.ModuleList):
        kinds = {type(part) for part in module}
        return len(module) if len(module) > 1 and len(kinds) == 1 and any(True for _ in module[0].children()) else 0
    if hasattr(module, "kernel_size"):  # a convolution, whose weight has three dimensions as well
        return 0
    fused = {parameter.shape[0] for parameter in module.parameters(recurse=False) if parameter.dim() == 3}
    return fused.pop() if len(fused) == 1 else 0
