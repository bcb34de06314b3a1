"""Where models come from: the embedded one, the hub, a local folder, with or without a checkpoint.

`preflight` does every check that needs no weights and raises UserError; `load` does the rest. Code
that a repository brings along is never run.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bidir_core import assets
from bidir_core.attention import Handle, check_supported, choose_implementation, install
from bidir_core.checkpoint import Checkpoint, apply_adapter, check_fits, open_checkpoint
from bidir_core.devices import choose_device, choose_dtype
from bidir_core.errors import UserError
from bidir_core.regimes import Regime, parse_regime
from bidir_core.weights import check_weights, fingerprint, read_json, weight_files

EMBEDDED = "smollm2-135m-instruct"
NO_LIMIT = 1 << 30  # max_length of a model whose configuration names no window


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run under any regime, and what a run must record about it.

    ``model`` is in eval mode, without gradients, on ``device``; regimes go through ``handle``.
    ``fingerprint`` changes with the weights, the checkpoint or the shape. ``max_length`` is the
    model's window in tokens. ``training_record`` is what the checkpoint says of its training.
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
    training_record: dict[str, Any] | None = None


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


def preflight(
    model: str,
    *,
    revision: str | None = None,
    checkpoint: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    attn: str = "auto",
    regime: Regime | str | None = None,
) -> Preflight:
    """Check everything about a model that can be checked without reading its weights.

    Raises UserError for a model, revision or checkpoint that is not there, is damaged or does not
    fit; an architecture or attention implementation that cannot honour a regime; a device or dtype
    that this machine lacks; a regime that names layers beyond the model's. The embedded model is
    fetched here if it is not in the cache yet, after the checks that do not need it.
    """
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    parsed = parse_regime(regime) if regime is not None else None
    opened = open_checkpoint(checkpoint) if checkpoint is not None else None
    source, local = _find_source(model, revision)
    options: dict[str, Any] = {"trust_remote_code": False}
    if not local:
        options |= {"revision": revision, "local_files_only": not _hub_is_reachable()}
    config = _read_config(model, source, local, options)
    commit = getattr(config, "_commit_hash", None)
    check_supported(config)
    if opened is not None:
        config = check_fits(opened, config, model)
        check_supported(config)
    implementation = choose_implementation(config, attn)
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
        tokenizer=_read_tokenizer(model, source, options),
        checkpoint=opened,
        device=chosen_device,
        dtype=chosen_dtype,
        implementation=implementation,
        n_layers=n_layers,
        max_length=getattr(text, "max_position_embeddings", None) or NO_LIMIT,
    )


def load(
    model: str,
    *,
    revision: str | None = None,
    checkpoint: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    attn: str = "auto",
    regime: Regime | str | None = None,
) -> LoadedModel:
    """Load a model by embedded name, hub id or folder; see :func:`preflight` for what is refused.

    ``checkpoint`` is a folder of safetensors, a LoRA adapter, or a fine-tuning run. A LoRA adapter
    is folded into float32 weights, where nothing is lost by it, and kept beside narrower ones.
    """
    return load_weights(
        preflight(
            model,
            revision=revision,
            checkpoint=checkpoint,
            dtype=dtype,
            device=device,
            attn=attn,
            regime=regime,
        )
    )


def load_weights(plan: Preflight) -> LoadedModel:
    """The second half of :func:`load`: read what :func:`preflight` found."""
    opened = plan.checkpoint
    full = opened is not None and opened.kind == "full"
    folder = opened.folder if opened is not None and full else _weights_folder(plan)
    loaded = _read_weights(plan, folder)
    print_of_weights = fingerprint(plan.config.get_text_config(), weight_files(folder))
    if opened is not None and opened.kind == "lora":
        loaded, print_of_weights = apply_adapter(loaded, opened, print_of_weights, plan.name)
    loaded.eval().requires_grad_(False)
    handle = install(loaded, plan.implementation)  # type: ignore[arg-type]
    try:
        loaded = loaded.to(plan.device)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"'{plan.name}' does not fit into the memory of {plan.device} in {plan.dtype}; "
            "use --dtype bfloat16 or --device cpu"
        ) from error
    return LoadedModel(
        model=loaded,
        tokenizer=plan.tokenizer,
        handle=handle,
        name=plan.name,
        fingerprint=print_of_weights,
        tokenizer_fingerprint=_tokenizer_fingerprint(plan.tokenizer),
        n_layers=plan.n_layers,
        max_length=plan.max_length,
        device=plan.device,
        dtype=str(plan.dtype).removeprefix("torch."),
        implementation=plan.implementation,
        revision=plan.revision,
        checkpoint=str(opened.folder) if opened is not None else None,
        training_record=opened.record if opened is not None else None,
    )


def _find_source(model: str, revision: str | None) -> tuple[str, bool]:
    """What to hand to transformers, and whether it is a local folder."""
    path = Path(model).expanduser()
    if model == EMBEDDED or path.is_dir():
        if revision is not None:
            raise UserError(
                f"revision '{revision}': only models on the hub have revisions, and '{model}' is "
                "local; leave it out"
            )
        folder = assets.ensure(EMBEDDED) if model == EMBEDDED else path
        return str(_model_folder(folder)), True
    if path.is_file():
        raise UserError(f"model '{model}' is a file; give the folder that has config.json in it")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", model):
        raise UserError(
            f"model '{model}' is neither a folder on this machine nor a hub id; use {EMBEDDED}, "
            "a hub id such as mistralai/Ministral-3-3B-Instruct-2512, or a local folder"
        )
    return model, False


def _model_folder(folder: Path) -> Path:
    """The folder with the configuration: this one, or the snapshot of a hub cache's repository."""
    if (folder / "config.json").is_file():
        return folder
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json", "adapter").get("base_model_name_or_path")
        raise UserError(
            f"model '{folder}' is a LoRA adapter; give its base model ({base}) as --model and "
            "this folder as --checkpoint"
        )
    snapshots = [path.parent for path in sorted(folder.glob("snapshots/*/config.json"))]
    if len(snapshots) == 1:
        return snapshots[0]
    if snapshots:
        raise UserError(
            f"model '{folder}' holds {len(snapshots)} snapshots; give one, such as {snapshots[-1]}"
        )
    raise UserError(f"model folder '{folder}' has no config.json; give a model's own folder")


