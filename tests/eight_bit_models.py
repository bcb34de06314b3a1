"""Folders with tiny models in 8 bits: scaled by tensors or by blocks, in one file or in shards."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.eight_bits import quantise
from bidir_core.models import loading
from bidir_core.models.weight_files import read_tensors, weight_files
from tests.tiny_models import save_tiny_model


def in_eight_bits(parent: Path) -> tuple[Path, Path]:
    """A Mistral 3 in 8 bits, and the same numbers as an ordinary float32 model."""
    folder = save_tiny_model(parent / "eight", "mistral3")
    plain = shutil.copytree(folder, parent / "plain")
    save_file(quantise(folder), plain / "model.safetensors", metadata={"format": "pt"})
    return folder, plain


def scaled_by_blocks(plain: Path, to: Path, side: int = 8) -> dict[str, torch.Tensor]:
    """A copy of a model in 8 bits, one scale a block, as Qwen's are; returns what it then means."""
    shutil.copytree(plain, to)
    stored, meant = {}, {}
    for name, weight in load_file(to / "model.safetensors").items():
        stored[name] = meant[name] = weight
        if name.endswith("proj.weight") and "vision" not in name:
            rows, columns = weight.shape
            blocks = weight.reshape(rows // side, side, columns // side, side)
            scale = blocks.abs().amax((1, 3)) / 448
            codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            stored[name] = codes.reshape(weight.shape)
            stored[f"{name}_scale_inv"] = scale
            meant[name] = (codes.float() * scale[:, None, :, None]).reshape(weight.shape)
    save_file(stored, to / "model.safetensors", metadata={"format": "pt"})
    configure(
        to,
        quantization_config={
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [side, side],
            "modules_to_not_convert": ["model.vision_tower", "multi_modal_projector", "lm_head"],
        },
    )
    return meant


def configure(folder: Path, **changes) -> None:
    """Change what a folder's configuration says; None takes an entry out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    given = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(given))


def in_shards(folder: Path, to: Path) -> tuple[Path, dict[str, str]]:
    """A copy in two files, and which tensor is in which: a weight and its scale are in both."""
    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    (to / "model.safetensors").unlink()
    weight_map = {
        name: f"model-0000{1 + place % 2}-of-00002.safetensors"
        for place, name in enumerate(sorted(tensors))
    }
    for file in set(weight_map.values()):
        inside = {n: tensors[n] for n, where in weight_map.items() if where == file}
        save_file(inside, to / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": weight_map}
    (to / "model.safetensors.index.json").write_text(json.dumps(index))
    return to, weight_map


def stored_kinds(folder: Path) -> dict[str, str]:
    """What each tensor of a folder is stored as, from the files' headers."""
    return {t.name: t.dtype for file in weight_files(folder) for t in read_tensors(file)}


def whole(folder: Path, **more) -> loading.LoadedModel:
    """A model in float32 with all its parts, as it is loaded to be saved again."""
    plan = loading.preflight(str(folder), dtype="float32", device="cpu", **more)
    return loading.load_weights(plan, keep_vision=True)
