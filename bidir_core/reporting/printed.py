"""What printed accuracies alone can say: levels, and differences of runs that do not pair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bidir_core import stats
from bidir_core.pairing import Metric
from bidir_core.reporting.contrast import Contrast, TaskDelta, mean
from bidir_core.retention import Retention, retention
from bidir_core.store import Run


@dataclass(frozen=True)
class Level:
    """A cell's accuracy: the mean over its seeds, with an interval over items and seeds."""

    value: float
    interval: stats.Estimate | None
    per_seed: tuple[float, ...]
    n: int | None

    @property
    def spread(self) -> tuple[float, float] | None:
        """Lowest and highest seed, or None for a single one."""
        return (min(self.per_seed), max(self.per_seed)) if len(self.per_seed) > 1 else None


def level(runs: Mapping[int, Run], metric: Metric) -> Level | None:
    """The macro accuracy of a cell, or None if there is no run or no such number.

    Normal interval from the tasks' binomial variances; seeds add their variance over their number.
    """
    known = [run for run in runs.values() if macro_of(run, metric) is not None]
    if not known:
        return None
    values = [float(macro_of(run, metric) or 0.0) for run in known]
    value = math.fsum(values) / len(values)
    variances = [_macro_variance(run, metric) for run in known]
    n = (known[0].metrics or {}).get("n_items")
    interval = None
    if all(v is not None for v in variances):
        total = math.fsum(v for v in variances if v is not None) / len(variances)
        if len(values) > 1:
            total += float(np.var(values, ddof=1)) / len(values)
        half = stats.Z_95 * math.sqrt(total)
        interval = stats.Estimate(value, max(0.0, value - half), min(1.0, value + half), n or 0)
    return Level(value, interval, tuple(values), n)


def task_accuracy(run: Run, task: str, metric: Metric) -> float | None:
    """One task's accuracy; acc where the task has no acc_norm, as the macro does."""
    row = (run.metrics or {}).get("tasks", {}).get(task) or {}
    value = row.get(metric)
    return row.get("acc") if value is None else value


def unpaired(
    pairs: Sequence[tuple[Run, Run]], metric: Metric, common: dict[str, Any], notes: list[str]
) -> Contrast:
    """From metrics alone. Items are shared, so this interval is wider than a paired one would be.

    Over seeds: an item counts once, however many seeds answered it, and their spread is added.
    """
    value = common["acc_b"] - common["acc_a"]
    first, second = pairs[0]
    macros = [(macro_of(one, metric) or 0.0, macro_of(two, metric) or 0.0) for one, two in pairs]
    variances = [_macro_variance(run, metric) for both in pairs for run in both]
    interval, n = None, (first.metrics or {}).get("n_items") or 0
    if all(v is not None for v in variances):
        total = math.fsum(v for v in variances if v is not None) / len(pairs)
        if len(pairs) > 1:
            total += float(np.var([two - one for one, two in macros], ddof=1)) / len(pairs)
        half = stats.Z_95 * math.sqrt(total)
        interval = stats.Estimate(value, value - half, value + half, n)
    rows_a = (first.metrics or {}).get("tasks") or {}
    rows_b = (second.metrics or {}).get("tasks") or {}
    tasks = []
    for task in (name for name in rows_a if name in rows_b):
        acc_a = mean([task_accuracy(one, task, metric) for one, _ in pairs])
        acc_b = mean([task_accuracy(one, task, metric) for _, one in pairs])
        tasks.append(TaskDelta(task, rows_a[task].get("n"), acc_a, acc_b, acc_b - acc_a, None))
    return Contrast(
        **common,
        value=value,
        interval=interval,
        basis="unpaired" if interval is not None else "none",
        tasks=tuple(tasks),
        per_seed=tuple(two - one for one, two in macros),
        above_chance=_printed_retention(first, common["acc_a"], common["acc_b"], metric),
        notes=tuple(notes),
    )


def _printed_retention(first: Run, acc_a: float, acc_b: float, metric: Metric) -> Retention | None:
    """Above-chance retention from printed accuracies: no interval, but the same suppression.

    The accuracies are means over seeds; ``first``, of the baseline, knows chance and n.
    """
    chance = ((first.metrics or {}).get("macro") or {}).get("chance")
    variance = _macro_variance(first, metric)
    if chance is None or variance is None:
        return None
    n = (first.metrics or {}).get("n_items") or 0
    half = stats.Z_95 * math.sqrt(variance)
    above = acc_a - chance
    if abs(above) <= half:
        why = (
            f"the baseline is not separable from the floor: {above:+.3f} "
            f"({above - half:+.3f} to {above + half:+.3f})"
        )
        return Retention(None, None, None, n, why)
    return Retention(retention(acc_b, acc_a, chance), None, None, n)


def macro_of(run: Run, metric: Metric) -> float | None:
    return ((run.metrics or {}).get("macro") or {}).get(metric)


def _macro_variance(run: Run, metric: Metric) -> float | None:
    """Variance of the macro from the tasks' accuracies and n; None without them."""
    rows = ((run.metrics or {}).get("tasks") or {}).values()
    variances = []
    for name, row in ((run.metrics or {}).get("tasks") or {}).items():
        acc, n = task_accuracy(run, name, metric), row.get("n")
        if acc is None or not n or n < 2:
            return None
        variances.append(acc * (1 - acc) / (n - 1))
    return math.fsum(variances) / len(variances) ** 2 if rows else None
