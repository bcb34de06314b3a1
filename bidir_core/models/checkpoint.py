"""Fine-tuned checkpoints: a folder of weights, or a LoRA adapter, with a note on how it was made.

A checkpoint is a folder with ``config.json`` and safetensors (full fine-tune) or with
``adapter_config.json`` and ``adapter_model.safetensors`` (LoRA, as peft writes it). Beside them,
``bidir.json`` records the regime, the objective and the base model it was trained with, and the
weights' checksums.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from bidir_core.common.errors import UserError
from bidir_core.common.progress import TEMPLATE_SECONDS, time_limit
from bidir_core.data.assets import absolute_place
from bidir_core.models.source import VISION, auto_class, quiet, reason
from bidir_core.models.weight_files import (
    check_weights,
    checksums,
    fingerprint_tensors,
    read_json,
    read_tensors,
)

TRAINING_RECORD = "bidir.json"
ADAPTER_FILE = "adapter_model.safetensors"
PATTERNS = {  # an adapter's settings that hold patterns, and what peft puts around them
    "target_modules": r"(PATTERN)$",
    "exclude_modules": r"(PATTERN)$",
    "rank_pattern": r"(.*\.)?(PATTERN)$",
    "alpha_pattern": r"(.*\.)?(PATTERN)$",
    "modules_to_save": r"(^|.*\.)PATTERN($|\..*)",
    "layers_pattern": r"(^|.*?\.)PATTERN\.\d+\.",
}
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
    folder = Path(absolute_place(path)).expanduser()
    if not folder.is_dir():
        raise UserError(f"checkpoint '{path}' is not a folder; give a checkpoint's folder")
    if (folder / "final").is_dir():
        folder = folder / "final"
    record_file = folder / TRAINING_RECORD
    record = read_json(record_file, "training record") if record_file.is_file() else None
    if (folder / "adapter_config.json").is_file():
        if any(folder.glob("model*.safetensors*")) or any(folder.glob("pytorch_model*.bin*")):
            raise UserError(
                f"checkpoint '{path}' holds a whole model and a LoRA adapter; move one of them into "
                "a folder of its own (of merged weights, adapter_config.json is left over)"
            )
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


def check_unchanged(checkpoint: Checkpoint) -> None:
    """Raise UserError where weights are not those that the training record has checksums of."""
    recorded = (checkpoint.record or {}).get("checksums")
    if not isinstance(recorded, dict):
        return  # of earlier versions
    for name, digest in checksums(checkpoint.folder).items():
        if recorded.get(name, digest) != digest:
            raise UserError(
                f"checkpoint '{checkpoint.folder}': {name} is not what the fine-tune wrote, its "
                f"checksum differs; copy it again ({TRAINING_RECORD} has the checksum)"
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
        own_config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
    except Exception as error:  # transformers raises anything on a malformed file
        raise UserError(
            f"checkpoint '{checkpoint.folder}': its config.json cannot be used; copy it again"
        ) from error
    model_text, own_text = config.get_text_config(), own_config.get_text_config()
    for field in SHAPE_FIELDS:
        have, want = getattr(own_text, field, None), getattr(model_text, field, None)
        if have != want:
            raise UserError(
                f"checkpoint '{checkpoint.folder}' is of another architecture than '{model}': "
                f"its {field} is {have}, the model's {want}; give the model it was trained from"
            )
    return own_config


def _check_adapter_fits(checkpoint: Checkpoint, config: Any, model: str) -> None:
    """Compare the adapter's tensors with those that its settings ask for in the model.

    peft leaves out what does not fit, and starts what is missing at no effect, with a warning at
    most. Nothing here takes memory for weights.
    """
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    label = f"checkpoint '{checkpoint.folder}'"
    mismatch = f"{label} is of another architecture than '{model}': it"
    try:
        with quiet():
            settings = LoraConfig.from_pretrained(str(checkpoint.folder))
            settings.init_lora_weights = True  # the others compute from weights, which are not here
            settings.base_model_name_or_path = None
            with torch.device("meta"):
                plain = auto_class(config).from_config(config)
                _check_patterns(plain, checkpoint.folder)
                adapted = get_peft_model(plain, settings)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{mismatch} cannot be applied: {reason(error)}") from error
    except Exception as error:  # a malformed file raises many kinds
        raise UserError(
            f"{label}: its adapter_config.json cannot be used: {reason(error)}"
        ) from error
    if getattr(settings, "alora_invocation_tokens", None):
        raise UserError(f"{label} works from an invocation's tokens on (aLoRA), which is not taken")
    expected = _shapes(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    accepted = _shapes(adapted.state_dict()) | expected  # embeddings may be saved whole beside
    base_prefix = adapted.get_base_model().base_model_prefix
    stored = {t.name: t.shape for t in read_tensors(checkpoint.folder / ADAPTER_FILE)}
    for name, shape in stored.items():
        if accepted.get(name) == shape or 0 in shape:
            continue
        bare = name.replace("_orig_mod.", "").replace("module.", "")
        headless = name.replace("base_model.model.", f"base_model.model.{base_prefix}.", 1)
        for right, origin in ((bare, "a wrapped model"), (headless, "a model without its head")):
            if name not in accepted and right in accepted:
                raise UserError(
                    f"{label} names its tensors as {origin} does ({name}); rename them to "
                    f"such as {right}"
                )
        has = "does not have" if name not in accepted else f"has as {accepted[name]}"
        resized = name.endswith(("embed_tokens.weight", "lm_head.weight"))
        raise UserError(
            f"{mismatch} adapts {name.removeprefix('base_model.model.').partition('.lora_')[0]} by "
            f"{shape}, which the model {has}; give its base model"
            + (", with the tokens that were added to it" if resized and name in accepted else "")
        )
    # An adapter that was trained on the text alone has none for the vision tower.
    missing = [n for n in expected.keys() - stored.keys() if not set(VISION) & set(n.split("."))]
    missing += [name for name, shape in stored.items() if 0 in shape]
    if missing := sorted(missing):
        raise UserError(
            f"{label} is not whole: {len(missing)} of the {len(expected)} tensors that its "
            f"adapter_config.json asks for are missing or empty, such as {missing[0]}; copy it again"
        )


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def adapter_note(checkpoint: Checkpoint, name: str) -> str | None:
    """A sentence for an adapter that was recorded with another base model than ``name``.

    None where the weights were recorded too (:func:`apply_adapter` compares them), and where the
    last parts of the two names agree: a hub's model may lie in a folder.
    """
    if (checkpoint.record or {}).get("base_fingerprint"):
        return None
    settings = read_json(checkpoint.folder / "adapter_config.json", "adapter")
    base = str(settings.get("base_model_name_or_path") or "")
    path = Path(name).expanduser()
    if path.is_dir():
        path = path.resolve()
    cache_name = f"models--{base.replace('/', '--')}"
    if not base or Path(base).name.lower() == path.name.lower() or cache_name in path.parts:
        return None
    return (
        f"the adapter names '{base[:200]}' as its base model and is applied to '{name}'; that they "
        "have the same weights was not checked"
    )


def apply_adapter(
    model: Any, checkpoint: Checkpoint, base_fingerprint: str, name: str, adapter: str = "merged"
) -> tuple[Any, str, str]:
    """The model with a LoRA adapter, the fingerprint of the two, and how the adapter stands.

    ``adapter``: ``merged`` adds the low-rank products to the weights, each sum taken in float32 and
    rounded once to the model's format; ``beside`` leaves peft's layers beside them. What shares its
    weight with another module (a tied embedding) or is held in 8 bits cannot take a sum of its own,
    so such an adapter stays beside whatever was asked for, as does one with biases of its own.
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


