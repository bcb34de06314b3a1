"""Paired statistics of two runs over the same items: arrays in, numbers with intervals out.

Everything is paired, because the runs share their items: two unpaired standard errors would
ignore that and be too wide. Accuracies and differences are fractions (0.01 is one point); a
difference is always *second minus first*. Intervals are 95 % unless ``confidence`` says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

CONFIDENCE = 0.95
Z_95 = 1.959964  # half of a normal 95 % interval, in standard errors
MARGIN = 0.01
_RESAMPLES = 10_000

Verdict = Literal["no difference", "different", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval. ``n``: the items behind it."""

    value: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Table2x2:
    """How two runs agree on n items: right or wrong in the first, then in the second."""

    both_right: int
    broken: int
    fixed: int
    both_wrong: int

    @property
    def n(self) -> int:
        return self.both_right + self.broken + self.fixed + self.both_wrong

    @property
    def churn(self) -> int:
        """Items whose correctness changed, in either direction."""
        return self.broken + self.fixed

    @property
    def delta(self) -> float:
        return (self.fixed - self.broken) / self.n


def table_2x2(first: np.ndarray, second: np.ndarray) -> Table2x2:
    """Count the pairs of two bool arrays of shape ``[n_items]``."""
    a, b = _pair_of_bools(first, second)
    both, only_a, only_b = int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum())
    return Table2x2(both, only_a, only_b, len(a) - both - only_a - only_b)


def proportion(right: int, n: int, *, confidence: float = CONFIDENCE) -> Estimate:
    """A share of ``n`` items with Wilson's score interval (1927), which stays between 0 and 1 and
    keeps a width where none or all of few items are right. ValueError without any item."""
    if n <= 0:
        raise ValueError("no items to take a share of")
    low, high = proportion_confint(right, n, alpha=1 - confidence, method="wilson")
    share = right / n
    return Estimate(share, min(low, share), max(high, share), n)  # rounding may leave it out


def paired_delta(
    first: np.ndarray, second: np.ndarray, *, confidence: float = CONFIDENCE
) -> Estimate:
    """Accuracy of ``second`` minus ``first`` over the same items, with Tango's score interval."""
    return paired_interval(table_2x2(first, second), confidence=confidence)


def paired_interval(table: Table2x2, *, confidence: float = CONFIDENCE) -> Estimate:
    """The difference of two paired proportions with Tango's asymptotic score interval.

    Tango (1998), Statistics in Medicine 17:891-908; recommended by Fagerland, Lydersen and Laake
    (2014), Statistics in Medicine 33:2850-2875. It inverts the score test, so at zero it agrees
    with the asymptotic McNemar test, and it does not collapse when there is no discordant pair.
    """
    n, fixed, broken = table.n, table.fixed, table.broken
    if n == 0:
        raise ValueError("no items to compare")
    z = _z(confidence)
    delta = (fixed - broken) / n

    def score(difference: float) -> float:
        # Broken's probability at its maximum likelihood under this difference.
        a = 2 * n
        b = -fixed - broken + (2 * n - fixed + broken) * difference
        c = -broken * difference * (1 - difference)
        p = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = n * (2 * p + difference * (1 - difference))
        distance = fixed - broken - n * difference
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)

    edge = 1 - 1e-12
    low = -1.0 if delta <= -1 else _root(lambda d: score(d) - z, -edge, delta, otherwise=-1.0)
    high = 1.0 if delta >= 1 else _root(lambda d: score(d) + z, delta, edge, otherwise=1.0)
    return Estimate(delta, min(low, delta), max(high, delta), n)


