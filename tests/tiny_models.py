"""Tiny random models of every supported architecture, and a byte-level tokenizer for them.

They stand in for real ones wherever a test needs a model that runs in milliseconds: built from a
configuration, in fp32, without weights on disk. ``save_tiny_model`` writes one as a local folder
laid out like a hub snapshot.
"""

from __future__ import annotations

from pathlib import Path

from bidir_core.families import (
    BOS,
    EOS,
    FAMILIES,
    MAX_LENGTH,
    PAD,
    VOCAB,
    WINDOW,
    TinyLoaded,
    tiny_config,
    tiny_loaded,
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
