"""Retention: how much of the accuracy above a floor one run keeps of another's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bidir_core.stats import CONFIDENCE, pair_of_bools

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
    seed: int = 0,
    confidence: float = CONFIDENCE,
    resamples: int = _RESAMPLES,
) -> Retention:
    """(macro other - macro floor) / (macro base - macro floor), paired bootstrap interval.

    Per task: ``base`` and ``other`` are bool arrays over the same items; ``floor`` is the task's
    chance (a number) or a third bool array over these items, such as the no-context run's. Items
    are resampled together within each task (percentile interval). Suppressed when the interval
    of the denominator includes 0: there is then nothing that could be retained.
    """
    rng = np.random.default_rng(seed)
    draws = np.zeros((3, resamples))  # base, other, floor: sums over tasks
    points = np.zeros(3)
    n = 0
    for task in base:
        low = floor[task]
        third = low if isinstance(low, np.ndarray) else np.zeros(len(base[task]), dtype=bool)
        a, b = pair_of_bools(base[task], other[task])
        _, c = pair_of_bools(a, third)
        # Only the eight right/wrong patterns matter, so resampling items is resampling their
        # counts: the same bootstrap, without drawing ten thousand times n indices.
        counts = np.bincount(a * 4 + b * 2 + c, minlength=8)
        sample = rng.multinomial(len(a), counts / len(a), size=resamples) / len(a)
        patterns = np.arange(8)
        for i, bit in enumerate((4, 2, 1)):
            draws[i] += sample[:, (patterns & bit) > 0].sum(axis=1)
            points[i] += counts[(patterns & bit) > 0].sum() / len(a)
        if not isinstance(low, np.ndarray):
            draws[2] += low
            points[2] += low
        n += len(a)
    draws, points = draws / len(base), points / len(base)
    tail = 100 * (1 - confidence) / 2
    denominator = draws[0] - draws[2]
    low_end, high_end = np.percentile(denominator, [tail, 100 - tail])
    if low_end <= 0 <= high_end:
        why = (
            f"the baseline is not separable from the floor: {points[0] - points[2]:+.3f} "
            f"({low_end:+.3f} to {high_end:+.3f})"
        )
        return Retention(None, None, None, n, why)
    # A stray resample may still cross 0; percentiles of the ratio do not mind a few of those.
    ratio = (draws[1] - draws[2]) / np.where(denominator == 0, np.nan, denominator)
    low_ratio, high_ratio = np.nanpercentile(ratio, [tail, 100 - tail])
    value = retention(points[1], points[0], points[2])
    return Retention(float(value), float(low_ratio), float(high_ratio), n)
