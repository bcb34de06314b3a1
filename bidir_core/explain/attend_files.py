"""What ``attend`` leaves in a run folder, written and read with numpy alone.

    tokens.json                the sequence: ids, text pieces, how many are the prefix
    shares.npz                 per regime: where each layer, head and query sent its attention
    attention_0/layer_07.npz   per regime and layer: the weights, one float16 [query, key] a head
    drift.npz                  how far the regimes' hidden states lie apart, by layer and token
    summary.npz                over many items instead: mean shares per layer and head

Regimes are numbered in the order of the command line. Every ``.npz`` is numpy's own format: a head
is read by itself, without the others, and a damaged file is noticed by its checksum.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bidir_core.common.errors import UserError
from bidir_core.common.files import replacing, write_json

MEASURES = ("first", "future", "past", "entropy")
_STORED = (*MEASURES, "received")
MATRIX_PROMPT_TOKENS = 512  # matrices are kept for prompts up to this,
MATRIX_TOKENS = 640  # and for prompt and continuation together up to this
_DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Shares:
    """Where each query's attention goes; float32 ``[layer, head, query]``, shares of 1.

    ``first``: on the sequence's first token. ``past``: on all earlier tokens, the first among
    them. ``future``: on later tokens. What is left is on the token itself (or, in a model with a
    learned sink, on that). ``entropy``: of the whole row, in nats. ``received``, ``[layer, head,
    key]``: what a token gets from the prefix's queries, as in ``mean("prefix")``: a sink that
    moved elsewhere shows here.
    """

    n_prefix: int
    first: np.ndarray
    future: np.ndarray
    past: np.ndarray
    entropy: np.ndarray
    received: np.ndarray

    def mean(self, part: str = "prefix") -> dict[str, np.ndarray]:
        """Each of :data:`MEASURES` as its mean over queries: float64 ``[layer, head]``.

        ``prefix``: its tokens from the second on (the first has no choice where it is causal: all
        of its attention is on itself). ``start``: the first token alone. ``continuation``: the
        tokens behind the prefix. NaN where a part has no tokens.
        """
        queries = {
            "start": slice(0, 1),
            "prefix": slice(1, self.n_prefix),
            "continuation": slice(self.n_prefix, None),
        }[part]
        means = {}
        for name in MEASURES:
            rows = getattr(self, name)[..., queries].astype(np.float64)
            means[name] = rows.mean(-1) if rows.shape[-1] else np.full(rows.shape[:-1], np.nan)
        return means


@dataclass(frozen=True)
class Drift:
    """Hidden states behind each layer, float32 ``[layer, token]``.

    ``norms``: their Euclidean length, per regime. ``cosine``: between the two regimes of a token,
    None where only one was observed.
    """

    norms: tuple[np.ndarray, ...]
    cosine: np.ndarray | None

    @property
    def ratio(self) -> np.ndarray | None:
        """Second regime's norm over the first's, None where there is no second."""
        return self.norms[1] / self.norms[0] if len(self.norms) > 1 else None


def drift_between(hidden: Sequence[Sequence[np.ndarray]]) -> Drift:
    """Norms and cosine of hidden states ``[regime][layer][token, width]``."""
    norms = [np.stack([np.linalg.norm(h, axis=-1) for h in layers]) for layers in hidden]
    cosine = None
    if len(hidden) > 1:
        dots = np.stack([(a * b).sum(-1) for a, b in zip(*hidden, strict=True)])
        cosine = dots / np.maximum(norms[0] * norms[1], np.finfo(np.float32).tiny)
    return Drift(tuple(norms), cosine)


# --- writing -----------------------------------------------------------------------------------


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An ``.npz`` as numpy's, compressed fast, whole or absent."""
    with (
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)


def write_layer(folder: Path, regime: int, layer: int, weights: np.ndarray) -> None:
    """One layer's weights ``[head, query, key]``."""
    path = _layer_path(folder, regime, layer)
    path.parent.mkdir(exist_ok=True)
    write_arrays(path, {f"head_{h}": w.astype(np.float16) for h, w in enumerate(weights)})


