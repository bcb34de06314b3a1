"""Where attention goes on average over many items, with intervals: small enough to keep."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from bidir_core.common.errors import UserError
from bidir_core.common.files import replacing
from bidir_core.common.progress import Progress
from bidir_core.data.encoding import EncodedItem
from bidir_core.explain import attend_files as files
from bidir_core.explain.observe import observe, off_scoring, passage_of
from bidir_core.models.loading import LoadedModel
from bidir_core.regimes import Regime
from bidir_core.runs.read import read_arrays
from bidir_core.runs.writer import RunWriter

PARTS = ("prefix", "start", "continuation")
_Item = dict[str, np.ndarray]


def observe_items(
    writer: RunWriter,
    loaded: LoadedModel,
    regimes: Sequence[Regime],
    encoded: Sequence[EncodedItem],
) -> dict[str, Any]:
    """Observe every item under each regime; writes ``summary.npz`` and ``by_item.parquet`` and
    returns the metrics.

    ``observed[i].layers.<part>.<measure>`` hold, per layer, the mean over items of each item's
    mean over heads and tokens, with a 95 % Student t interval over items; ``overall`` the same
    averaged over layers first; ``minus_first`` both for the paired difference from the first
    regime. ``prefix.top`` is the share that each head's most attended token gets: where it stays
    high while ``first`` falls, the sink has moved. Each item is on disk once it was observed, so
    that a resumed run goes on behind it.
    """
    usable = [item for item in encoded if item.error is None]
    if not usable:
        raise UserError(f"none of the {len(encoded)} items has tokens to observe")
    folder = writer.path / "parts"
    folder.mkdir(exist_ok=True)
    _observe_all(writer, loaded, regimes, usable, folder)
    items = [read_arrays(_part(folder, number)) for number in range(len(usable))]
    metrics = _averages(regimes, usable, items)
    metrics["n_errors"] = len(encoded) - len(usable)
    stacked = {key: np.stack([item[key] for item in items]) for key in items[0]}
    heads = {key: _mean_known(rows) for key, rows in stacked.items() if rows.ndim == 3}
    files.write_arrays(
        writer.path / "summary.npz", {name: mean.astype(np.float32) for name, mean in heads.items()}
    )
    write_by_item(writer.path / "by_item.parquet", regimes, usable, items)
    shutil.rmtree(folder)
    return metrics


def _observe_all(
    writer: RunWriter,
    loaded: LoadedModel,
    regimes: Sequence[Regime],
    usable: Sequence[EncodedItem],
    folder: Path,
) -> None:
    """Leave one file an item in ``folder``; those that are there stay."""
    done = sum(_part(folder, number).exists() for number in range(len(usable)))
    progress = Progress(len(usable), done=done, title="attend", report=writer.heartbeat)
    try:
        for number, encoded in enumerate(usable):
            path = _part(folder, number)
            if not path.exists():
                files.write_arrays(path, _observe_item(loaded, regimes, encoded, check=number == 0))
                progress.advance(1)
    finally:  # also when stopped, so that the status counts every item that was written
        progress.close()


def _observe_item(
    loaded: LoadedModel, regimes: Sequence[Regime], encoded: EncodedItem, *, check: bool
) -> _Item:
    """``<part>_<measure>_<regime>`` ``[layer, head]``, ``drift_<what>_<regime>_<whose>`` ``[layer]``,
    ``seconds``; with ``check`` also how far it is from the scoring path, by regime."""
    started = time.monotonic()
    passage = passage_of(encoded)
    observations = [observe(loaded, passage, regime, keep_hidden=True) for regime in regimes]
    measured: _Item = {}
    for number, observation in enumerate(observations):
        for part in PARTS:
            for name, value in observation.shares.mean(part).items():
                measured[f"{part}_{name}_{number}"] = value
        measured[f"prefix_top_{number}"] = observation.shares.received.max(-1).astype(np.float64)
        pair = [observations[0].hidden, observation.hidden] if number else [observation.hidden]
        for name, rows in drift_rows(files.drift_between(pair), passage.n_prefix).items():
            what, _, whose = name.partition("_")
            measured[f"drift_{what}_{number}_{whose}"] = rows
    measured["seconds"] = np.array(time.monotonic() - started)
    if check:
        off = [
            off_scoring(loaded, regime, encoded, observation.token_ll)
            for regime, observation in zip(regimes, observations, strict=True)
        ]
        measured["off_scoring"] = np.array([np.nan if value is None else value for value in off])
    return measured


def _part(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npz"


def _averages(
    regimes: Sequence[Regime], usable: Sequence[EncodedItem], items: Sequence[_Item]
) -> dict[str, Any]:
    tasks = [encoded.item.task for encoded in usable]
    off = items[0].pop("off_scoring", None)
    seconds = float(sum(item.pop("seconds") for item in items))
    n_layers, n_heads = items[0]["prefix_first_0"].shape
    by_layer = [_by_layer(items, number) for number in range(len(regimes))]
    observed: list[dict[str, Any]] = []
    for number, (regime, rows) in enumerate(zip(regimes, by_layer, strict=True)):
        entry = {
            "regime": str(regime),
            "off_scoring_nats": None
            if off is None or np.isnan(off[number])
            else float(off[number]),
            "layers": _intervals(rows),
            "overall": _overall(rows),
            "by_task": {
                task: _overall({k: v[np.array(tasks) == task] for k, v in rows.items()})["prefix"]
                for task in dict.fromkeys(tasks)
            },
        }
        if number:
            delta = {key: rows[key] - by_layer[0][key] for key in rows}
            entry["minus_first"] = {"layers": _intervals(delta), "overall": _overall(delta)}
        observed.append(entry)
    drift = [key for key in items[0] if key.startswith("drift_")]
    return {
        "mode": "items",
        "n_items": len(usable),
        "n_by_task": {task: tasks.count(task) for task in dict.fromkeys(tasks)},
        "n_layers": int(n_layers),
        "n_heads": int(n_heads),
        "observed": observed,
        "drift": {
            key.removeprefix("drift_"): mean_interval(
                np.stack([item[key] for item in items]), log="cosine" not in key
            )
            for key in drift
        },
        "seconds": round(seconds, 3),
        "seconds_per_item": round(seconds / len(usable), 3),
        "notes": [
            f"averages over {len(usable)} items, {seconds / len(usable):.2f} s each; no matrices are "
            "stored"
        ],
    }


def _by_layer(items: Sequence[_Item], number: int) -> dict[str, np.ndarray]:
    """``<part>_<measure>`` of one regime: mean over heads, ``[item, layer]``."""
    suffix = f"_{number}"
    keys = [k for k in items[0] if k.endswith(suffix) and not k.startswith("drift_")]
    return {k.removesuffix(suffix): np.stack([item[k].mean(-1) for item in items]) for k in keys}


def write_by_item(
    path: Path, regimes: Sequence[Regime], usable: Sequence[EncodedItem], items: Sequence[_Item]
) -> None:
    """One row an item and regime: prefix means over layers and heads, for tables of one's own."""
    rows = []
    for encoded, item in zip(usable, items, strict=True):
        for number, regime in enumerate(regimes):
            measures = {
                name: np.float32(item[f"prefix_{name}_{number}"].mean())
                for name in (*files.MEASURES, "top")
            }
            rows.append(
                {
                    "task": encoded.item.task,
                    "doc_id": encoded.item.doc_id,
                    "n_prefix_tokens": len(encoded.prefixes[0]),
                    "regime": str(regime),
                    **measures,
                    "longest_first_state": np.float32(item[f"drift_norm_{number}_first"].max()),
                }
            )
    with replacing(path) as temporary:
        pd.DataFrame(rows).to_parquet(temporary, compression="zstd", index=False)


