"""How the numbers of the findings are chosen and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bidir_core.analyse import stats
from bidir_core.analyse.effects import Retention
from bidir_core.common import formatting
from bidir_core.explain.sweep_summary import Outcomes, percent
from bidir_core.runs.run import Run

FIRST = 500  # items of each task in the study's own limit


def only(found: Outcomes, mask: np.ndarray) -> Outcomes:
    """These items only; a task without any leaves the macro mean."""
    parts = {
        name: {slug: values[mask] for slug, values in getattr(found, name).items()}
        for name in ("right", "known")
    }
    return replace(found, task=found.task[mask], halves=found.halves[mask], **parts)


def delta(estimate: stats.Estimate | None) -> str:
    """A difference in points, with its interval."""
    assert estimate is not None
    value, low, high = (
        formatting.points(getattr(estimate, end), signed=True) for end in ("value", "low", "high")
    )
    return f"{value} ({low} to {high})"


def mean(found: Mapping[str, list[float]], place: int, scale: float, unit: str) -> str:
    """A mean and its interval, from lists by layer."""
    value, low, high = (
        f"{scale * found[end][place]:,.{int(scale > 1)}f}" for end in ("mean", "low", "high")
    )
    return f"{value}{unit} ({low} to {high})"


def share(found: Retention | None) -> str:
    """Which part of the damage, with its interval."""
    assert found is not None
    if found.value is None or found.low is None or found.high is None:
        return "not stated"
    return f"{percent(found.value)} % ({percent(found.low)} to {percent(found.high)} %)"


def estimate(stored: Mapping[str, Any]) -> stats.Estimate:
    """A difference as a sweep has stored it."""
    return stats.Estimate(**{end: stored[end] for end in ("value", "low", "high", "n")})


def stored(numbers: Mapping[str, Any]) -> tuple[str, str, str]:
    """A point's accuracy, difference to causal and share of the damage, as a sweep has stored them."""
    moved, removed = numbers["delta"], numbers["removed"]
    return (
        f"{100 * numbers['value']:.1f}",
        delta(estimate(moved)) if moved else "",
        share(Retention(**removed)) if removed else "",
    )


def basis(run: Run) -> str:
    """Which run a table is of: its items, number format and device."""
    metrics, settings = run.metrics or {}, run.settings
    limit, sample = settings.get("limit"), settings.get("sample", "first")
    which = {
        "first": f"the first {limit} of each task",
        "stratified": f"{limit} of each task, spread",
    }
    extent = "whole sets" if limit is None else which.get(sample, f"{limit} of each task, {sample}")
    device = str((metrics.get("cost") or {}).get("device") or run.config.get("device") or "")
    where = {"cpu": "a CPU"}.get(device, device)
    said = (
        f"{formatting.count(metrics['n_items'])} items",
        extent,
        str(run.config.get("dtype")),
        where,
    )
    return f"`{run.id}`: {', '.join(filter(None, said))}.\n\n"
