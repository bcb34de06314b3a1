"""Where attention goes on average over many items, with intervals: small enough to keep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import t as student

from bidir_core import attend_files as files
from bidir_core.encoding import EncodedItem
from bidir_core.errors import UserError
from bidir_core.regimes import Regime
from bidir_core.run_writer import RunWriter

if TYPE_CHECKING:
    from bidir_core.models import LoadedModel

PARTS = ("prefix", "start", "continuation")


def summarise(
    writer: RunWriter,
    loaded: LoadedModel,
    regimes: Sequence[Regime],
    encoded: Sequence[EncodedItem],
) -> dict[str, Any]:
    """Observe every item under each regime; writes ``summary.npz`` and returns the metrics.

    ``regimes[i].<part>.<measure>`` and ``difference`` (second minus first, paired) hold, per
    layer, the mean over items of each item's mean over heads and tokens, with a 95 % Student t
    interval over items; ``overall`` the same averaged over layers first. ``prefix.top`` is the share that each head's most attended token gets:
    where it stays high while ``first`` falls, the sink has moved.
    """
    from bidir_core.attend_observe import observe, passage_of
    from bidir_core.progress import Progress

    usable = [one for one in encoded if one.error is None]
    if not usable:
        raise UserError(f"none of the {len(encoded)} items has tokens to observe")
    # [regime][part + measure] -> one [layer, head] array an item; drift: one [layer] array an item
    found: list[dict[str, list[np.ndarray]]] = [{} for _ in regimes]
    drift: dict[str, list[np.ndarray]] = {}
    progress = Progress(len(usable), title="attend", report=writer.heartbeat)
    for one in usable:
        passage = passage_of(one)
        seen = [observe(loaded, passage, regime, keep_hidden=True) for regime in regimes]
        for number, each in enumerate(seen):
            for part in PARTS:
                for name, value in each.shares.mean(part).items():
                    found[number].setdefault(f"{part}_{name}", []).append(value)
            top = each.shares.received.max(-1).astype(np.float64)
            found[number].setdefault("prefix_top", []).append(top)
        apart = files.drift_between([each.hidden for each in seen])
        for name, rows in drift_rows(apart, passage.n_prefix).items():
            drift.setdefault(name, []).append(rows)
        progress.advance(1)
    progress.close()
    heads = {
        f"{key}_{number}": _mean_known(np.stack(values))
        for number, each in enumerate(found)
        for key, values in each.items()
    }
    files.write_arrays(
        writer.path / "summary.npz", {name: mean.astype(np.float32) for name, mean in heads.items()}
    )
    n_layers, n_heads = found[0]["prefix_first"][0].shape
    by_layer = [{key: np.stack(v).mean(-1) for key, v in each.items()} for each in found]
    metrics: dict[str, Any] = {
        "mode": "items",
        "n_items": len(usable),
        "n_errors": len(encoded) - len(usable),
        "n_layers": n_layers,
        "n_heads": n_heads,
        "observed": [
            {"regime": str(regime), "layers": _intervals(each), "overall": _overall(each)}
            for regime, each in zip(regimes, by_layer, strict=True)
        ],
        "difference": None,
        "overall_difference": None,
        "drift": {
            name: mean_interval(np.stack(rows), log=not name.startswith("cosine"))
            for name, rows in drift.items()
        },
        "notes": [f"averages over {len(usable)} items; no matrices are stored"],
    }
    if len(by_layer) > 1:
        first, second = by_layer
        apart_by_layer = {key: second[key] - first[key] for key in first}
        metrics["difference"] = _intervals(apart_by_layer)
        metrics["overall_difference"] = _overall(apart_by_layer)
    return metrics


def drift_rows(drift: files.Drift, n_prefix: int) -> dict[str, np.ndarray]:
    """Per layer: the first token's norm and cosine, and the mean of the other prefix tokens'."""
    rows = {}
    values = {f"norm_{number}": norm for number, norm in enumerate(drift.norms)}
    if drift.cosine is not None and drift.ratio is not None:
        values |= {"cosine": drift.cosine, "ratio": drift.ratio}
    for name, value in values.items():
        rows[f"{name}_first"] = value[:, 0]
        if n_prefix > 1:
            rows[f"{name}_others"] = value[:, 1:n_prefix].mean(-1)
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
    back = np.exp if log else np.asarray
    kept = np.log(np.maximum(kept, 1e-30)) if log else kept
    mean = kept.mean(0)
    if n == 1:
        return {"n": 1, "mean": _list(back(mean)), "low": None, "high": None}
    half = student.ppf(0.5 + confidence / 2, n - 1) * kept.std(0, ddof=1) / np.sqrt(n)
    low, high = back(mean - half), back(mean + half)
    return {"n": n, "mean": _list(back(mean)), "low": _list(low), "high": _list(high)}


def _mean_known(values: np.ndarray) -> np.ndarray:
    """Mean over items of ``[item, layer, head]`` without those that lack the part (NaN)."""
    kept = values[~np.isnan(values).any((1, 2))]
    return kept.mean(0) if len(kept) else values[0]


def _overall(values: dict[str, np.ndarray]) -> dict[str, Any]:
    """As :func:`_intervals`, averaged over layers: one number each."""
    return _intervals({key: rows.mean(-1, keepdims=True) for key, rows in values.items()})


def _intervals(values: dict[str, np.ndarray]) -> dict[str, Any]:
    """``{part: {measure: mean and interval by layer}}`` from ``part_measure`` keys."""
    out: dict[str, Any] = {part: {} for part in PARTS}
    for key, rows in values.items():
        part, _, name = key.partition("_")
        out[part][name] = mean_interval(rows)
    return out


def _list(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
