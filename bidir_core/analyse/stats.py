"""Paired statistics of two runs over the same items: arrays in, numbers with intervals out.

Everything is paired, because the runs share their items: two unpaired standard errors would
ignore that and be too wide. Accuracies and differences are fractions (0.01 is one point); a
difference is always *second minus first*. Intervals are 95 % unless ``confidence`` says otherwise.

scipy is imported where it is used, and only its functions and roots: its distributions and statsmodels
load for a second. Tests hold what is written out here to theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

ALPHA = 0.05  # of a test, Holm's adjustment included
CONFIDENCE = 0.95
Z_95 = 1.959964  # half of a normal 95 % interval, in standard errors
MARGIN = 0.01
MIN_ITEMS = 20  # an interval of fewer items says nothing anyone should read
BEST_AT = 500  # items at which a look at growing data is narrowest
POWER = 0.8  # of the smallest difference that is called detectable
MIN_COUNT = 5  # fewer right or fewer wrong answers, and a proportion has no normal interval


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
    a, b = pair_of_bools(first, second)
    both, only_a, only_b = int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum())
    return Table2x2(both, only_a, only_b, len(a) - both - only_a - only_b)


def proportion(right: int, n: int, *, confidence: float = CONFIDENCE) -> Estimate:
    """A share of ``n`` items with Wilson's score interval (1927), which stays between 0 and 1 and
    keeps a width where none or all of few items are right. ValueError without any item."""
    if n <= 0:
        raise ValueError("no items to take a share of")
    share, z = right / n, z_score(confidence)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / (1 + z**2 / n)
    # Rounding may leave the share itself out, or pass 0 or 1.
    return Estimate(
        share, max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share)), n
    )


def accuracy(share: float, n: int) -> Estimate:
    """A task's accuracy with its own 95 % interval, from the printed share and n alone.

    Normal with lm-eval's sample variance p (1 - p) / (n - 1); Wilson's where fewer than MIN_COUNT
    answers are right or wrong, since the normal one loses its width there.
    """
    if n < 2 or min(share, 1 - share) * n < MIN_COUNT:
        return proportion(round(share * n), n)
    half = Z_95 * math.sqrt(share * (1 - share) / (n - 1))
    return Estimate(share, share - half, share + half, n)


def unpaired_delta(first: Estimate, second: Estimate) -> Estimate:
    """``second`` minus ``first`` of independent proportions: Newcombe's hybrid score interval where
    both are Wilson's (1998, Statistics in Medicine 17:873-890), the normal one where both are."""
    value = second.value - first.value
    down = math.hypot(second.value - second.low, first.high - first.value)
    up = math.hypot(second.high - second.value, first.value - first.low)
    return Estimate(value, value - down, value + up, min(first.n, second.n))


def over_seeds(items: Estimate, per_seed: Sequence[float]) -> Estimate:
    """The interval of a mean over seeds from that over its items, widened by the seeds' spread.

    The variance between seeds, over their number, is added. With k seeds it is known from k - 1
    differences only, so the quantile is Student's t with Satterthwaite's degrees of freedom
    (1946, Biometrics Bulletin 2:110-114): total ** 2 / (seeds ** 2 / (k - 1)), items being many.
    By simulation it covers 94 to 95 % where seeds vary as the items' part does; at three times that
    89 % (2 seeds) and 93 % (3), where a normal quantile covers 83 % and 89 %.
    """
    if len(per_seed) < 2:
        return items
    seeds = float(np.var(per_seed, ddof=1)) / len(per_seed)

    def reach(distance: float) -> float:
        return seeds_half_width((distance / Z_95) ** 2, seeds, len(per_seed))

    low, high = reach(items.value - items.low), reach(items.high - items.value)
    return Estimate(items.value, items.value - low, items.value + high, items.n)


def seeds_half_width(items: float, seeds: float, n_seeds: int) -> float:
    """Half the 95 % interval of a mean with these variances from items and from seeds; see
    :func:`over_seeds`."""
    from scipy.special import stdtrit

    total = items + seeds
    if n_seeds < 2 or seeds <= 0:
        return z_score(CONFIDENCE) * math.sqrt(total)
    df = (n_seeds - 1) * (total / seeds) ** 2
    return float(stdtrit(df, 0.5 + CONFIDENCE / 2)) * math.sqrt(total)


