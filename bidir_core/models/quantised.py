"""Weights that a repository ships in 8 bits (``quant_method: fp8``): de-quantised, or as they are.

De-quantised weights run anywhere and can be trained. Native ones need a GPU that multiplies 8-bit
numbers; a repository with static activation scales was calibrated under causal attention, so part
of what a bidirectional prefill does to it may be theirs. Which of the two a run used is part of it.

transformers multiplies natively by a kernel that it fetches from the hub. torch has one of its own
for layers with one scale for the weights and a static one for the activations, as the published
Ministral 3 repositories have: those layers run by it, with nothing to fetch.
"""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import torch
from torch import nn

from bidir_core.common.errors import UserError
from bidir_core.models.source import auto_class, is_fp8

NEEDED_CAPABILITY = (8, 9)  # Ada and Hopper
EIGHT_BITS = torch.float8_e4m3fn
ORDINARY = (torch.float32, torch.bfloat16, torch.float16)
LARGEST = torch.finfo(EIGHT_BITS).max
SIDE = 16  # torch's kernel wants the sides of a weight to be multiples of this


def check_native(config: Any, device: torch.device, model: str) -> None:
    """UserError where there are no 8-bit weights to run as they are, or nothing to run them."""
    if not is_fp8(config):
        raise UserError(f"--weights native: '{model}' has no 8-bit weights; leave the flag out")
    if not can_multiply(device):
        raise UserError(
            f"--weights native: {device} cannot multiply 8-bit weights (a GPU of compute "
            "capability 8.9 or more can); use --weights dequantise"
        )
    if (scales := _other_scales(config.quantization_config)) and not _has_kernels():
        raise _needs_kernels(model, f"its 8-bit weights have {scales}")


def can_multiply(device: torch.device) -> bool:
    """Whether the device has instructions for products of 8-bit floating-point numbers."""
    return device.type == "cuda" and (torch.cuda.get_device_capability(device) >= NEEDED_CAPABILITY)


def _other_scales(settings: dict[str, Any]) -> str | None:
    """What a repository's scales are, in words, where torch's own kernel is not for them."""
    if settings.get("weight_block_size", True) is not None:  # blocks are transformers' default
        return "a scale for each block"
    if settings.get("activation_scheme", "dynamic").lower() != "static":
        return "no static activation scales"
    return None


def _has_kernels() -> bool:
    from transformers.utils import is_kernels_available

    return is_kernels_available()


def _needs_kernels(model: str, reason: str) -> UserError:
    return UserError(
        f"--weights native: {reason}, so '{model}' needs the kernels that transformers fetches by "
        "the package 'kernels', which is not installed in a version it takes; "
        "install it, or use --weights dequantise"
    )


def ask_for(config: Any, weights: str) -> None:
    """Tell transformers, through the configuration, how to load 8-bit weights."""
    settings = config.quantization_config
    config.quantization_config = settings | {"dequantize": weights == "dequantise"}


def run_natively(model: nn.Module, dtype: torch.dtype, name: str) -> None:
    """Let torch's own kernel multiply in each layer that it is for; transformers' has the others.

    All that is not in 8 bits becomes ``dtype``: transformers leaves it as the files have it.
    UserError if there are such others and their kernel cannot be had, or no 8-bit layer at all.
    """
    from transformers.integrations.finegrained_fp8 import FP8Experts, FP8Linear

    layers: dict[str, Any] = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, (FP8Linear, FP8Experts))
    }
    if not layers:
        raise UserError(
            f"--weights native: transformers read no layer of '{name}' in 8 bits on this machine; "
            "use --weights dequantise"
        )
    for path, parameter in model.named_parameters():
        if parameter.dtype in ORDINARY and not path.endswith(("_scale", "_scale_inv")):
            parameter.data = parameter.data.to(dtype)
    paths = []
    for path, module in layers.items():
        plain = type(module) is FP8Linear  # its subclass multiplies in groups
        if plain and _torch_multiplies(module):
            for scale in (module.weight_scale_inv, module.activation_scale):
                scale.data = scale.data.float()  # the kernel takes no others
            module.forward = MethodType(multiply, module)  # copied along with the module
        else:
            paths.append(path)
    if paths and not _has_kernels():
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        raise _needs_kernels(name, f"torch's own kernel is not for the layer {paths[0]}{more}")


def _torch_multiplies(layer: Any) -> bool:
    scales = layer.weight_scale_inv, layer.activation_scale
    return (
        layer.weight.dtype == EIGHT_BITS
        and layer.block_size is None
        and all(scale is not None and scale.numel() == 1 for scale in scales)
        and not any(side % SIDE for side in layer.weight.shape)
    )


def multiply(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    """A linear layer with 8-bit weights, its input rounded to 8 bits by the layer's static scale."""
    rows = to_eight_bits(hidden.reshape(-1, hidden.shape[-1]), layer.activation_scale)
    product = torch._scaled_mm(  # the public scaled_mm is younger, and the same kernel
        rows.contiguous(),
        layer.weight.t(),
        scale_a=layer.activation_scale,
        scale_b=layer.weight_scale_inv,
        out_dtype=hidden.dtype,
    )
    if layer.bias is not None:
        product = product + layer.bias.to(product.dtype)
    return product.view(*hidden.shape[:-1], layer.weight.shape[0])


def to_eight_bits(numbers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Numbers over their scale, rounded once; what lies outside becomes the format's largest."""
    return (numbers.float() / scale).clamp_(-LARGEST, LARGEST).to(EIGHT_BITS)


def multiply_exactly(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    """What :func:`multiply` means, slowly and in float32: the reference it is tested against."""
    scale = layer.activation_scale.float()
    weight = layer.weight.float() * layer.weight_scale_inv.float()
    product = to_eight_bits(hidden, scale).float() * scale @ weight.t()
    return product if layer.bias is None else product + layer.bias.float()


def misshapen(model: nn.Module, config: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Parameters whose shape is not the configuration's, and the shape that they have."""
    with torch.device("meta"):  # takes no memory
        expected = dict(auto_class(config).from_config(copy.deepcopy(config)).named_parameters())
    return [
        (name, tuple(parameter.shape))
        for name, parameter in model.named_parameters()
        if name in expected and parameter.shape != expected[name].shape
    ]


def forget_quantisation(model: Any, dtype: torch.dtype) -> Any:
    """A de-quantised model as an ordinary one: one dtype, and saved as what it now is."""
    model = model.to(dtype)
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "quantization_config"):
            del config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    # transformers undoes, on saving, what it did on reading: it would quantise again.
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is not None:
        remaining = map(without_eight_bits, conversions)
        model._weight_conversions = [c for c in remaining if c is not None]
    return model


def without_eight_bits(conversion: Any) -> Any | None:
    """A conversion of weights on reading, less its de-quantisation; None if that is all it does.

    Experts are de-quantised one by one and merged in the same conversion: the merging stays.
    """
    operations = getattr(conversion, "operations", [])
    remaining = [o for o in operations if "fp8" not in type(o).__name__.lower()]
    if len(remaining) == len(operations):
        return conversion
    if not remaining:
        return None
    names = conversion._original_source_patterns
    converted = type(conversion)(
        source_patterns=[n.removesuffix("$") for n in names if "_scale" not in n],
        target_patterns=[n.removesuffix("$") for n in conversion._original_target_patterns],
        operations=remaining,
    )
    for scope in ("scope_prefix", "base_model_prefix"):
        setattr(converted, scope, getattr(conversion, scope, None))
    return converted
