"""Weights that a repository ships in 8 bits (``quant_method: fp8``): de-quantised, or as they are.

De-quantised weights run anywhere and can be trained. Native ones need a GPU that multiplies 8-bit
numbers; a repository with static activation scales was calibrated under causal attention, so part
of what a bidirectional prefill does to it may be theirs. Which of the two a run used is part of it.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from bidir_core.errors import UserError

Weights = Literal["dequantise", "native"]
WEIGHTS: tuple[Weights, ...] = ("dequantise", "native")
NEEDED_CAPABILITY = (8, 9)  # Ada and Hopper


def is_fp8(config: Any) -> bool:
    """Whether the model's repository holds 8-bit floating-point weights."""
    found = getattr(config, "quantization_config", None)
    method = found.get("quant_method") if isinstance(found, dict) else None
    return method == "fp8"


def check_weights_choice(config: Any, weights: str, device: torch.device, model: str) -> None:
    """UserError where ``native`` is asked for and there is nothing native, or nothing to run it."""
    if weights not in WEIGHTS:
        raise UserError(f"--weights {weights}: choose one of {', '.join(WEIGHTS)}")
    if weights != "native":
        return
    if not is_fp8(config):
        raise UserError(f"--weights native: '{model}' has no 8-bit weights; leave the flag out")
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < NEEDED_CAPABILITY:
        raise UserError(
            f"--weights native: {device} cannot multiply 8-bit weights (a GPU of compute "
            "capability 8.9 or more can); use --weights dequantise"
        )


def ask_for(config: Any, weights: str) -> None:
    """Tell transformers, through the configuration, how to load 8-bit weights."""
    if is_fp8(config):
        config.quantization_config = config.quantization_config | {
            "dequantize": weights == "dequantise"
        }


def forget_quantisation(model: Any, dtype: torch.dtype) -> Any:
    """A de-quantised model as an ordinary one: one dtype, and saved as what it now is."""
    model = model.to(dtype)
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "quantization_config"):
            del config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    return model


def without_vision(model: Any) -> Any:
    """The model without its vision tower: text alone never reaches it, and it takes memory."""
    inner = getattr(model, "model", model)
    for name in ("vision_tower", "multi_modal_projector"):
        if isinstance(getattr(inner, name, None), torch.nn.Module):
            setattr(inner, name, torch.nn.Identity())
    return model