def write_shares(folder: Path, shares: Sequence[Shares]) -> None:
    arrays = {
        f"{name}_{number}": getattr(regime_shares, name)
        for number, regime_shares in enumerate(shares)
        for name in _STORED
    }
    write_arrays(folder / "shares.npz", {"n_prefix": np.array(shares[0].n_prefix), **arrays})


def write_drift(folder: Path, drift: Drift) -> None:
    arrays = {f"norm_{number}": norm for number, norm in enumerate(drift.norms)}
    if drift.cosine is not None:
        arrays["cosine"] = drift.cosine
    write_arrays(folder / "drift.npz", {k: v.astype(np.float32) for k, v in arrays.items()})


def write_tokens(folder: Path, ids: Sequence[int], pieces: Sequence[str], n_prefix: int) -> None:
    body = {"n_prefix": n_prefix, "ids": [int(i) for i in ids], "pieces": list(pieces)}
    write_json(folder / "tokens.json", {"schema": 1, **body})


# --- reading: UserError for whatever is missing or damaged ----------------------------------------


def read_tokens(folder: Path) -> tuple[tuple[str, ...], int]:
    """The sequence's text pieces, and how many of them are the prefix."""
    try:
        body: Any = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
        pieces, n_prefix = tuple(str(piece) for piece in body["pieces"]), int(body["n_prefix"])
        if not 0 < n_prefix <= len(pieces):
            raise ValueError(f"{n_prefix} prefix tokens of {len(pieces)}")
    except _DAMAGE as error:
        raise _unreadable(folder, "tokens.json", error) from error
    return pieces, n_prefix


def read_shares(folder: Path, n_regimes: int) -> tuple[Shares, ...]:
    try:
        with np.load(folder / "shares.npz") as stored:
            n_prefix = int(stored["n_prefix"])
            return tuple(
                Shares(n_prefix, **{name: stored[f"{name}_{number}"] for name in _STORED})
                for number in range(n_regimes)
            )
    except _DAMAGE as error:
        raise _unreadable(folder, "shares.npz", error) from error


def read_summary(folder: Path, n_regimes: int) -> list[dict[str, np.ndarray]]:
    """Per regime: the prefix means of :data:`MEASURES` over items, ``[layer, head]``."""
    try:
        with np.load(folder / "summary.npz") as stored:
            return [
                {name: stored[f"prefix_{name}_{number}"] for name in MEASURES}
                for number in range(n_regimes)
            ]
    except _DAMAGE as error:
        raise _unreadable(folder, "summary.npz", error) from error


def read_drift(folder: Path) -> Drift:
    try:
        with np.load(folder / "drift.npz") as stored:
            norms = tuple(stored[name] for name in ("norm_0", "norm_1") if name in stored.files)
            return Drift(norms, stored["cosine"] if "cosine" in stored.files else None)
    except _DAMAGE as error:
        raise _unreadable(folder, "drift.npz", error) from error


def read_head(folder: Path, regime: int, layer: int, head: int) -> np.ndarray:
    """One head's weights, float32 ``[query, key]``; reads nothing else."""
    path = _layer_path(folder, regime, layer)
    try:
        with np.load(path) as stored:
            return stored[f"head_{head}"].astype(np.float32)
    except _DAMAGE as error:
        raise _unreadable(folder, f"{path.parent.name}/{path.name}", error) from error


def _layer_path(folder: Path, regime: int, layer: int) -> Path:
    return folder / f"attention_{regime}" / f"layer_{layer:02d}.npz"


def _unreadable(folder: Path, name: str, error: BaseException) -> UserError:
    why = "it is missing" if isinstance(error, FileNotFoundError) else str(error) or "damaged"
    return UserError(
        f"{name} of the run '{folder.parent.name}/{folder.name}' cannot be read "
        f"({' '.join(why.split())[:120]}); observe it again with the attend command"
    )