def _check_patterns(model: Any, folder: Path) -> None:
    """UserError where a pattern of the adapter takes for ever: peft matches each with all modules."""
    settings = read_json(folder / "adapter_config.json", "adapter")
    names = [name for name, _ in model.named_modules()]
    with time_limit(TEMPLATE_SECONDS, f"checkpoint '{folder}': matching its patterns"):
        for setting, template in PATTERNS.items():
            patterns = settings.get(setting) or ()
            if setting in ("target_modules", "exclude_modules") and not isinstance(patterns, str):
                continue  # a list of these holds names
            for pattern in [patterns] if isinstance(patterns, str) else patterns:
                with contextlib.suppress(re.error):
                    for name in names:
                        re.match(template.replace("PATTERN", str(pattern)), name)


def _adapted_layers(adapted: Any) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in adapted.modules() if isinstance(module, BaseTunerLayer)]


def _can_merge(adapted: Any) -> bool:
    """Whether every adapted weight belongs to one module alone and is held in 16 bits or more."""
    uses: Counter[int] = Counter()
    for module in adapted.modules():
        for weight in module.parameters(recurse=False):
            uses[id(weight)] += 1
    layers = _adapted_layers(adapted)
    if any(any(getattr(layer, "lora_bias", {}).values()) for layer in layers):
        return False  # the base layer may have no bias to take it
    weights = [getattr(layer.get_base_layer(), "weight", None) for layer in layers]
    return all(
        w is not None and uses[id(w)] == 1 and w.is_floating_point() and w.element_size() > 1
        for w in weights
    )


def _merged(adapted: Any) -> Any:
    """The plain model with each adapted weight replaced by the sum, one layer in float32 at a time."""
    for layer in _adapted_layers(adapted):
        weight = layer.get_base_layer().weight
        dtype = weight.dtype
        weight.data = weight.data.float()
        layer.merge(safe_merge=False)
        weight.data = weight.data.to(dtype)
    return adapted.unload()
