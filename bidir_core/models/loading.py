"""Where models come from: the embedded one, the hub, a local folder, with or without a checkpoint.

`preflight` does every check that needs no weights and raises UserError; `load` does the rest. Code
that a repository brings along is never run.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bidir_core.common.errors import UserError
from bidir_core.common.progress import LOG, phase
from bidir_core.models import devices, fused
from bidir_core.models.attention import (
    Handle,
    check_attention_name,
    check_supported,
    choose_implementation,
    install,
    own_implementation,
    rope_kinds,
)
from bidir_core.models.checkpoint import (
    Checkpoint,
    adapter_note,
    apply_adapter,
    check_fits,
    check_unchanged,
    open_checkpoint,
)
from bidir_core.models.devices import choose_device, choose_dtype
from bidir_core.models.quantised import (
    ask_for,
    check_native,
    forget_quantisation,
    misshapen,
    run_natively,
)
from bidir_core.models.source import (
    VISION,
    auto_class,
    fetch_weights,
    find_source,
    hub_is_reachable,
    is_fp8,
    quiet,
    read_config,
    read_tokenizer,
    reason,
)
from bidir_core.models.weight_files import check_weights, fingerprint, weight_files
from bidir_core.regimes import Regime, parse_regime

WEIGHTS = ("dequantise", "native")
NO_LIMIT = 1 << 30  # max_length of a model whose configuration names no window


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run under any regime, and what a run must record about it.

    ``model`` is in eval mode, without gradients, on ``device``; regimes go through ``handle``.
    ``fingerprint`` changes with the weights, the checkpoint or the shape. ``max_length`` is the
    model's window in tokens. ``adapter`` says whether a LoRA checkpoint was merged or stands
    beside. ``training_record`` is what the checkpoint says of its training; ``fused``, what runs in
    kernels of :mod:`bidir_core.models.fused`; ``notes`` are sentences that a reader should see.
    """

    model: Any
    tokenizer: Any
    handle: Handle
    name: str
    fingerprint: str
    tokenizer_fingerprint: str
    n_layers: int
    max_length: int
    device: torch.device
    dtype: str
    implementation: str
    revision: str | None = None
    checkpoint: str | None = None
    adapter: str | None = None
    training_record: dict[str, Any] | None = None
    fused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preflight:
    """What is known, and settled, before any weight is read."""

    name: str
    source: str
    local: bool
    revision: str | None
    config: Any
    tokenizer: Any
    checkpoint: Checkpoint | None
    device: torch.device
    dtype: torch.dtype
    implementation: str
    n_layers: int
    max_length: int
    weights: str = "dequantise"
    adapter: str = "merged"


_ASKED = ("model", "revision", "checkpoint", "dtype", "device", "attn", "weights", "adapter")


def asked_by(config: Any, **others: Any) -> dict[str, Any]:
    """What a configuration, or a parsed command line, says of its model: for :func:`preflight`."""
    return {name: getattr(config, name) for name in _ASKED if hasattr(config, name)} | others


def preflight(
    model: str,
    *,
    revision: str | None = None,
    checkpoint: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    attn: str = "auto",
    weights: str = "dequantise",
    adapter: str = "merged",
    regime: Regime | str | None = None,
) -> Preflight:
    """Check everything about a model that can be checked without reading its weights.

    Raises UserError for a model, revision or checkpoint that is not there, is damaged or does not
    fit; an architecture or attention implementation that cannot honour a regime; a device or dtype
    that this machine lacks; a regime that names layers beyond the model's. The embedded model is
    fetched here if it is not in the cache yet, after the checks that do not need it.
    """
    check_attention_name(attn)
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    parsed = parse_regime(regime) if regime is not None else None
    opened = open_checkpoint(checkpoint) if checkpoint is not None else None
    source, local = find_source(model, revision)
    options: dict[str, Any] = {"trust_remote_code": False}
    if not local:
        options |= {"revision": revision, "local_files_only": not hub_is_reachable()}
    config = read_config(model, source, local, options)
    commit = getattr(config, "_commit_hash", None)
    check_supported(config)
    if opened is not None:
        config = check_fits(opened, config, model)
        check_supported(config)
    is_full = opened is not None and opened.kind == "full"
    if weights not in WEIGHTS:
        raise UserError(f"--weights {weights}: choose one of {', '.join(WEIGHTS)}")
    if weights == "native":
        check_native(config, chosen_device, str(checkpoint) if is_full else model)
    implementation = choose_implementation(config, attn, chosen_device.type)
    text = config.get_text_config()
    n_layers = text.num_hidden_layers
    if parsed is not None:
        parsed.check_layers(n_layers)
    if local and (opened is None or opened.kind == "lora"):
        check_weights(Path(source))
    if not local:
        options["revision"] = commit or revision
    return Preflight(
        name=model,
        source=source,
        local=local,
        revision=None if local else commit or revision,
        config=config,
        tokenizer=read_tokenizer(model, source, options),
        checkpoint=opened,
        device=chosen_device,
        dtype=chosen_dtype,
        implementation=implementation,
        n_layers=n_layers,
        max_length=getattr(text, "max_position_embeddings", None) or NO_LIMIT,
        weights=weights,
        adapter=adapter,
    )


def load(model: str, **settings: Any) -> LoadedModel:
    """Load a model by embedded name, hub id or folder.

    ``settings`` are those of :func:`preflight`, which says what is refused. ``checkpoint`` is a
    folder of safetensors, a LoRA adapter, or a fine-tuning run. ``adapter`` says whether a LoRA
    adapter is merged into the weights or stays beside them
    (:func:`bidir_core.models.checkpoint.apply_adapter`).
    """
    return load_weights(preflight(model, **settings))