def drift_rows(drift: files.Drift, n_prefix: int) -> dict[str, np.ndarray]:
    """Per layer, of the last regime: the first token's norm, cosine with the first regime and
    norm ratio to it, and the mean of the other prefix tokens'."""
    rows = {}
    values = {"norm": drift.norms[-1]}
    if drift.cosine is not None and drift.ratio is not None:
        values |= {"cosine": drift.cosine, "ratio": drift.ratio}
    for name, value in values.items():
        rows[f"{name}_first"] = value[:, 0]
        others = value[:, 1:n_prefix]
        rows[f"{name}_others"] = others.mean(-1) if n_prefix > 1 else np.full(len(value), np.nan)
    return rows


def mean_interval(
    values: np.ndarray, confidence: float = 0.95, *, log: bool = False
) -> dict[str, Any]:
    """Mean over items of ``[item, layer]``, with Student's t interval; items that lack it (NaN)
    are left out. None where fewer than one (mean) or two (interval) are left. ``log``: of the
    logarithms, for lengths that differ by powers of ten; the mean is then the geometric one.
    """
    kept = values[~np.isnan(values).any(-1)]
    n = len(kept)
    if n == 0:
        return {"n": 0, "mean": None, "low": None, "high": None}
    inverse = np.exp if log else np.asarray
    kept = np.log(np.maximum(kept, 1e-30)) if log else kept
    mean = kept.mean(0)
    if n == 1:
        return {"n": 1, "mean": _list(inverse(mean)), "low": None, "high": None}
    half = student.ppf(0.5 + confidence / 2, n - 1) * kept.std(0, ddof=1) / np.sqrt(n)
    low, high = inverse(mean - half), inverse(mean + half)
    return {"n": n, "mean": _list(inverse(mean)), "low": _list(low), "high": _list(high)}


def _mean_known(values: np.ndarray) -> np.ndarray:
    """Mean over items of ``[item, layer, head]`` without those that lack the part (NaN)."""
    kept = values[~np.isnan(values).any((1, 2))]
    return kept.mean(0) if len(kept) else values[0]


def _overall(values: dict[str, np.ndarray]) -> dict[str, Any]:
    """As :func:`_intervals`, averaged over layers: one number each."""
    return _intervals({key: rows.mean(-1, keepdims=True) for key, rows in values.items()})


def _intervals(values: dict[str, np.ndarray]) -> dict[str, Any]:
    """``{part: {measure: mean and interval by layer}}`` from ``part_measure`` keys."""
    by_part: dict[str, Any] = {part: {} for part in PARTS}
    for key, rows in values.items():
        part, _, name = key.partition("_")
        by_part[part][name] = mean_interval(rows)
    return by_part


def _list(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
