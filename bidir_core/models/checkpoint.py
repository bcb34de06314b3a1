"""Fine-tuned checkpoints: a folder of weights, or a LoRA adapter, with a note on how it was made.

A checkpoint is a folder with ``config.json`` and safetensors (full fine-tune) or with
``adapter_config.json`` and ``adapter_model.safetensors`` (LoRA, as peft writes it). Beside them,
``bidir.json`` records the regime, the objective and the base model it was trained with.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from bidir_core.common.errors import UserError
from bidir_core.models.source import auto_class
from bidir_core.models.weight_files import (
    check_weights,
    fingerprint_tensors,
    read_json,
    read_tensors,
)

TRAINING_RECORD = "bidir.json"
ADAPTER_FILE = "adapter_model.safetensors"
SHAPE_FIELDS = (
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: its folder, its kind, and its ``bidir.json`` (None without one)."""

    folder: Path
    kind: Literal["full", "lora"]
    record: dict[str, Any] | None


def open_checkpoint(path: str) -> Checkpoint:
    """Find a checkpoint and check that its files are whole, without reading weights.

    ``path`` is the checkpoint's folder or a fine-tuning run that has it in ``final/``. Raises
    UserError if it is not there, damaged, or of another kind.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"checkpoint '{path}' is not a folder; give a checkpoint's folder")
    if (folder / "final").is_dir():
        folder = folder / "final"
    record_file = folder / TRAINING_RECORD
    record = read_json(record_file, "training record") if record_file.is_file() else None
    if (folder / "adapter_config.json").is_file():
        kind = read_json(folder / "adapter_config.json", "adapter").get("peft_type")
        if kind != "LORA":
            raise UserError(f"checkpoint '{path}' is a {kind} adapter; only LoRA ones are taken")
        if not (folder / ADAPTER_FILE).is_file():
            raise UserError(f"checkpoint '{path}' has no {ADAPTER_FILE}; train or copy it again")
        read_tensors(folder / ADAPTER_FILE)
        return Checkpoint(folder, "lora", record)
    if (folder / "config.json").is_file():
        check_weights(folder)
        return Checkpoint(folder, "full", record)
    raise UserError(
        f"checkpoint '{path}' holds neither config.json nor adapter_config.json; "
        "give the folder that a fine-tuning run wrote (its final/)"
    )


def check_fits(checkpoint: Checkpoint, config: Any, model: str) -> Any:
    """The configuration to run the checkpoint with: its own, or for an adapter the base model's.

    Raises UserError if the checkpoint is of another architecture than ``config``, saying how.
    """
    if checkpoint.kind == "lora":
        _check_adapter_fits(checkpoint, config, model)
        return config
    from transformers import AutoConfig

    try:
        own = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
    except Exception as error:  # transformers raises anything on a malformed file
        raise UserError(
            f"checkpoint '{checkpoint.folder}': its config.json cannot be used; copy it again"
        ) from error
    ours, theirs = config.get_text_config(), own.get_text_config()
    for field in SHAPE_FIELDS:
        have, want = getattr(theirs, field, None), getattr(ours, field, None)
        if have != want:
            raise UserError(
                f"checkpoint '{checkpoint.folder}' is of another architecture than '{model}': "
                f"its {field} is {have}, the model's {want}; give the model it was trained from"
            )
    return own


def _check_adapter_fits(checkpoint: Checkpoint, config: Any, model: str) -> None:
    """Compare the adapter's tensors with the model's modules, built without memory for weights."""
    with torch.device("meta"):
        modules = dict(auto_class(config).from_config(config).named_modules())
    for tensor in read_tensors(checkpoint.folder / ADAPTER_FILE):
        name = tensor.name.removeprefix("base_model.model.")
        target, _, part = name.partition(".lora_")
        if not part:
            continue  # a module saved whole: peft checks its shape
        weight = getattr(modules.get(target), "weight", None)
        side = tensor.shape[1 if part.startswith(("A", "embedding_B")) else 0]
        if part.startswith("embedding"):
            side = max(tensor.shape)
        if weight is None or side not in weight.shape:
            what = "does not have" if weight is None else f"has as {tuple(weight.shape)}"
            raise UserError(
                f"checkpoint '{checkpoint.folder}' is of another architecture than '{model}': it "
                f"adapts {target} by {tensor.shape}, which the model {what}; give its base model"
            )


def apply_adapter(
    model: Any, checkpoint: Checkpoint, base_fingerprint: str, name: str, adapter: str = "merged"
) -> tuple[Any, str, str]:
    """The model with a LoRA adapter, the fingerprint of the two, and how the adapter stands.

    ``adapter``: ``merged`` adds the low-rank products to the weights, each sum taken in float32 and
    rounded once to the model's format; ``beside`` leaves peft's layers beside them. What shares its
    weight with another module (a tied embedding) or is held in 8 bits cannot take a sum of its own,
    so such an adapter stays beside whatever was asked for.
    """
    from peft import PeftModel

    recorded = (checkpoint.record or {}).get("base_fingerprint")
    if recorded is not None and recorded != base_fingerprint:
        raise UserError(
            f"checkpoint '{checkpoint.folder}' was trained from other weights than those of "
            f"'{name}'; give the model it was trained from "
            f"({(checkpoint.record or {}).get('base_model', 'see its bidir.json')})"
        )
    try:
        adapted: Any = PeftModel.from_pretrained(model, str(checkpoint.folder))
    except Exception as error:  # peft raises many kinds
        raise UserError(
            f"checkpoint '{checkpoint.folder}' cannot be applied: {str(error).splitlines()[0]}"
        ) from error
    tensors = fingerprint_tensors([checkpoint.folder / ADAPTER_FILE])
    settings = (checkpoint.folder / "adapter_config.json").read_bytes()
    digest = hashlib.sha256(base_fingerprint.encode() + tensors.encode() + settings).hexdigest()
    if adapter == "merged" and _can_merge(adapted):
        return _merged(adapted), digest, "merged"
    return adapted, digest, "beside"


def _adapted_layers(adapted: Any) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in adapted.modules() if isinstance(module, BaseTunerLayer)]


def _can_merge(adapted: Any) -> bool:
    """Whether every adapted weight belongs to one module alone and is held in 16 bits or more."""
    uses: Counter[int] = Counter()
    for module in adapted.modules():
        for weight in module.parameters(recurse=False):
            uses[id(weight)] += 1
    weights = [layer.get_base_layer().weight for layer in _adapted_layers(adapted)]
    return all(uses[id(w)] == 1 and w.is_floating_point() and w.element_size() > 1 for w in weights)


def _merged(adapted: Any) -> Any:
    """The plain model with each adapted weight replaced by the sum, one layer in float32 at a time."""
    for layer in _adapted_layers(adapted):
        weight = layer.get_base_layer().weight
        narrow = weight.dtype
        weight.data = weight.data.float()
        layer.merge(safe_merge=False)
        weight.data = weight.data.to(narrow)
    return adapted.unload()
