"""Effects: macro means of per-item differences, over one seed or several."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bidir_core.analyse.stats import (
    CONFIDENCE,
    MIN_ITEMS,
    Estimate,
    macro_delta,
    pair_of_bools,
    paired_delta,
    proportion,
    seeds_half_width,
)


@dataclass(frozen=True)
class Effect:
    """A macro mean of per-item differences; ``per_seed``: its value for each seed alone."""

    estimate: Estimate
    per_task: dict[str, Estimate]
    per_seed: tuple[float, ...]


def stratified_mean(values: Mapping[str, np.ndarray]) -> Effect:
    """Mean over tasks of the mean of per-item differences ``[n_items]`` or ``[n_seeds, n_items]``.

    Normal interval with summed variances. A task's variance is taken with one pseudo-item at +1
    and one at -1 (Bonett and Price 2012, carried over), so it does not vanish where all items
    agree. With several seeds the variance between seeds is added and the quantile is Student's t
    (:func:`stats.seeds_half_width`): a little conservative, since the part of seed and item
    together is in both.
    """
    arrays = {task: np.atleast_2d(np.asarray(raw, np.float64)) for task, raw in values.items()}
    if not arrays:
        raise ValueError("no tasks to average")
    for task, by_seed in arrays.items():
        if not by_seed.shape[1]:
            raise ValueError(f"{task}: no items to compare")
    per_task = {task: _estimate({task: by_seed}) for task, by_seed in arrays.items()}
    per_seed = np.mean([by_seed.mean(axis=1) for by_seed in arrays.values()], axis=0)
    return Effect(_estimate(arrays), per_task, tuple(map(float, per_seed)))


def _estimate(arrays: Mapping[str, np.ndarray]) -> Estimate:
    """The mean over these tasks with its interval."""
    means = np.mean([by_seed.mean(axis=1) for by_seed in arrays.values()], axis=0)
    items = math.fsum(_item_variance(by_seed.mean(axis=0)) for by_seed in arrays.values())
    seeds = float(means.var(ddof=1)) / len(means) if len(means) > 1 else 0.0
    half = seeds_half_width(items / len(arrays) ** 2, seeds, len(means))
    value = float(np.mean([by_seed.mean() for by_seed in arrays.values()]))
    n = sum(by_seed.shape[1] for by_seed in arrays.values())
    return Estimate(value, value - half, value + half, n)


def _item_variance(items: np.ndarray) -> float:
    """Variance of a task's mean over its items, with the two pseudo-items."""
    return float(np.append(items, [1.0, -1.0]).var()) / (len(items) + 2)


# Retention: how much of the accuracy above a floor one run keeps of another's.

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Retention:
    """How much of the accuracy above a floor is kept; ``value`` None means suppressed (why)."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    why_suppressed: str | None = None


def retention(accuracy: float, base_accuracy: float, floor: float = 0.0) -> float:
    """(accuracy - floor) / (base_accuracy - floor): the plain ratio at floor 0."""
    return (accuracy - floor) / (base_accuracy - floor)


def above_floor_retention(
    base: Mapping[str, np.ndarray],
    other: Mapping[str, np.ndarray],
    floor: Mapping[str, np.ndarray | float],
    *,
    confidence: float = CONFIDENCE,
) -> Retention:
    """(macro other - macro floor) / (macro base - macro floor), paired bootstrap interval.

    Per task: ``base`` and ``other`` are bool arrays over the same items; ``floor`` is the task's
    chance (a number) or a third bool array over these items, such as the no-context run's. Items
    are resampled together within each task (percentile interval). Suppressed where there is nothing
    that could be retained (the denominator's own interval, Wilson's or Tango's, reaches 0 or lies
    below), where a task has under MIN_ITEMS items, and where no resample differs from another.
    """
    rng = np.random.default_rng(0)  # the same runs, the same interval
    draws = np.zeros((3, _RESAMPLES))  # base, other, floor: sums over tasks
    points = np.zeros(3)
    above: list[Estimate] = []  # by task, the base's accuracy minus the floor
    for task in base:
        a, b = pair_of_bools(base[task], other[task])
        task_floor, n = floor[task], len(a)
        no_item = np.zeros(n, dtype=bool)
        _, c = pair_of_bools(a, task_floor if isinstance(task_floor, np.ndarray) else no_item)
        # Only the eight right/wrong patterns matter, so resampling items is resampling their
        # counts: the same bootstrap, without drawing ten thousand times n indices.
        counts = np.bincount(a * 4 + b * 2 + c, minlength=8)
        sample = rng.multinomial(n, counts / n, size=_RESAMPLES) / n
        patterns = np.arange(8)
        for i, bit in enumerate((4, 2, 1)):
            draws[i] += sample[:, (patterns & bit) > 0].sum(axis=1)
            points[i] += counts[(patterns & bit) > 0].sum() / n
        if isinstance(task_floor, np.ndarray):
            above.append(paired_delta(c, a, confidence=confidence))
        else:
            draws[2] += task_floor
            points[2] += task_floor
            right = proportion(int(a.sum()), n, confidence=confidence)
            low, high = right.low - task_floor, right.high - task_floor
            above.append(Estimate(right.value - task_floor, low, high, n))
    draws, points = draws / len(base), points / len(base)
    base_above = macro_delta(above)
    n = base_above.n
    fewest = min(estimate.n for estimate in above)
    # A few resamples may still cross 0; the ratio's percentiles hardly change with them.
    denominator = draws[0] - draws[2]
    ratio = (draws[1] - draws[2]) / np.where(denominator == 0, np.nan, denominator)
    why = why_not_above(base_above)
    if why is None and fewest < MIN_ITEMS:
        items = f"{fewest} item{'s' if fewest > 1 else ''}"
        why = f"{items} of a task bound no share; it takes {MIN_ITEMS}"
    if why is None and np.nanmin(ratio) == np.nanmax(ratio):
        why = "no item tells the runs apart, so resampling gives the share no interval"
    if why is not None:
        return Retention(None, None, None, n, why)
    tail = 100 * (1 - confidence) / 2
    low_ratio, high_ratio = np.nanpercentile(ratio, [tail, 100 - tail])
    value = retention(points[1], points[0], points[2])
    return Retention(float(value), float(low_ratio), float(high_ratio), n)


def why_not_above(base: Estimate) -> str | None:
    """Why no share is stated of a baseline this far above its floor; None where one may be."""
    if base.low > 0:
        return None
    where = "not separable from" if base.high >= 0 else "below"
    return f"the baseline is {where} the floor: {base.value:+.3f} ({base.low:+.3f} to {base.high:+.3f})"