def _hub_is_reachable() -> bool:
    """A quick look, since the hub's own client retries for half a minute when there is no network.

    Behind a proxy names may not resolve here at all, so then the client finds out by itself.
    """
    if urllib.request.getproxies():
        return True
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    host = urllib.parse.urlsplit(endpoint).hostname or "huggingface.co"
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def _read_config(model: str, source: str, local: bool, options: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    try:
        with _quiet():
            return AutoConfig.from_pretrained(source, **options)
    except Exception as error:  # transformers raises anything on a malformed file
        text = str(error)
        if "trust_remote_code" in text:
            raise UserError(
                f"model '{model}' needs code from its own repository, which is never run here; "
                "use a model whose architecture transformers knows"
            ) from error
        if "does not recognize this architecture" in text:
            kind = re.search(r"model type `([^`]*)`", text)
            raise UserError(
                f"model '{model}' has the architecture '{kind[1] if kind else '?'}', which this "
                "version of transformers does not know; use another model or a newer transformers"
            ) from error
        if local:
            raise UserError(
                f"model '{model}': its config.json cannot be used: {_reason(error)}"
            ) from error
        raise UserError(_not_found(model, options, error)) from error


def _not_found(model: str, options: dict[str, Any], error: Exception) -> str:
    tried = f"'{model}' is not the embedded model ({EMBEDDED}) and not a folder on this machine"
    if difflib.get_close_matches(model, [EMBEDDED], cutoff=0.7):
        return f"unknown model {tried}; did you mean {EMBEDDED}?"
    if options["local_files_only"]:
        return (
            f"model {tried}, the hub's local cache does not have it, and the hub cannot be "
            "reached; connect to the internet, or give a local folder"
        )
    return (
        f"model {tried}, and the hub did not give it: {_reason(error)} "
        "(check the spelling and the revision; for gated models run 'hf auth login')"
    )


def _read_tokenizer(model: str, source: str, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    try:
        with _quiet():
            # mistral_format=False: the Mistral library's own tokenizer gives no offsets.
            tokenizer = AutoTokenizer.from_pretrained(source, mistral_format=False, **options)
    except Exception as error:  # as above
        raise UserError(
            f"model '{model}' has no tokenizer that can be read: {_reason(error)}"
        ) from error
    try:
        encoded = tokenizer("two words", add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
    except (NotImplementedError, ValueError, TypeError, KeyError):
        offsets = None
    if not tokenizer.is_fast or not offsets:
        raise UserError(
            f"the tokenizer of '{model}' ({type(tokenizer).__name__}) gives no character offsets; "
            "a fast one (tokenizer.json) is needed"
        )
    return tokenizer


def _weights_folder(plan: Preflight) -> Path:
    """The local folder of a model's weights; for a hub model, downloads them first."""
    if plan.local:
        return Path(plan.source)
    from huggingface_hub import snapshot_download

    def fetch(*patterns: str) -> Path:
        # 'consolidated*' is a second copy of the weights, in Mistral's own layout.
        return Path(
            snapshot_download(
                plan.source,
                revision=plan.revision,
                allow_patterns=list(patterns),
                ignore_patterns=["consolidated*", "original/*", "*/*"],
                local_files_only=not _hub_is_reachable(),
            )
        )

    try:
        folder = fetch("config.json", "*.safetensors", "*.safetensors.index.json")
        if not any(folder.glob("*.safetensors")):
            folder = fetch("config.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")
    except Exception as error:  # network, disk, permission: the hub's client raises many kinds
        raise UserError(
            f"the weights of '{plan.name}' could not be fetched: {_reason(error)}"
        ) from error
    check_weights(folder)
    return folder


def _read_weights(plan: Preflight, folder: Path) -> Any:
    """The model on the CPU, in the wanted dtype, every parameter from the files."""
    config = plan.config
    quantization = getattr(config, "quantization_config", None)
    if isinstance(quantization, dict) and quantization.get("quant_method") == "fp8":
        # Weights of 8 bits compute nowhere but on recent GPUs, and cannot be trained.
        config.quantization_config = quantization | {"dequantize": True}
    try:
        with _quiet():
            loaded, info = auto_class(config).from_pretrained(
                folder,
                config=config,
                dtype=plan.dtype,
                attn_implementation=plan.implementation,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # refused below, by name
                output_loading_info=True,
            )
    except Exception as error:  # as above
        raise UserError(f"the weights in {folder} cannot be used: {_reason(error)}") from error
    misshapen = [f"{name} {tuple(shape)}" for name, shape, *_ in info["mismatched_keys"]]
    lost = sorted(info["missing_keys"]) + sorted(misshapen)
    if lost:  # transformers would fill them with random numbers and only warn
        raise UserError(
            f"the weights in {folder} are not those of a {config.model_type} model of this shape: "
            f"{len(lost)} tensors are missing or misshapen, such as {lost[0]}"
        )
    return loaded


def auto_class(config: Any) -> Any:
    """transformers' loader for this configuration: text-only where there is one."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    return AutoModelForImageTextToText


def _tokenizer_fingerprint(tokenizer: Any) -> str:
    text = tokenizer.backend_tokenizer.to_str() + repr(tokenizer.chat_template)
    return hashlib.sha256(text.encode()).hexdigest()


def _reason(error: Exception) -> str:
    """A library's message as part of one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its progress bars and warnings: what matters is checked here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
