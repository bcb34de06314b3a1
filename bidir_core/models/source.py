"""Where a model's files are: an asset, a local folder or GGUF file, or the hub and its cache.

Only configurations and tokenizers are read here; code that a repository brings along is never run.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bidir_core.common.errors import UserError
from bidir_core.data import assets, fetch
from bidir_core.data.assets import EMBEDDED_MODEL, EMBEDDED_MODELS, absolute_place
from bidir_core.models.weight_files import check_weights, read_json

VISION = ("vision_tower", "multi_modal_projector")  # parts that text never reaches


def find_source(model: str, revision: str | None) -> tuple[str, bool]:
    """What to hand to transformers, and whether it is a local folder.

    An asset is fetched and a ``.gguf`` file converted into the cache first if need be.
    """
    path = Path(absolute_place(model)).expanduser()
    gguf = path.suffix.lower() == ".gguf" and path.is_file()
    if model in EMBEDDED_MODELS or path.is_dir() or gguf:
        if revision is not None:
            raise UserError(
                f"revision '{revision}': only models on the hub have revisions, and '{model}' is "
                "local; leave it out"
            )
        if gguf:
            from bidir_core.data import gguf_local

            return str(gguf_local.folder_of(path)), True
        if model in EMBEDDED_MODELS:
            path = assets.find(model).folder
            if assets.missing([model]):
                fetch.ensure(model)
        return str(_model_folder(path)), True
    if path.is_file():
        raise UserError(
            f"model '{model}' is a file; give the folder that has config.json in it, or a .gguf file"
        )
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", model):
        raise UserError(
            f"model '{model}' is neither a folder or file on this machine nor a hub id; use {EMBEDDED_MODEL}, "
            "a hub id such as mistralai/Ministral-3-3B-Instruct-2512, or a local folder or .gguf file"
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


def hub_is_reachable() -> bool:
    """A quick look, since the hub's own client retries for half a minute when there is no network.

    Behind a proxy names may not resolve here at all, so then the client finds out by itself.
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    host = urllib.parse.urlsplit(endpoint).hostname or "huggingface.co"
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def read_config(model: str, source: str, local: bool, options: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    try:
        with quiet():
            return AutoConfig.from_pretrained(source, **options)
    except Exception as error:  # transformers raises anything on a malformed file
        text = str(error)
        if "trust_remote_code" in text:
            raise UserError(
                f"model '{model}' needs code from its own repository, which is never run here; "
                "use a model whose architecture transformers knows"
            ) from error
        if "does not recognize this architecture" in text:
            match = re.search(r"model type `([^`]*)`", text)
            raise UserError(
                f"model '{model}' has the architecture '{match[1] if match else '?'}', which this "
                "version of transformers does not know; use another model or a newer transformers"
            ) from error
        if local:
            raise UserError(
                f"model '{model}': its config.json cannot be used: {reason(error)}"
            ) from error
        raise UserError(_not_found(model, options, error)) from error


def _not_found(model: str, options: dict[str, Any], error: Exception) -> str:
    embedded = " or ".join(EMBEDDED_MODELS)
    tried = f"'{model}' is not an embedded model ({embedded}) and not a folder on this machine"
    if close := difflib.get_close_matches(model, EMBEDDED_MODELS, n=1, cutoff=0.7):
        return f"unknown model '{model}'; did you mean {close[0]}?"
    if options["local_files_only"]:
        return (
            f"model {tried}, the hub's local cache does not have it, and the hub cannot be "
            "reached; connect to the internet, or give a local folder"
        )
    return (
        f"model {tried}, and the hub did not give it: {reason(error)} "
        "(check the spelling and the revision; for gated models run 'hf auth login')"
    )


def read_tokenizer(model: str, source: str, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer
    from transformers.integrations.mistral.tokenizer import convert_tekken_tokenizer

    try:
        with quiet():
            # mistral_format=False: the Mistral library's own tokenizer gives no offsets.
            tokenizer = AutoTokenizer.from_pretrained(source, mistral_format=False, **options)
            if tokenizer.bos_token is None and (tekken := _tekken_alone(source, options)):
                # Mistral's own file names its special tokens; nothing else here does.
                tokenizer = convert_tekken_tokenizer(tekken)
    except Exception as error:  # as above
        cached = options.get("local_files_only")
        where = " in the hub's cache, and the hub cannot be reached" if cached else ""
        raise UserError(
            f"model '{model}' has no tokenizer that can be read{where}: {reason(error)}"
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


def _tekken_alone(source: str, options: dict[str, Any]) -> str | None:
    """The path of ``tekken.json`` in a repository that has no ``tokenizer.json``."""
    from transformers.utils import cached_file

    hub_options = {k: v for k, v in options.items() if k in ("revision", "local_files_only")}
    paths = [
        cached_file(
            source,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **hub_options,
        )
        for name in ("tokenizer.json", "tekken.json")
    ]
    return paths[1] if paths[0] is None else None


def fetch_weights(model: str, source: str, revision: str | None) -> Path:
    """Download a hub model's weights, if the hub's cache lacks them; returns their folder."""
    from huggingface_hub import snapshot_download

    online = hub_is_reachable()

    def fetch(*patterns: str) -> Path:
        # 'consolidated*' is a second copy of the weights, in Mistral's own layout.
        return Path(
            snapshot_download(
                source,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=["consolidated*", "original/*", "*/*"],
                local_files_only=not online,
            )
        )

    try:
        folder = fetch("config.json", "*.safetensors", "*.safetensors.index.json")
        if not any(folder.glob("*.safetensors")):
            folder = fetch("config.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")
    except Exception as error:  # network, disk, permission: the hub's client raises many kinds
        raise UserError(
            f"the weights of '{model}' could not be fetched: {reason(error)}"
        ) from error
    try:
        check_weights(folder)
    except UserError as error:
        if online:
            raise
        raise UserError(
            f"the hub's cache holds only a part of '{model}', and the hub cannot be reached; "
            f"connect to the internet once ({error})"
        ) from error
    return folder


def auto_class(config: Any) -> Any:
    """transformers' loader for this configuration: text-only where there is one."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    return AutoModelForImageTextToText


def is_fp8(config: Any) -> bool:
    """Whether the model's repository holds 8-bit floating-point weights."""
    settings = getattr(config, "quantization_config", None)
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    return method == "fp8"


def reason(error: Exception) -> str:
    """A library's message as part of one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
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