def student_half_width(values: np.ndarray) -> np.ndarray:
    """Half of Student's 95 % interval of the mean over items, ``values`` ``[item, ...]``; NaN for
    fewer than two."""
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        return np.full(values.shape[1:], math.nan)
    return float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) * values.std(0, ddof=1) / math.sqrt(n)


def student_mean(values: Sequence[float]) -> Estimate:
    """A mean over items with Student's 95 % interval, NaN for a single one."""
    numbers = np.asarray(values, dtype=np.float64)
    mean = float(numbers.mean()) if len(numbers) else math.nan
    half = float(student_half_width(numbers))
    return Estimate(mean, mean - half, mean + half, len(numbers))


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
    z = z_score(confidence)
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


def anytime(estimate: Estimate) -> Estimate:
    """The interval that holds at every look at growing data at once, from the 95 % one of this look.

    Asymptotic confidence sequence (Waudby-Smith et al. 2024, Annals of Statistics 52:2613-2640),
    narrowest at about :data:`BEST_AT` items: there about 1.5 times as wide as the single look's.
    """
    alpha = 1 - CONFIDENCE
    rho = (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / BEST_AT
    grown = estimate.n * rho + 1
    wider = math.sqrt(2 * grown / (grown - 1) * math.log(math.sqrt(grown) / alpha)) / Z_95
    low = estimate.value - wider * (estimate.value - estimate.low)
    high = estimate.value + wider * (estimate.high - estimate.value)
    return Estimate(estimate.value, max(low, -1.0), min(high, 1.0), estimate.n)


def mcnemar_exact(broken: int, fixed: int) -> float:
    """Two-sided exact McNemar p value (binomial on the discordant pairs); 1 if there is none."""
    from scipy.special import bdtr

    if broken + fixed == 0:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(broken, fixed), broken + fixed, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment over a family of tests (the tasks)."""
    count = len(p_values)
    adjusted, largest = [0.0] * count, 0.0
    for rank, index in enumerate(sorted(range(count), key=p_values.__getitem__)):
        largest = max(largest, min((count - rank) * float(p_values[index]), 1.0))
        adjusted[index] = largest
    return adjusted


def smallest_detectable(n: int, discordance: float) -> float | None:
    """The smallest true difference that a paired test on n items finds with 80 % power.

    ``discordance``: the share of items whose correctness differs. Connor's sample size formula
    (1987, Biometrics 43:207-211) solved for the difference. None if no difference that this
    discordance allows would be found.
    """
    from scipy.optimize import brentq

    if n <= 0:
        return None
    z_alpha, z_beta = z_score(CONFIDENCE), _normal_quantile(POWER)

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


def smallest_detectable_macro(tables: Sequence[Table2x2]) -> float | None:
    """As :func:`smallest_detectable` for the unweighted mean over tasks (normal approximation)."""
    if not tables or any(table.n == 0 for table in tables):
        return None
    shares = [smoothed_discordance(table) for table in tables]
    variance = math.fsum(s / table.n for s, table in zip(shares, tables)) / len(tables) ** 2
    detectable = (z_score(CONFIDENCE) + _normal_quantile(POWER)) * math.sqrt(variance)
    # No difference exceeds the share of items that differ; so few items then find none at all.
    return detectable if detectable <= math.fsum(shares) / len(shares) else None


def pair_of_bools(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"paired arrays must be one row each and alike: {a.shape}, {b.shape}")
    if not len(a):
        raise ValueError("no items to compare")
    return a, b


@cache
def _normal_quantile(share: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(share))


def z_score(confidence: float) -> float:
    return _normal_quantile(0.5 + confidence / 2)


def _root(function, low: float, high: float, *, otherwise: float) -> float:
    """The root between two ends; ``otherwise`` where the function has one sign on both."""
    from scipy.optimize import brentq

    if not low < high or np.sign(function(low)) == np.sign(function(high)):
        return otherwise
    return float(brentq(function, low, high, xtol=1e-12))


# Effects: macro means of per-item differences, over one seed or several.


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
    (:func:`seeds_half_width`): a little conservative, since the part of seed and item
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