def macro_delta(deltas: Sequence[Estimate]) -> Estimate:
    """The unweighted mean of independent differences, intervals combined by MOVER.

    The distances from estimate to limit add in squares (method of variance estimates recovery,
    Zou and Donner 2008, Statistics in Medicine 27:1693-1702), so for one task this is that task's
    own interval and for many items it is the normal interval with summed variances.
    """
    if not deltas:
        raise ValueError("no tasks to average")
    count = len(deltas)
    value = math.fsum(d.value for d in deltas) / count
    down = math.sqrt(math.fsum((d.value - d.low) ** 2 for d in deltas)) / count
    up = math.sqrt(math.fsum((d.high - d.value) ** 2 for d in deltas)) / count
    return Estimate(value, max(value - down, -1.0), min(value + up, 1.0), sum(d.n for d in deltas))


def mcnemar_exact(broken: int, fixed: int) -> float:
    """Two-sided exact McNemar p value (binomial on the discordant pairs); 1 if there is none."""
    if broken + fixed == 0:
        return 1.0
    return float(min(mcnemar([[0, broken], [fixed, 0]], exact=True).pvalue, 1.0))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment over a family of tests (the tasks)."""
    # By hand: statsmodels' multipletests runs a whole garbage collection on every call, which a
    # page with many comparisons feels. A test holds this to it.
    count = len(p_values)
    adjusted, largest = [0.0] * count, 0.0
    for rank, index in enumerate(sorted(range(count), key=p_values.__getitem__)):
        largest = max(largest, min((count - rank) * float(p_values[index]), 1.0))
        adjusted[index] = largest
    return adjusted


def smallest_detectable(
    n: int, discordance: float, *, power: float = 0.8, confidence: float = CONFIDENCE
) -> float | None:
    """The smallest true difference that a paired test on n items finds with this ``power``.

    ``discordance``: the share of items whose correctness differs. Connor's sample size formula
    (1987, Biometrics 43:207-211) solved for the difference. None if no difference that this
    discordance allows would be found.
    """
    if n <= 0:
        return None
    z_alpha, z_beta = _z(confidence), float(norm.ppf(power))

    def surplus(difference: float) -> float:
        spread = math.sqrt(max(discordance - difference * difference, 0.0))
        return math.sqrt(n) * difference - z_alpha * math.sqrt(discordance) - z_beta * spread

    largest = min(discordance, 1.0)
    if largest <= 0 or surplus(largest) < 0:
        return None
    return float(brentq(surplus, 0.0, largest))


def smoothed_discordance(table: Table2x2) -> float:
    """Share of discordant items with one pseudo-item on each side (as Bonett and Price, 2012)."""
    return (table.churn + 2) / (table.n + 2)


def smallest_detectable_macro(
    tables: Sequence[Table2x2], *, power: float = 0.8, confidence: float = CONFIDENCE
) -> float | None:
    """As :func:`smallest_detectable` for the unweighted mean over tasks (normal approximation)."""
    if not tables or any(table.n == 0 for table in tables):
        return None
    variance = math.fsum(smoothed_discordance(t) / t.n for t in tables) / len(tables) ** 2
    return (_z(confidence) + float(norm.ppf(power))) * math.sqrt(variance)


# --- retention -------------------------------------------------------------------------------


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
        a, b = _pair_of_bools(base[task], other[task])
        _, c = _pair_of_bools(a, third)
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


# --- means of per-item contrasts, over seeds ---------------------------------------------------


@dataclass(frozen=True)
class Contrast:
    """A macro mean of per-item differences; ``per_seed``: its value for each seed alone."""

    estimate: Estimate
    per_task: dict[str, Estimate]
    per_seed: tuple[float, ...]


def stratified_mean(
    values: Mapping[str, np.ndarray], *, confidence: float = CONFIDENCE
) -> Contrast:
    """Mean over tasks of the mean of per-item differences ``[n_items]`` or ``[n_seeds, n_items]``.

    Normal interval with summed variances. A task's variance is taken with one pseudo-item at +1
    and one at -1 (Bonett and Price 2012, carried over), so it does not vanish where all items
    agree. With several seeds the variance between seeds is added, over their number: a little
    conservative, since the part of seed and item together is in both.
    """
    z = _z(confidence)
    per_task: dict[str, Estimate] = {}
    seed_means: list[np.ndarray] = []
    variances: list[float] = []
    for task, raw in values.items():
        by_seed = np.atleast_2d(np.asarray(raw, dtype=np.float64))
        items = by_seed.mean(axis=0)
        if not len(items):
            raise ValueError(f"{task}: no items to compare")
        variance = float(np.append(items, [1.0, -1.0]).var()) / (len(items) + 2)
        means = by_seed.mean(axis=1)
        seeds = float(means.var(ddof=1)) / len(means) if len(means) > 1 else 0.0
        half = z * math.sqrt(variance + seeds)
        mean = float(items.mean())
        per_task[task] = Estimate(mean, mean - half, mean + half, len(items))
        seed_means.append(means)
        variances.append(variance)
    count = len(per_task)
    if count == 0:
        raise ValueError("no tasks to average")
    by_seed_macro = np.mean(np.stack(seed_means), axis=0)
    total = math.fsum(variances) / count**2
    if len(by_seed_macro) > 1:
        total += float(by_seed_macro.var(ddof=1)) / len(by_seed_macro)
    value = float(by_seed_macro.mean())
    half = z * math.sqrt(total)
    n = sum(estimate.n for estimate in per_task.values())
    return Contrast(
        Estimate(value, value - half, value + half, n),
        per_task,
        tuple(float(m) for m in by_seed_macro),
    )


def interaction(
    repaired_bidirectional: Mapping[str, np.ndarray],
    control_bidirectional: Mapping[str, np.ndarray],
    repaired_causal: Mapping[str, np.ndarray],
    control_causal: Mapping[str, np.ndarray],
    *,
    confidence: float = CONFIDENCE,
) -> Contrast:
    """(3B - 3C under bidirectional) - (3B - 3C under causal), over the same items.

    Per task, correctness of shape ``[n_items]`` or ``[n_seeds, n_items]``. The only number that
    tells repair of the mask from ordinary tuning.
    """
    values = {
        task: (
            np.asarray(repaired_bidirectional[task], dtype=np.float64)
            - np.asarray(control_bidirectional[task], dtype=np.float64)
        )
        - (
            np.asarray(repaired_causal[task], dtype=np.float64)
            - np.asarray(control_causal[task], dtype=np.float64)
        )
        for task in repaired_bidirectional
    }
    return stratified_mean(values, confidence=confidence)


# --- verdicts ----------------------------------------------------------------------------------


def verdict(estimate: Estimate, *, margin: float = MARGIN) -> Verdict:
    """``no difference`` if the whole interval lies inside the margin, ``different`` if it
    excludes 0, else ``undecided``."""
    if -margin < estimate.low and estimate.high < margin:
        return "no difference"
    return "different" if estimate.excludes_zero else "undecided"


def n_to_decide(estimate: Estimate, *, margin: float = MARGIN) -> int:
    """About how many items (same mix of tasks) would settle an undecided verdict.

    If the estimate stood, the half-width, which shrinks with the square root of n, would have to
    fall below its distance to 0 (different) or to the margin (no difference), whichever is nearer
    to reach.
    """
    half = (estimate.high - estimate.low) / 2
    room = max(abs(estimate.value), margin - abs(estimate.value))
    exact = estimate.n * (half / room) ** 2
    digits = 10 ** max(int(math.log10(max(exact, 1))) - 1, 0)
    return max(math.ceil(exact / digits) * digits, estimate.n + 1)


def _pair_of_bools(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"paired arrays must be one row each and alike: {a.shape}, {b.shape}")
    if not len(a):
        raise ValueError("no items to compare")
    return a, b


def _z(confidence: float) -> float:
    return float(norm.ppf(0.5 + confidence / 2))


def _root(function, low: float, high: float, *, otherwise: float) -> float:
    """The root between two ends; ``otherwise`` where the function has one sign on both."""
    if not low < high or np.sign(function(low)) == np.sign(function(high)):
        return otherwise
    return float(brentq(function, low, high, xtol=1e-12))
