"""Small models with random weights, saved in 8 bits as the published Ministral 3 repositories are.

And the check of :mod:`benchmarks.gpu_check` on one that runs without being de-quantised.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.full_shape import apart, hidden
from bidir_core.models import loading
from bidir_core.models.families import tiny_model, tiny_tokenizer
from bidir_core.models.layout import Layout
from bidir_core.models.probe import run_probe
from bidir_core.models.quantised import multiply_exactly

ACTIVATION_SCALE = 0.02  # the largest activation that a layer takes is 448 times this
# Large enough for a GPU's kernels, with ordinary scores: then what rounding does stays small.
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_attention_heads": 8,
    "head_dim": 64,
    "initializer_range": 0.04,
}


def save_model(folder: Path, **changes: Any) -> Path:
    """A folder with a tiny Mistral 3 in 8 bits; ``changes`` are made to its text configuration."""
    tiny_model("mistral3", **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    quantise(folder)
    return folder


def is_linear(name: str) -> bool:
    """Whether a stored tensor is one of the weights that the published repositories quantise."""
    return name.endswith("proj.weight") and name.startswith("language_model.model.layers")


def quantise(folder: Path) -> dict[str, torch.Tensor]:
    """Rewrite a saved model in 8 bits, one static scale a tensor; returns the de-quantised weights.

    As the published repository: float8_e4m3fn weights with ``weight_scale_inv`` and
    ``activation_scale`` beside each, vision tower, projector and head left in bfloat16.
    """
    stored, dequantised = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if is_linear(name):
            scale = (weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max).to(torch.bfloat16)
            stored[name] = (weight / scale.float()).to(torch.float8_e4m3fn)
            stored[name.replace(".weight", ".weight_scale_inv")] = scale
            stored[name.replace(".weight", ".activation_scale")] = scale.new_tensor(
                ACTIVATION_SCALE
            )
            dequantised[name] = stored[name].float() * scale.float()
        else:
            stored[name] = weight.to(torch.bfloat16)
            dequantised[name] = stored[name].float()
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "bfloat16"
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "static",
        "weight_block_size": None,
        "dequantize": False,
        "modules_to_not_convert": ["model.vision_tower", "model.multi_modal_projector", "lm_head"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return dequantised


def check_native(device: torch.device, regimes: Sequence[str]) -> dict[str, Any]:
    """Each layer's product against the reference, the model's output against de-quantised weights."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), **SHAPE)
        native, plain = (
            loading.load(folder, dtype="bfloat16", device=str(device), weights=weights)
            for weights in ("native", "dequantise")
        )
    seeded = torch.Generator().manual_seed(0)
    in_layers, in_output, failures = [], [], []
    for layer in native.model.modules():
        if type(layer).__name__ != "FP8Linear":
            continue
        for n_rows, dtype in ((1, torch.bfloat16), (101, torch.bfloat16), (16, torch.float32)):
            # Spread so that some lie outside of what the scale can hold.
            inputs = 4 * torch.randn(n_rows, layer.in_features, generator=seeded)
            inputs = inputs.to(device, dtype)
            in_layers.append(apart(layer(inputs), multiply_exactly(layer, inputs)))
    for regime in regimes:
        report = run_probe(native, regime)
        failures += [] if report.passed else [f"{regime}: {report.failures}"]
        in_output.append(apart(*(last_hidden(loaded, regime) for loaded in (native, plain))))
    return {
        "ok": not failures
        and max(in_layers) <= 0.01
        and 0 < min(in_output) <= max(in_output) <= 0.15,
        "layers_off_reference": float(f"{max(in_layers):.3g}"),
        "output_off_dequantised": [float(f"{f(in_output):.3g}") for f in (min, max)],
        "probe": "; ".join(failures) or f"passed under {len(regimes)} regimes",
        "attention": native.implementation,
    }


def last_hidden(loaded: loading.LoadedModel, regime: str) -> torch.Tensor:
    """Last hidden states of some items in one row."""
    layout = Layout.pack([(40, 61), (9, 12), (1, 2), (300, 340)])
    return hidden(loaded, layout, torch.arange(layout.shape[1])[None] * 7 % 250, regime)
