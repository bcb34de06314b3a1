"""Tiny random models of every supported architecture, and a byte-level tokenizer for them.

They stand in for real ones wherever a test needs a model that runs in milliseconds: built from a
configuration, in fp32, without weights on disk. ``save_tiny_model`` writes one as a local folder
laid out like a hub snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bidir_core.attention import Handle, choose_implementation, install
from bidir_core.families import (
    BOS,
    EOS,
    FAMILIES,
    MAX_LENGTH,
    PAD,
    VOCAB,
    WINDOW,
    tiny_config,
    tiny_model,
    tiny_tokenizer,
)

__all__ = [
    "BOS",
    "EOS",
    "FAMILIES",
    "MAX_LENGTH",
    "PAD",
    "VOCAB",
    "WINDOW",
    "TinyLoaded",
    "save_tiny_model",
    "tiny_config",
    "tiny_loaded",
    "tiny_model",
    "tiny_tokenizer",
]


def save_tiny_model(folder: Path | str, family: str = "llama", *, seed: int = 0) -> Path:
    """Write a model and its tokenizer as a local folder like a hub snapshot."""
    folder = Path(folder)
    tiny_model(family, seed=seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class TinyLoaded:
    """The same fields as ``bidir_core.models.LoadedModel``, for tests that load nothing."""

    model: Any
    tokenizer: Any
    handle: Handle
    name: str
    fingerprint: str
    n_layers: int
    max_length: int
    device: torch.device
    dtype: str
    implementation: str


def tiny_loaded(
    family: str = "llama",
    *,
    implementation: str = "auto",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    model: Any = None,
    **changes: Any,
) -> TinyLoaded:
    """A tiny model with regimes installed; ``model`` brings one's own (a PEFT-wrapped one)."""
    model = tiny_model(family, seed=seed, **changes) if model is None else model
    model = model.to(dtype)
    chosen = choose_implementation(model.config, implementation)
    text = model.config.get_text_config()
    return TinyLoaded(
        model=model,
        tokenizer=tiny_tokenizer(),
        handle=install(model, chosen),
        name=f"tiny-{family}",
        fingerprint=f"tiny-{family}-{seed}",
        n_layers=text.num_hidden_layers,
        max_length=text.max_position_embeddings,
        device=torch.device("cpu"),
        dtype=str(dtype).removeprefix("torch."),
        implementation=chosen,
    )