def load_weights(plan: Preflight, *, keep_vision: bool = False) -> LoadedModel:
    """The second half of :func:`load`: read what :func:`preflight` found.

    A vision tower is dropped unless ``keep_vision`` (who saves the model again needs it whole).
    """
    phase("Loading the weights")
    if plan.device.type == "cuda":
        devices.sweep()  # the model before, whose parts refer to each other
    opened = plan.checkpoint
    if opened is not None:
        check_unchanged(opened)
    is_full = opened is not None and opened.kind == "full"
    if opened is not None and is_full:
        folder = opened.folder
    elif plan.local:
        folder = Path(plan.source)
    else:
        folder = fetch_weights(plan.name, plan.source, plan.revision)
    loaded, unused = _read_weights(plan, folder)
    notes = [_unused_note(plan.name if not is_full else str(folder), unused, loaded)]
    if not keep_vision:
        loaded = _without_vision(loaded)
    if plan.weights == "native":
        run_natively(loaded, plan.dtype, plan.name)
    weights_fingerprint = fingerprint(plan.config.get_text_config(), weight_files(folder))
    adapter = None
    if opened is not None and opened.kind == "lora":
        loaded, weights_fingerprint, adapter = apply_adapter(
            loaded, opened, weights_fingerprint, plan.name, plan.adapter
        )
        notes.append(adapter_note(opened, plan.name))
    for note in filter(None, notes):
        LOG.warning("note: %s", note)
    loaded.eval().requires_grad_(False)
    handle = install(loaded, plan.implementation)  # type: ignore[arg-type]
    try:
        loaded = loaded.to(plan.device)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"'{plan.name}' does not fit into the memory of {plan.device} in {plan.dtype}; "
            "use --dtype bfloat16 or --device cpu"
        ) from error
    kernels = fused.fuse(loaded) if plan.device.type == "cuda" else []
    tokenizer_text = plan.tokenizer.backend_tokenizer.to_str() + repr(plan.tokenizer.chat_template)
    return LoadedModel(
        model=loaded,
        tokenizer=plan.tokenizer,
        handle=handle,
        name=plan.name,
        fingerprint=weights_fingerprint,
        tokenizer_fingerprint=hashlib.sha256(tokenizer_text.encode()).hexdigest(),
        n_layers=plan.n_layers,
        max_length=plan.max_length,
        device=plan.device,
        dtype=str(plan.dtype).removeprefix("torch."),
        implementation=plan.implementation,
        revision=plan.revision,
        checkpoint=str(opened.folder) if opened is not None else None,
        adapter=adapter,
        training_record=opened.record if opened is not None else None,
        fused=tuple(kernels),
        notes=tuple(note for note in notes if note),
    )


def _unused_note(name: str, unused: list[str], model: Any) -> str | None:
    """A sentence on tensors of the files that the model has no place for; None without any."""
    if not unused:
        return None
    return (
        f"{len(unused)} tensors in the weights of '{name}' were not used, such as {unused[0]}: its "
        f"configuration describes a {model.config.model_type} model of "
        f"{model.config.get_text_config().num_hidden_layers} layers without them"
    )


def _read_weights(plan: Preflight, folder: Path) -> tuple[Any, list[str]]:
    """The model on the CPU, in the wanted dtype, every parameter from the files.

    Also the names of tensors in the files that it has no place for.
    """
    config = copy.deepcopy(plan.config)  # a plan can be loaded twice
    fp8 = is_fp8(config)
    if fp8:
        ask_for(config, plan.weights)
    try:
        with quiet():
            loaded, info = auto_class(config).from_pretrained(
                folder,
                config=config,
                dtype=plan.dtype,
                attn_implementation=own_implementation(config, plan.implementation),
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # refused below, by name
                output_loading_info=True,
            )
    except Exception as error:  # transformers raises anything on a malformed file
        for kind in rope_kinds(config) if isinstance(error, KeyError) else ():
            if error.args == (kind.get("rope_type"),):
                raise UserError(
                    f"model '{plan.name}': its config.json names the rotary embedding (rope_type) "
                    f"'{error.args[0]}', which this version of transformers does not know; use "
                    "another model or a newer transformers"
                ) from error
        raise UserError(f"the weights in {folder} cannot be used: {reason(error)}") from error
    wrong: list[tuple[str, Any]] = [(name, None) for name in sorted(info["missing_keys"])]
    wrong += sorted((name, tuple(shape)) for name, shape, *_ in info["mismatched_keys"])
    if fp8:  # whose shapes transformers takes as they come
        wrong += misshapen(loaded, config)
    if wrong:  # transformers would fill them with random numbers and only warn
        name, shape = wrong[0]
        raise UserError(
            f"the weights in {folder} are not those of a {config.model_type} model of this shape: "
            f"{len(wrong)} tensors are missing or misshapen, such as {name}"
            f"{f' {shape}' if shape is not None else ''}"
        )
    if fp8 and plan.weights == "dequantise":
        loaded = forget_quantisation(loaded, plan.dtype)
    return loaded, sorted(info["unexpected_keys"])


def _without_vision(model: Any) -> Any:
    """The model without its vision tower: text alone never reaches it, and it takes memory."""
    inner = getattr(model, "model", model)
    for name in VISION:
        if isinstance(getattr(inner, name, None), torch.nn.Module):
            setattr(inner, name, torch.nn.Identity())
    return model
