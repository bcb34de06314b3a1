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

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bidir_core.common.errors import UserError
from bidir_core.common.files import Damaged, replacing, write_json
from bidir_core.runs.read import read_array, read_arrays, read_object
from bidir_core.runs.shapes import TOKENS

MEASURES = ("first", "future", "past", "entropy")
PARTS = ("prefix", "start", "continuation")  # of a sequence
_STORED = (*MEASURES, "received")
MATRIX_PROMPT_TOKENS = 512  # matrices are kept for prompts up to this,
MATRIX_TOKENS = 640  # and for prompt and continuation together up to this


@dataclass(frozen=True)
class Shares:
    """Where each query's attention goes; float32 ``[layer, head, query]``, shares of 1 (in the file
    float16).

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
    """An ``.npz`` of numpy's, whole or absent."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def write_layer(folder: Path, regime: int, layer: int, weights: np.ndarray) -> None:
    """One layer's weights ``[head, query, key]``."""
    path = _layer_path(folder, regime, layer)
    path.parent.mkdir(exist_ok=True)
    write_arrays(path, {f"head_{h}": w.astype(np.float16) for h, w in enumerate(weights)})


def write_shares(folder: Path, shares: Sequence[Shares]) -> None:
    arrays = {
        f"{name}_{number}": getattr(regime_shares, name).astype(np.float16)
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
    with _reading(folder, "tokens.json"):
        body = read_object(folder, "tokens.json", TOKENS)
        pieces, n_prefix = tuple(body["pieces"]), body["n_prefix"]
        if not 0 < n_prefix <= len(pieces):
            raise Damaged(f"{n_prefix} prefix tokens of {len(pieces)}")
    return pieces, n_prefix


def read_shares(folder: Path, n_regimes: int) -> tuple[Shares, ...]:
    with _reading(folder, "shares.npz"):
        stored = read_arrays(folder / "shares.npz")
        n_prefix = int(stored["n_prefix"])
        return tuple(
            Shares(
                n_prefix,
                **{
                    name: _floats(stored[f"{name}_{number}"]).astype(np.float32) for name in _STORED
                },
            )
            for number in range(n_regimes)
        )


def read_summary(folder: Path, n_regimes: int) -> list[dict[str, np.ndarray]]:
    """Per regime: the prefix means of :data:`MEASURES` over items, ``[layer, head]``."""
    with _reading(folder, "summary.npz"):
        stored = read_arrays(folder / "summary.npz")
        return [
            {name: _floats(stored[f"prefix_{name}_{number}"]) for name in MEASURES}
            for number in range(n_regimes)
        ]


def read_drift(folder: Path) -> Drift:
    with _reading(folder, "drift.npz"):
        stored = {name: _floats(value) for name, value in read_arrays(folder / "drift.npz").items()}
        norms = tuple(stored[name] for name in ("norm_0", "norm_1") if name in stored)
        return Drift(norms, stored.get("cosine"))


def read_head(folder: Path, regime: int, layer: int, head: int) -> np.ndarray:
    """One head's weights, float32 ``[query, key]``; reads nothing else."""
    path = _layer_path(folder, regime, layer)
    with _reading(folder, f"{path.parent.name}/{path.name}"):
        return _floats(read_array(path, f"head_{head}")).astype(np.float32)


def _layer_path(folder: Path, regime: int, layer: int) -> Path:
    return folder / f"attention_{regime}" / f"layer_{layer:02d}.npz"


def _floats(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f":
        raise Damaged(f"it holds {array.dtype} where numbers belong")
    return array


@contextmanager
def _reading(folder: Path, name: str) -> Iterator[None]:
    """Errors inside become a UserError that names the file."""
    try:
        yield
    except (OSError, Damaged, KeyError, TypeError, ValueError) as error:
        why = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
        raise UserError(
            f"{name} of the run '{folder.parent.name}/{folder.name}' cannot be read "
            f"({' '.join(why.split())[:120]}); observe it again with the attend command"
        ) from error
